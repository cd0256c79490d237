"""How the checks call the sums over triplets on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..registry import AotKernel, OpCase, Sample, Shape, random_tensor
from . import reference
from .op import triplet_contract, triplet_reduce
from .tiles import pair_tile, reduce_tile
from .triplets import TripletIndex

#: GemNet's spherical basis: not a power of two.
BASIS = 7


def _reference(edge: Tensor, angular: Tensor, triplets: TripletIndex) -> Tensor:
    return reference.triplet_reduce(edge, angular, triplets.edge_in, triplets.edge_out, triplets.num_out)


def _sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    # more input edges than output edges; the last two of three or more take part in nothing
    num_out, num_in = shape.nodes, shape.nodes + 1
    edge_out = torch.randint(max(1, num_out - 2), (shape.edges,), generator=generator)
    edge_in = torch.randint(max(1, num_in - 2), (shape.edges,), generator=generator)
    edge = random_tensor(num_in, shape.width, dtype=dtype, generator=generator)
    angular = random_tensor(shape.edges, BASIS, dtype=dtype, generator=generator)
    return Sample((edge, angular), (TripletIndex.from_triplets(edge_in, edge_out, num_out, num_in=num_in),))


def _contract_reference(edge: Tensor, angular: Tensor, triplets: TripletIndex) -> Tensor:
    return reference.triplet_pull(edge, angular, triplets.edge_out, triplets.edge_in, triplets.num_out)


def _contract_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    reduced = _sample(shape, dtype, generator)
    (triplets,) = reduced.extra
    edge = random_tensor(triplets.num_in, BASIS, shape.width, dtype=dtype, generator=generator)
    return Sample((edge, reduced.inputs[1]), (triplets,))


_OPERATORS = ("triplet_reduce", "triplet_pull", "triplet_dot", "triplet_gradients")

CASES = (
    OpCase("triplet_reduce", triplet_reduce, _reference, _sample, _OPERATORS),
    OpCase("triplet_contract", triplet_contract, _contract_reference, _contract_sample, _OPERATORS),
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


def _specialisations(count: int, width: int, real: str) -> Iterator[AotKernel]:
    floats, double = f"*{real}", real == "fp64"
    # a width that is a multiple of 16 lets loads be wide
    size = {"D": "i32:16" if width % 16 == 0 else "i32"}

    def kernel(name: str, pointers: str, tile: dict[str, int], label: str = "", **flags: bool) -> AotKernel:
        whole = ("in_ptr", "out_edge_ptr", "ptr_ptr", "order_ptr")
        signature = {pointer: "*i64" if pointer in whole else floats for pointer in pointers.split()}
        signature |= {"T": "i32"} | size if name == "triplet_dot" else size
        constants = {"S": count} | flags | {key: value for key, value in tile.items() if key != "num_warps"}
        title = f"{name}[{label}S{count}, D{width}, {real}]"
        return AotKernel(title, _load(f"{name}_kernel"), signature, constants, tile["num_warps"])

    yield kernel("triplet_reduce", "x_ptr a_ptr in_ptr ptr_ptr order_ptr out_ptr", reduce_tile(count, width, double=double))
    pulled = "g_ptr x_ptr a_ptr out_edge_ptr ptr_ptr order_ptr by_x_ptr by_a_ptr"
    yield kernel("triplet_pull", pulled, pair_tile(width, double=double), "by x, ", BY_A=False)
    yield kernel("triplet_pull", pulled, pair_tile(width, double=double), "both, ", BY_A=True)
    yield kernel("triplet_dot", "g_ptr x_ptr in_ptr out_edge_ptr order_ptr by_a_ptr", pair_tile(width, double=double))


KERNELS: tuple[AotKernel, ...] = tuple(
    kernel
    for count, width, real in ((7, 5, "fp32"), (7, 64, "fp32"), (49, 32, "fp32"), (7, 128, "fp32"), (7, 64, "fp64"), (7, 64, "bf16"))
    for kernel in _specialisations(count, width, real)
)
