"""Data: the HDF5 format, neighbour lists, batches, and what a run chooses of a file."""

from .batch import Batch, NeighborGraph
from .batching import Pieces, collate
from .card import DataCard, make_card
from .dataset import StructureDataset
from .neighbors import Edges, find_neighbors
from .reader import DataFile
from .reference import References, fit_reference, force_rms, make_references
from .sampler import BatchSampler, Caps
from .select import Selection, data_path, elements, open_data_file, select
from .structure import Structure
from .units import Units
from .writer import DataWriter

__all__ = [
    "Batch",
    "BatchSampler",
    "Caps",
    "DataCard",
    "DataFile",
    "DataWriter",
    "Edges",
    "NeighborGraph",
    "Pieces",
    "References",
    "Selection",
    "Structure",
    "StructureDataset",
    "Units",
    "collate",
    "data_path",
    "elements",
    "find_neighbors",
    "fit_reference",
    "force_rms",
    "make_card",
    "make_references",
    "open_data_file",
    "select",
]
