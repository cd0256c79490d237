"""Kinds of bases and envelopes, and the constants that an operator takes along."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

BasisKind = Literal["gaussian", "bessel", "exp_normal"]
EnvelopeKind = Literal["polynomial", "cosine", "exponential"]

#: The position in the tuple is the kernels' code; an envelope of "none" is 0.
BASES: tuple[BasisKind, ...] = ("gaussian", "bessel", "exp_normal")
ENVELOPES: tuple[str, ...] = ("none", "polynomial", "cosine", "exponential")

#: Of 1 − x² in the exponential envelope exp(−x² / (1 − x²)): there it is 10⁻³⁰⁴, and nothing overflows.
EXPONENTIAL_FLOOR = 1 / 700


class Constants(NamedTuple):
    """What is no tensor, in the order of the operators' arguments."""

    kind: str  #: of `BASES`
    cutoff: float  #: Å
    alpha: float  #: 1/Å, of exp_normal
    start: float  #: Å, of exp_normal
    envelope: str  #: of `ENVELOPES`
    exponent: int  #: of the polynomial envelope


CONSTANTS_SCHEMA = "str kind, float cutoff, float alpha, float start, str envelope, int exponent"


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything shorter."""
    return torch.promote_types(dtype, torch.float32)
