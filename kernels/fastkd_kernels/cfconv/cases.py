"""How to call this folder's functions on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph import CSRGraph
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference
from .op import cfconv, edge_product
from .paired import pair_product, paired_cfconv
from .pairs import PairIndex


def _make_cfconv(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    x = random_tensor(shape.nodes, shape.width, dtype=dtype, generator=generator)
    weight = random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator)
    return Sample((x, weight), (random_graph(shape, generator),))


def _make_edge_product(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    a, b = (random_tensor(shape.nodes, shape.width, dtype=dtype, generator=generator) for _ in range(2))
    return Sample((a, b), (random_graph(shape, generator),))


def random_pairs(shape: Shape, generator: torch.Generator) -> tuple[PairIndex, CSRGraph]:
    """Half as many random pairs as edges, pairs of a node with itself among them, their edges in random order."""
    half = random_graph(Shape(shape.nodes, shape.edges // 2, shape.width), generator)
    order = torch.randperm(2 * half.num_edges, generator=generator)
    edge_src, edge_dst = torch.cat([half.edge_src, half.edge_dst])[order], torch.cat([half.edge_dst, half.edge_src])[order]
    graph = CSRGraph.from_edges(edge_src, edge_dst, shape.nodes)
    return PairIndex.from_pair(torch.arange(half.num_edges).repeat(2)[order], graph), graph


def _make_paired_cfconv(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    pairs, graph = random_pairs(shape, generator)
    x = random_tensor(shape.nodes, shape.width, dtype=dtype, generator=generator)
    return Sample((x, random_tensor(pairs.num_pairs, shape.width, dtype=dtype, generator=generator)), (pairs, graph))


def _make_pair_product(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    a, b = (random_tensor(shape.nodes, shape.width, dtype=dtype, generator=generator) for _ in range(2))
    return Sample((a, b), random_pairs(shape, generator))


def _on_graph(function: Any) -> Any:
    def call(a: Tensor, b: Tensor, graph: CSRGraph) -> Tensor:
        result: Tensor = function(a, b, graph.edge_src, graph.edge_dst)
        return result

    return call


def _paired_cfconv_reference(x: Tensor, pair_weight: Tensor, pairs: PairIndex, graph: CSRGraph) -> Tensor:
    return reference.paired_cfconv(x, pair_weight, graph.edge_src, graph.edge_dst, pairs.pair)


def _pair_product_reference(a: Tensor, b: Tensor, pairs: PairIndex, graph: CSRGraph) -> Tensor:
    return reference.pair_product(a, b, graph.edge_src, graph.edge_dst, pairs.pair_edges)


CASES: tuple[OpCase, ...] = (
    OpCase("cfconv", cfconv, _on_graph(reference.cfconv), _make_cfconv, ("cfconv",)),
    OpCase("edge_product", edge_product, _on_graph(reference.edge_product), _make_edge_product, ("edge_product",)),
    OpCase("paired_cfconv", paired_cfconv, _paired_cfconv_reference, _make_paired_cfconv, ("paired_cfconv",)),
    OpCase("pair_product", pair_product, _pair_product_reference, _make_pair_product, ("pair_product",)),
)


def _kernel(name: str, dtype: str, pointers: tuple[str, ...], indices: tuple[str, ...], sizes: tuple[str, ...]) -> AotKernel:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, f"{name}_kernel")

    signature = dict.fromkeys(pointers, f"*{dtype}") | dict.fromkeys(indices, "*i64") | dict.fromkeys(sizes, "i32")
    # the tiles of `triton_launch` for a width of 128
    return AotKernel(f"{name}[{dtype}]", load, signature, {"BLOCK_E": 4, "BLOCK_F": 128})


KERNELS: tuple[AotKernel, ...] = tuple(
    kernel
    for dtype in ("fp32", "bf16", "fp64")
    for kernel in (
        _kernel("cfconv", dtype, ("x_ptr", "weight_ptr", "out_ptr"), ("src_ptr", "ptr_ptr", "order_ptr"), ("F",)),
        _kernel("edge_product", dtype, ("a_ptr", "b_ptr", "out_ptr"), ("src_ptr", "dst_ptr"), ("E", "F")),
        _kernel("paired_cfconv", dtype, ("x_ptr", "weight_ptr", "out_ptr"), ("src_ptr", "ptr_ptr", "order_ptr", "pair_ptr"), ("F",)),
        _kernel("pair_product", dtype, ("a_ptr", "b_ptr", "out_ptr"), ("src_ptr", "dst_ptr", "pair_edges_ptr"), ("P", "F")),
    )
)
