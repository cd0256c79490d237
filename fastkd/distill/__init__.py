"""Distillation terms: what a student is asked to imitate, and how much each imitation counts."""

from .terms import Terms, TermValue, build_terms

__all__ = ["TermValue", "Terms", "build_terms"]
