"""How the checks call this folder's functions, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import op, reference


def _segment_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    ptr = random_graph(shape, generator).edge_ptr
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (ptr,))


def _scatter_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    index = random_graph(shape, generator).edge_dst
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (index, shape.nodes))


def _case(
    function: Callable[..., Tensor], reference_: Callable[..., Tensor], make: Callable[..., Any], reduce: op.Reduce
) -> OpCase:
    linear = reduce in ("sum", "mean")
    return OpCase(
        name=f"{function.__name__}[{reduce}]",
        function=partial(function, reduce=reduce),
        reference=partial(reference_, reduce=reduce),
        make=make,
        operators=("segment_sum", "segment_gather") if linear else ("segment_extremum", "arg_gather", "arg_scatter"),
        smooth=linear,
    )


CASES = tuple(
    _case(function, reference_, make, reduce)
    for function, reference_, make in (
        (op.segment_reduce, reference.segment_reduce, _segment_sample),
        (op.scatter_reduce, reference.scatter_reduce, _scatter_sample),
    )
    for reduce in op.REDUCTIONS
)

KERNELS: tuple[AotKernel, ...] = ()
