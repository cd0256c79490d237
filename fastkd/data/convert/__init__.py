"""Converters into the data format: one file per kind of source, each a generator of structures."""

from .ase_files import read_ase, read_ase_db
from .convert import Report, convert
from .npz import read_npz
from .source import SourceOptions, parse_slice
from .splits import SplitPlan

__all__ = ["Report", "SourceOptions", "SplitPlan", "convert", "parse_slice", "read_ase", "read_ase_db", "read_npz"]
