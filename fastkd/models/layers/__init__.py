"""Small blocks that several models share: radial bases, cutoff envelopes, activations and edge filters."""

from .activations import Activation, ScaledSiLU, ShiftedSoftplus, SiLU, activation
from .elements import ElementTable
from .filters import attach_derivative, rows_of, with_bias
from .gather import node_to_edge
from .mlp import GatedEquivariantBlock, dense, safe_length, vector_norm
from .radial import BasisKind, Envelope, EnvelopeKind, RadialBasis
from .spherical import SphericalRadial, bessel_norms, bessel_zeros, legendre, legendre_and_slopes, spherical_bessel
from .tables import FilterMethod, FilterTables
from .triplet_geometry import first_order_geometry

__all__ = [
    "Activation",
    "BasisKind",
    "ElementTable",
    "Envelope",
    "EnvelopeKind",
    "FilterMethod",
    "FilterTables",
    "GatedEquivariantBlock",
    "RadialBasis",
    "ScaledSiLU",
    "ShiftedSoftplus",
    "SiLU",
    "SphericalRadial",
    "activation",
    "attach_derivative",
    "bessel_norms",
    "bessel_zeros",
    "dense",
    "first_order_geometry",
    "legendre",
    "legendre_and_slopes",
    "node_to_edge",
    "rows_of",
    "safe_length",
    "spherical_bessel",
    "vector_norm",
    "with_bias",
]
