"""Distillation terms: what a student is asked to imitate, and how much each imitation counts."""

from .balance import Balance, ValidationErrors
from .mixing import CollapseWatch
from .term import TermValue
from .terms import Terms, build_terms
from .weighting import WeightSchedule

__all__ = ["Balance", "CollapseWatch", "TermValue", "Terms", "ValidationErrors", "WeightSchedule", "build_terms"]
