"""Fused, deterministic, twice-differentiable kernels for molecular graph networks and their distillation."""

from .graph import CSRGraph

__all__ = ["CSRGraph"]
__version__ = "0.1.0"
