"""How to call the geometric loss of vectors on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registry import AotKernel, OpCase, Sample, Shape, random_tensor
from . import reference, tiles
from .op import vector_geometric_loss

OPERATORS = ("geometric_nodes", "geometric_nodes_backward")


def _make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    count, channels, width = shape.nodes, shape.width, shape.width + 2
    v = random_tensor(count, 3, channels, dtype=dtype, generator=generator)
    weight = random_tensor(width, channels, dtype=torch.float64, generator=generator).mul(channels**-0.5).to(dtype)
    return Sample((v, weight, random_tensor(count, 3, width, dtype=dtype, generator=generator)))


def _make_images(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    made, count = _make(shape, dtype, generator), shape.nodes
    node_weight = random_tensor(count, dtype=dtype, generator=generator).abs()
    # the second image has no nodes
    graph_ptr = torch.tensor([0, (count + 1) // 2, (count + 1) // 2, count])
    return Sample(made.inputs, (node_weight, graph_ptr))


# Numbers are written out, for mix and eps too: with `dynamic=True` torch.compile takes a float that is a default argument for a symbol
# first, and traces a second time with its value. That happens once, whatever changes later, but the test counts traces.


def _plain(v: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Tensor:
    return vector_geometric_loss(v, weight, target, mix=0.5, eps=1e-6, **options)


def _images(v: Tensor, weight: Tensor, target: Tensor, node_weight: Tensor, graph_ptr: Tensor, **options: Any) -> Tensor:
    return vector_geometric_loss(v, weight, target, mix=0.3, eps=1e-6, graph_ptr=graph_ptr, node_weight=node_weight, **options)


def _images_reference(v: Tensor, weight: Tensor, target: Tensor, node_weight: Tensor, graph_ptr: Tensor) -> Tensor:
    return reference.vector_geometric_loss(v, weight, target, mix=0.3, graph_ptr=graph_ptr, node_weight=node_weight)


CASES: tuple[OpCase, ...] = (
    OpCase("vector_geometric_loss", _plain, reference.vector_geometric_loss, _make, OPERATORS),
    OpCase("vector_geometric_loss[images, weighted]", _images, _images_reference, _make_images, OPERATORS),
)


def _kernel(name: str, *, dtype: str = "fp32", odd: bool = False, by_target: bool = False) -> AotKernel:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, f"geometric_nodes_{name}_kernel")

    summed = "fp64" if dtype == "fp64" else "fp32"
    signature = dict.fromkeys(("v_ptr", "weight_ptr", "target_ptr"), f"*{dtype}")
    if name == "fwd":
        signature |= {"part_ptr": f"*{summed}"}
    else:
        signature |= {"upstream_ptr": f"*{summed}", "pull_ptr": f"*{summed}", "grad_target_ptr": f"*{dtype}"}
    # widths of a real model are multiples of 16, which lets loads be wide
    signature |= {"N": "i32"} | dict.fromkeys(("C", "D"), "i32" if odd else "i32:16")
    constants: dict[str, Any] = {"MIX": 0.5, "EPS": reference.DEFAULT_EPS, "WIDEN": False}
    if name == "pull":
        signature |= {"first_node": "i32", "last_node": "i32"}
        constants |= {"NEED_PULL": True, "NEED_TARGET": by_target}
    tile = tiles.tiles(double=dtype == "fp64")
    constants |= {key: value for key, value in tile.items() if key != "num_warps"}
    title = f"geometric_nodes_{name}[{dtype}{', odd widths' if odd else ''}{', by target' if by_target else ''}]"
    return AotKernel(title, load, signature, constants, num_warps=tile["num_warps"])


KERNELS: tuple[AotKernel, ...] = (
    *(_kernel("fwd", dtype=dtype) for dtype in ("fp32", "bf16", "fp64")),
    *(_kernel("pull", dtype=dtype, by_target=by_target) for dtype in ("fp32", "bf16", "fp64") for by_target in (False, True)),
    *(_kernel(name, odd=True) for name in ("fwd", "pull")),
)
