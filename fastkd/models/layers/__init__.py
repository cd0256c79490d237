"""Small blocks that several models share: radial bases, cutoff envelopes, activations and edge filters."""

from .activations import Activation, ScaledSiLU, ShiftedSoftplus, activation
from .filters import attach_derivative, rows_of, with_bias
from .mlp import GatedEquivariantBlock, dense, safe_length, vector_norm
from .radial import BasisKind, Envelope, EnvelopeKind, RadialBasis
from .tables import FilterMethod, FilterTables

__all__ = [
    "Activation",
    "BasisKind",
    "Envelope",
    "EnvelopeKind",
    "FilterMethod",
    "FilterTables",
    "GatedEquivariantBlock",
    "RadialBasis",
    "ScaledSiLU",
    "ShiftedSoftplus",
    "activation",
    "attach_derivative",
    "dense",
    "rows_of",
    "safe_length",
    "vector_norm",
    "with_bias",
]
