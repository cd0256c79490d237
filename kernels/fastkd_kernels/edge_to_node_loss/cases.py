"""How to call the edge-to-node losses on random input, and how their Triton kernels are specialised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..projected_loss.kinds import KINDS, Kind
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import op, reference, tiles


def _projection(channels: int, width: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return random_tensor(width, channels, dtype=torch.float64, generator=generator).mul(channels**-0.5).to(dtype)


def _scalar_sample(kind: Kind, shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    # the projection widens, as a student's does
    graph, channels, width = random_graph(shape, generator), shape.width, 2 * shape.width + 1
    x = random_tensor(shape.nodes, channels, dtype=dtype, generator=generator)
    weight = _projection(channels, width, dtype, generator)
    bias = random_tensor(width, dtype=dtype, generator=generator)
    return Sample((x, weight, bias), (random_tensor(shape.edges, width, dtype=dtype, generator=generator), graph, kind))


def _vector_sample(kind: Kind, shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    graph, channels, width = random_graph(shape, generator), shape.width, shape.width + 2
    v = random_tensor(shape.nodes, 3, channels, dtype=dtype, generator=generator)
    weight = _projection(channels, width, dtype, generator)
    edge = random_tensor(shape.edges, width, dtype=dtype, generator=generator)
    return Sample((v, weight), (edge, random_tensor(shape.edges, 3, dtype=dtype, generator=generator), graph, kind))


def _mean(x: Tensor, weight: Tensor, bias: Tensor, edge: Tensor, graph: Any, kind: Kind, **options: Any) -> Tensor:
    return op.edge_to_node_loss(x, weight, bias, edge, graph, kind, reduce="mean", **options)


def _mean_reference(x: Tensor, weight: Tensor, bias: Tensor, edge: Tensor, graph: Any, kind: Kind) -> Tensor:
    return reference.edge_to_node_loss(x, weight, bias, edge, graph, kind, reduce="mean")


def _case(kind: Kind, *, vector: bool) -> OpCase:
    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        return (_vector_sample if vector else _scalar_sample)(kind, shape, dtype, generator)

    name = "edge_to_node_vector_loss" if vector else "edge_to_node_loss"
    # no operators here: opcheck would ask for gradients by the teacher; the folder's own test runs it without
    return OpCase(f"{name}[{kind}]", getattr(op, name), getattr(reference, name), make, smooth=kind == "mse")


CASES: tuple[OpCase, ...] = (
    *(_case(kind, vector=False) for kind in KINDS),
    *(_case(kind, vector=True) for kind in KINDS),
    OpCase(
        "edge_to_node_loss[mse, mean]",
        _mean,
        _mean_reference,
        lambda shape, dtype, generator: _scalar_sample("mse", shape, dtype, generator),
    ),
)


def _kernel(name: str, *, kind: int = 0, dtype: str = "fp32", vector: bool = False, odd: bool = False) -> AotKernel:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, f"edge_to_node_rows_{name}_kernel")

    summed, double = "fp64" if dtype == "fp64" else "fp32", dtype == "fp64"
    signature = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "edge_ptr", "direction_ptr"), f"*{dtype}")
    signature |= dict.fromkeys(("ptr_ptr", "order_ptr"), "*i64")
    signature |= {"part_ptr": f"*{summed}"} if name == "fwd" else {"upstream_ptr": f"*{summed}", "pull_ptr": f"*{summed}"}
    # widths of a real model are multiples of 16, which lets loads be wide
    signature |= {"ROWS": "i32"} | dict.fromkeys(("C", "D"), "i32" if odd else "i32:16")
    if name == "pull":
        signature |= {"first_row": "i32", "last_row": "i32"}
    tile = tiles.tiles(double=double)
    flags = {"KIND": kind, "HAS_BIAS": not vector, "MEAN": False, "VECTOR": vector, "WIDEN": False}
    constants = flags | {key: value for key, value in tile.items() if key != "num_warps"}
    title = f"edge_to_node_rows_{name}[{KINDS[kind]}, {dtype}{', vector' if vector else ''}{', odd widths' if odd else ''}]"
    return AotKernel(title, load, signature, constants, num_warps=tile["num_warps"])


def _product(name: str, outputs: tuple[str, ...], dtype: str) -> AotKernel:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, f"projection_bwd_{name}_kernel")

    summed, double = "fp64" if dtype == "fp64" else "fp32", dtype == "fp64"
    other = "weight_ptr" if name == "input" else "x_ptr"
    signature = {"pull_ptr": f"*{summed}", other: f"*{dtype}"}
    signature |= dict.fromkeys(outputs, f"*{dtype}" if name == "input" else f"*{summed}")
    signature |= {"ROWS": "i32", "C": "i32:16", "D": "i32:16"} | ({} if name == "input" else {"rows_each": "i32"})
    # the tiles of `projection_launch` for a wide model, written out because that module needs triton
    constants = {"BLOCK_N": 16 if double else 32, "BLOCK_D": 32, "BLOCK_OUT": 32 if double else 128}
    return AotKernel(f"projection_bwd_{name}[{dtype}]", load, signature, constants, num_warps=4 if double else 8)


KERNELS: tuple[AotKernel, ...] = (
    *(_kernel(name, kind=kind) for kind in range(len(KINDS)) for name in ("fwd", "pull")),
    *(_kernel(name, vector=True, odd=odd) for odd in (False, True) for name in ("fwd", "pull")),
    *(_kernel(name, odd=True) for name in ("fwd", "pull")),
    *(_kernel(name, dtype=dtype, vector=vector) for dtype in ("bf16", "fp64") for vector in (False, True) for name in ("fwd", "pull")),
    *(_product("input", ("grad_ptr",), dtype) for dtype in ("fp32", "bf16", "fp64")),
    *(_product("weight", ("weight_part_ptr", "bias_part_ptr"), dtype) for dtype in ("fp32", "bf16", "fp64")),
)
