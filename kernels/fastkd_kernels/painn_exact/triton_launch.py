"""Allocate, choose tiles, launch. Nothing here reads a tensor's values, so nothing waits for the device."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..cfconv_exact.codes import slopes_of
from ..needed import allocate
from ..radial_specs import BASES, ENVELOPES, decode
from . import tiles
from . import triton_kernels as kernels
from .reference import Spec

Tangents = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Primals = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]


def message(
    phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, weight: Tensor, units: tuple[Any, ...], spec: Spec
) -> tuple[Tensor, Tensor]:
    """See `reference.value`."""
    nodes, width = phi.shape[0], phi.shape[1] // 3
    scalar, out_vector = phi.new_empty(nodes, width), phi.new_empty(nodes, 3, width)
    if nodes and width:
        call = _Call(phi, edge_length, weight, units, spec)
        inputs = _given(phi, vector, direction, call.mixing, edge_length)
        flags = {"HAS_VECTOR": vector is not None, "PAIRED": call.paired}
        kernels.message_kernel[call.grid](*inputs, *call.into(), scalar, out_vector, *call.sizes, **flags, **call.options("message"))
    return scalar, out_vector


def backward(
    grad_scalar: Tensor, grad_vector: Tensor, phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, weight: Tensor,
    units: tuple[Any, ...], spec: Spec, needs: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `reference.gradients`; what is not needed is empty."""
    out = list(allocate((phi, vector, edge_length, direction, weight), needs, phi))
    if not phi.numel():
        return tuple(tensor.zero_() for tensor in out)
    need_phi, need_vector, need_length, need_direction, need_weight = needs
    call, primals = _Call(phi, edge_length, weight, units, spec), (grad_scalar, grad_vector, phi, vector, direction)
    if need_phi or need_vector or need_length or need_direction:
        wanted = {"PHI": need_phi, "VECTOR": need_vector and vector is not None, "LENGTH": need_length, "DIRECTION": need_direction}
        by_length, by_direction = call.walk_back(primals, out[0], out[1], wanted)
        if need_length:
            out[2] = by_length.to(edge_length.dtype)
        if need_direction:
            out[3] = by_direction.to(direction.dtype)
    if need_weight:
        out[4] = call.weights((None, None, None, None), primals, tangent=False)
    return tuple(out)


def double_backward(
    tangent_phi: Tensor | None, tangent_vector: Tensor | None, rate: Tensor | None, tangent_direction: Tensor | None,
    grad_scalar: Tensor, grad_vector: Tensor, phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, weight: Tensor,
    units: tuple[Any, ...], spec: Spec, needs: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `reference.second_gradients`; what is not needed is empty."""
    # the two gradients of a walk share all that is read; whichever was not asked for is dropped after
    into, out_of = needs[0] or needs[1], needs[2] or needs[3]
    made = [into, into, out_of, out_of, *needs[4:]]
    out = list(allocate((grad_scalar, grad_vector, phi, vector, edge_length, direction, weight), made, phi))
    if not phi.numel():
        return _asked([tensor.zero_() for tensor in out], needs)
    call, primals = _Call(phi, edge_length, weight, units, spec), (grad_scalar, grad_vector, phi, vector, direction)
    tangents = (tangent_phi, None if vector is None else tangent_vector, rate, tangent_direction)
    inputs = _given(*tangents, *primals, call.mixing, edge_length, like=phi)
    flags = _flags(tangents) | {"HAS_VECTOR": vector is not None, "PAIRED": call.paired}
    # the edges that enter a node are those that leave it, if they come in pairs
    walks = [(call.into(), into, out_of)] if call.paired else [(call.into(), into, False), (call.out_of(), False, out_of)]
    for edges, one, other in walks:
        if one or other:
            shared = (*edges, *out[:4], *call.sizes)
            kernels.double_backward_kernel[call.grid](*inputs, *shared, **flags, INTO=one, OUT_OF=other, **call.options("double_backward"))
    if needs[4] or needs[5]:
        by_length, by_direction = _places(call, tangents, primals, out, needs[4], needs[5])
        out[4] = by_length.to(edge_length.dtype) if needs[4] else out[4]
        out[5] = by_direction.to(direction.dtype) if needs[5] else out[5]
    if needs[6]:
        out[6] = call.weights(tangents, primals, tangent=True)
    return _asked(out, needs)


class _Call:
    """What all launches of one call share."""

    def __init__(self, phi: Tensor, length: Tensor, weight: Tensor, units: tuple[Any, ...], spec: Spec) -> None:
        self.src, self.dst, self.ptr, self.order, self.src_ptr, self.src_order, pair_edges = units
        self.paired, self.length, self.weight = pair_edges is not None, length.contiguous(), weight
        self.mixing = weight.T.contiguous()
        self.dtype = torch.float64 if phi.dtype == torch.float64 else torch.float32
        self.nodes, self.width, self.edges, self.units = phi.shape[0], phi.shape[1] // 3, self.src.shape[0], length.shape[0]
        self.sizes = self.width, weight.shape[1] - 1
        if self.paired:
            # the pair of each edge, and where its first edge goes
            self.index = torch.empty_like(self.src)
            self.index[pair_edges] = torch.arange(self.units, device=self.src.device).unsqueeze(1)
            self.unit_dst = self.dst[pair_edges[:, 0]]
        else:
            # stand-ins: an edge is its own unit
            self.index, self.unit_dst = self.src, self.dst
        self.double = self.dtype == torch.float64
        self.constants = _spec_options(spec)
        # the same tile of features for all that walk through nodes
        self.grid = self.nodes, triton.cdiv(self.width, tiles.tile("message", self.width, self.double)["BLOCK_F"])

    def options(self, kernel: str) -> dict[str, Any]:
        return {**self.constants, **tiles.tile(kernel, self.width, self.double), "num_warps": tiles.WARPS[kernel]}

    def into(self) -> tuple[Tensor, ...]:
        """The edges that enter each node."""
        return self.ptr, self.order, self.src, self.index, self.unit_dst

    def out_of(self) -> tuple[Tensor, ...]:
        """The edges that leave each node."""
        return self.src_ptr, self.src_order, self.dst, self.index, self.unit_dst

    def walk_back(
        self, primals: Primals, by_phi: Tensor, by_vector: Tensor, wanted: dict[str, bool], low: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Over the edges that leave each node. Gradients by phi and vector are written, those by length [U] and direction [U, 3] returned.

        The filter's derivative of order ``low`` stands for the filter.
        """
        sums = self.grid[1] * (1 + self.paired)
        shape = (sums, self.units, 4) if wanted["LENGTH"] or wanted["DIRECTION"] else (0, 0, 4)
        partial = torch.empty(shape, dtype=self.dtype, device=self.weight.device)
        inputs = _given(*primals, self.mixing, self.length)
        flags = {"HAS_VECTOR": primals[3] is not None, "PAIRED": self.paired, **{f"NEEDS_{name}": need for name, need in wanted.items()}}
        shared = (*self.out_of(), by_phi, by_vector, partial, self.units, *self.sizes)
        kernels.backward_kernel[self.grid](*inputs, *shared, LOW=low, **flags, **self.options("backward"))
        return partial[:, :, 0].sum(0), partial[:, :, 1:].sum(0)

    def weights(self, tangents: Tangents, primals: Primals, *, tangent: bool) -> Tensor:
        """The gradient of the weight, [3F, K + 1]."""
        width, columns = self.width, self.weight.shape[1]
        tile = tiles.tile("weight", width, self.double)
        shares = triton.cdiv(width, tile["BLOCK_F"]), triton.cdiv(columns, tile["BLOCK_K"])
        parts, each = tiles.parts(self.edges, shares[0] * shares[1])
        has_vector = primals[3] is not None
        # the last block stays zero without vectors
        make = torch.empty if has_vector else torch.zeros
        found = make((parts, 3 * width, columns), dtype=self.dtype, device=self.weight.device)
        if parts:
            inputs = _given(*tangents, *primals, self.length, like=primals[2])
            shared = (self.dst, self.src, self.index, self.unit_dst, found, self.edges, *self.sizes, each)
            flags = _flags(tangents) | {"TANGENT": tangent, "PAIRED": self.paired}
            for which in range(3 if has_vector else 2):
                kernels.weight_kernel[(*shares, parts)](*inputs, *shared, WHICH=which, **flags, **self.options("weight"))
        return found.sum(0).to(self.weight.dtype)


def _places(
    call: _Call, tangents: Tangents, primals: Primals, out: list[Tensor], need_length: bool, need_direction: bool
) -> tuple[Tensor, Tensor]:
    """Second derivatives by lengths and directions: the first ones with each factor replaced by its tangent in turn.

    Nobody who trains on forces has a use for them, so that they are three passes of a kernel that is there.
    """
    (t_phi, t_vector, rate, t_direction), (grad_scalar, grad_vector, phi, vector, direction) = tangents, primals
    wanted = {"PHI": False, "VECTOR": False, "LENGTH": need_length, "DIRECTION": need_direction}
    by_length, by_direction = (torch.zeros(shape, dtype=call.dtype, device=phi.device) for shape in ((call.units,), (call.units, 3)))
    if t_phi is not None:
        length, turned = call.walk_back((grad_scalar, grad_vector, t_phi, vector, direction), out[2], out[3], wanted)
        by_length, by_direction = by_length + length, by_direction + turned
    if need_length and (t_vector is not None or t_direction is not None):
        still = torch.zeros_like(direction) if t_direction is None else t_direction
        moving = (torch.zeros_like(grad_scalar), grad_vector, phi, t_vector, still)
        by_length = by_length + call.walk_back(moving, out[2], out[3], wanted | {"DIRECTION": False})[0]
    if rate is not None:
        # the filter's slope in place of the filter, and its curvature in place of the slope
        length, turned = call.walk_back(primals, out[2], out[3], wanted, low=1)
        by_length, by_direction = by_length + rate * length, by_direction + rate.unsqueeze(1) * turned
    return by_length, by_direction


def _spec_options(spec: Spec) -> dict[str, Any]:
    basis, envelope = decode(*spec[:2])
    slopes = slopes_of(basis)
    return {
        "SMOOTH": spec[2],
        "ENVELOPE": ENVELOPES.index(envelope.kind),
        "EXPONENT": envelope.exponent,
        "REACH": envelope.cutoff,
        "BASIS": BASES.index(basis.kind),
        "FIRST": slopes.first,
        "INVERSE": slopes.inverse,
        "SCALE": slopes.scale,
        "DECAY": slopes.decay,
    }


def _flags(tangents: Tangents) -> dict[str, bool]:
    return {
        name: tangent is not None
        for name, tangent in zip(("HAS_T_PHI", "HAS_T_VECTOR", "HAS_RATE", "HAS_T_DIRECTION"), tangents, strict=True)
    }


def _given(*tensors: Tensor | None, like: Tensor | None = None) -> list[Tensor]:
    """Contiguous; another tensor stands in for what is missing, and is not read."""
    stand_in = next(tensor for tensor in tensors if tensor is not None) if like is None else like
    return [stand_in if tensor is None else tensor.contiguous() for tensor in tensors]


def _asked(out: list[Tensor], needs: list[bool]) -> tuple[Tensor, ...]:
    return tuple(tensor if need else tensor.new_empty((0,) * tensor.dim()) for tensor, need in zip(out, needs, strict=True))
