"""Fused, deterministic, twice-differentiable kernels for molecular graph networks and their distillation."""

from .graph import CSRGraph
from .projected_loss.op import projected_loss
from .vector_loss.op import vector_loss

__all__ = ["CSRGraph", "projected_loss", "vector_loss"]
__version__ = "0.1.0"
