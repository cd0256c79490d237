"""Allocate, choose tiles, launch; and the fixed-order sum of per-program parts. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..radial_specs import ACTIVATIONS, BASES, ENVELOPES, ActivationKind, decode
from . import triton_kernels as kernels
from .codes import slopes_of

#: The network's gradients are made in parts of so many edges or more: a part sums its edges in order, and torch the parts in order.
EDGES_PER_PART = 512
#: Ceiling on programs, a few per multiprocessor, which bounds the scratch whatever the number of edges is.
MAX_PROGRAMS = 1024
#: A float32 product in `ieee` precision runs on the ordinary units, whose operands fill registers: short inner tiles keep them there.
TILES = {"BLOCK_H": 16, "BLOCK_K": 16}
MOST_FEATURES = 64


def value(
    x: Tensor, length: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor, pair_edges: Tensor | None,
    basis: str, envelope: str, activation: ActivationKind,
) -> Tensor:  # fmt: skip
    """See `reference.value`."""
    call = _Call(x, length, (w1, b1, w2, b2), src, dst, pair_edges, (basis, envelope, activation))
    return call.reduce((src, ptr, order), x, None, None)


def gradients(
    x: Tensor, length: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor, pair_edges: Tensor | None, grad: Tensor,
    basis: str, envelope: str, activation: ActivationKind, needs: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `reference.gradients`; what is not needed is empty."""
    need_x, need_length, *need_network = needs
    call = _Call(x, length, (w1, b1, w2, b2), src, dst, pair_edges, (basis, envelope, activation))
    none = x.new_empty(0)
    return (
        call.reduce((dst, src_ptr, src_order), grad, None, None) if need_x else none,
        call.dots(grad, x, None, None) if need_length else none,
        *call.network(grad, x, None, None, need_network),
    )


def second_gradients(
    x: Tensor, length: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor, pair_edges: Tensor | None, grad: Tensor,
    tangent_x: Tensor | None, tangent_length: Tensor | None, basis: str, envelope: str, activation: ActivationKind, needs: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `reference.second_gradients`; what is not needed is empty."""
    need_x, need_length, *need_network, need_grad = needs
    call = _Call(x, length, (w1, b1, w2, b2), src, dst, pair_edges, (basis, envelope, activation))
    none, u = x.new_empty(0), tangent_length
    if not need_x:
        grad_x = none
    elif u is None:
        # the gradient by x does not depend on x but through lengths
        grad_x = torch.zeros_like(x)
    else:
        grad_x = call.reduce((dst, src_ptr, src_order), None, grad, u)
    return (
        grad_x,
        call.dots(grad, tangent_x, x, u) if need_length else none,
        *call.network(grad, tangent_x, x, u, need_network),
        call.reduce((src, ptr, order), tangent_x, x, u) if need_grad else none,
    )


class _Call:
    """What all launches of one call share."""

    def __init__(
        self,
        x: Tensor,
        length: Tensor,
        network: tuple[Tensor, Tensor, Tensor, Tensor],
        src: Tensor,
        dst: Tensor,
        pair_edges: Tensor | None,
        spec: tuple[str, str, ActivationKind],
    ) -> None:
        self.length, self.network_tensors = length.contiguous(), tuple(tensor.contiguous() for tensor in network)
        self.src, self.dst, self.pair_edges, self.nodes = src, dst, pair_edges, x.shape[0]
        (self.hidden, self.functions), self.width, self.edges = network[0].shape, x.shape[1], src.shape[0]
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.index = src
        if pair_edges is not None:
            # each edge has one pair, so that nothing is written twice
            self.index = torch.empty_like(src)
            self.index[pair_edges] = torch.arange(pair_edges.shape[0], device=src.device)[:, None].expand(-1, 2)
        self.options = _options(spec, pair_edges is not None, x.dtype, self.width)

    def reduce(self, graph: tuple[Tensor, Tensor, Tensor], a: Tensor | None, b: Tensor | None, u: Tensor | None) -> Tensor:
        """Σ W ∘ a + u W′ ∘ b onto nodes; ``graph``: the other end of each edge, and the order of edges by this end."""
        like = a if a is not None else b
        assert like is not None
        out = torch.empty_like(like, memory_format=torch.contiguous_format)
        if out.numel():
            grid = (self.nodes, triton.cdiv(self.width, self.options["BLOCK_F"]))
            # a node has few edges: a longer tile would be mostly empty
            kernels.cfconv_exact_reduce_kernel[grid](
                *self._fields(a, b, u, out), self.length, *self.network_tensors, *graph, self.index, out,
                self.width, self.hidden, self.functions, **_orders(a, u, 0), **self.options | {"BLOCK_E": 16},
            )  # fmt: skip
        return out

    def dots(self, g: Tensor, a: Tensor | None, b: Tensor | None, u: Tensor | None) -> Tensor:
        """Σ g ∘ (W′ ∘ a + u W″ ∘ b) by length."""
        out = self.length.new_empty(self.edges, dtype=self.dtype)
        if a is None and u is None:
            out.zero_()
        elif self.edges:
            grid = (triton.cdiv(self.edges, self.options["BLOCK_E"]),)
            kernels.cfconv_exact_dots_kernel[grid](
                g.contiguous(), *self._fields(a, b, u, out), self.length, *self.network_tensors, self.src, self.dst, self.index, out,
                self.edges, self.width, self.hidden, self.functions, **_orders(a, u, 1), **self.options,
            )  # fmt: skip
        if self.pair_edges is not None:
            out = out[self.pair_edges].sum(1)
        return out.to(self.length.dtype)

    def network(self, g: Tensor, a: Tensor | None, b: Tensor | None, u: Tensor | None, needs: Sequence[bool]) -> list[Tensor]:
        """Gradients of the network's tensors, for cotangents g ∘ a of W and u g ∘ b of W′."""
        w1, b1, w2, _ = self.network_tensors
        blocks, found = self.options, [self.length.new_empty(0)] * 4
        shared = (g.contiguous(), *self._fields(a, b, u, g), self.length, w1, b1)
        ends = (self.src, self.dst, self.index)
        sizes = (self.edges, self.width, self.hidden, self.functions)
        orders = _orders(a, u, 0)
        if any(needs[:2]):
            tiles = triton.cdiv(self.hidden, blocks["BLOCK_H"]), triton.cdiv(self.functions, blocks["BLOCK_K"])
            parts, each = self._parts(tiles)
            weights, biases = self._part_sums(parts, self.hidden, self.functions)
            if parts:
                kernels.cfconv_exact_first_kernel[(*tiles, parts)](
                    *shared, w2, *ends, weights, biases, *sizes, each, **orders, **blocks | {"BLOCK_E": 16, "BLOCK_F": 16}
                )
            found[:2] = weights.sum(0).to(w1.dtype), biases.sum(0).to(w1.dtype)
        if any(needs[2:]):
            # short tiles, whose operands fit in registers; float64 takes two registers a number
            blocks = blocks | {"BLOCK_E": 16, "BLOCK_F": min(blocks["BLOCK_F"], 16 if blocks["DOUBLE"] else 32)}
            tiles = triton.cdiv(self.width, blocks["BLOCK_F"]), triton.cdiv(self.hidden, blocks["BLOCK_H"])
            parts, each = self._parts(tiles)
            weights, biases = self._part_sums(parts, self.width, self.hidden)
            if parts:
                kernels.cfconv_exact_second_kernel[(*tiles, parts)](*shared, *ends, weights, biases, *sizes, each, **orders, **blocks)
            found[2:] = weights.sum(0).to(w1.dtype), biases.sum(0).to(w1.dtype)
        return [tensor if need else self.length.new_empty(0) for tensor, need in zip(found, needs, strict=True)]

    def _parts(self, tiles: tuple[int, int]) -> tuple[int, int]:
        block = self.options["BLOCK_E"]
        least = max(EDGES_PER_PART, triton.cdiv(self.edges, max(1, MAX_PROGRAMS // (tiles[0] * tiles[1] or 1))))
        each = triton.cdiv(min(least, self.edges), block) * block
        return triton.cdiv(self.edges, max(each, 1)), each

    def _part_sums(self, parts: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        like = self.length
        return like.new_empty(parts, rows, columns, dtype=self.dtype), like.new_empty(parts, rows, dtype=self.dtype)

    @staticmethod
    def _fields(a: Tensor | None, b: Tensor | None, u: Tensor | None, unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # what is None is never looked at
        first, second, third = (unused if tensor is None else tensor.contiguous() for tensor in (a, b, u))
        return first, second, third


def _orders(a: Tensor | None, u: Tensor | None, lowest: int) -> dict[str, int]:
    """LOW and ORDER: the field a belongs to the order ``lowest``, and u to the next one."""
    return {"LOW": lowest if a is not None else lowest + 1, "ORDER": lowest if u is None else lowest + 1}


def _options(spec: tuple[str, str, ActivationKind], has_pairs: bool, dtype: torch.dtype, width: int) -> dict[str, Any]:
    basis, envelope = decode(*spec[:2])
    slopes = slopes_of(basis)
    double = dtype == torch.float64
    # a power of two, and at least the 16 that tl.dot wants
    block_f = max(16, min(MOST_FEATURES // (2 if double else 1), int(triton.next_power_of_2(max(width, 1)))))
    return {
        "HAS_PAIRS": has_pairs,
        "ACT": ACTIVATIONS.index(spec[2]),
        "ENVELOPE": ENVELOPES.index(envelope.kind),
        "EXPONENT": envelope.exponent,
        "REACH": envelope.cutoff,
        "BASIS": BASES.index(basis.kind),
        "FIRST": slopes.first,
        "INVERSE": slopes.inverse,
        "SCALE": slopes.scale,
        "DECAY": slopes.decay,
        "BLOCK_E": 16 if double else 32,
        "BLOCK_F": block_f,
        **TILES,
        "DOUBLE": double,
        "num_warps": 8,
    }
