"""Distillation terms: what a student is asked to imitate, and how much each imitation counts."""

from .mixing import CollapseWatch
from .term import TermValue
from .terms import Terms, build_terms
from .weighting import WeightSchedule

__all__ = ["CollapseWatch", "TermValue", "Terms", "WeightSchedule", "build_terms"]
