"""What every op folder declares about itself in ``cases.py``, so that one check, one test file and one compiler cover them all.

``cases.py`` of a folder holds ``CASES: tuple[OpCase, ...]`` (how to call each public function on random input) and
``KERNELS: tuple[AotKernel, ...]`` (how each Triton kernel is specialised in practice).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .graph import CSRGraph

#: Op folders, in the order in which they are shown.
OP_FOLDERS: tuple[str, ...] = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/cases.py")))


@dataclass(frozen=True)
class Shape:
    """Size of a random input: nodes, edges (or rows) and width. The last two nodes of three or more stay without edges."""

    nodes: int
    edges: int
    width: int

    def __str__(self) -> str:
        return f"N{self.nodes}_E{self.edges}_F{self.width}"


@dataclass(frozen=True)
class Sample:
    """One random call: differentiable inputs first, then whatever else the function takes."""

    inputs: tuple[Tensor, ...]
    extra: tuple[Any, ...] = ()


@dataclass(frozen=True)
class OpCase:
    """One public function, its specification, and how to make random input for it.

    Args:
        name: shown to the user, e.g. ``cfconv`` or ``segment_reduce[max]``.
        function: the public function, called as ``function(*inputs, *extra, backend=…)``; returns a tensor or a tuple of tensors.
        reference: plain torch with the same arguments less the backend, differentiable to any order by autograd.
        make: ``make(shape, dtype, generator) -> Sample`` on the CPU; must accept 0 edges, 1 node and any width.
        operators: names of operators that `torch.library.opcheck` should see.
        smooth: False where the second derivative is zero or undefined almost everywhere (max, min, mae).
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    make: Callable[[Shape, torch.dtype, torch.Generator], Sample]
    operators: tuple[str, ...] = ()
    smooth: bool = True


@dataclass(frozen=True)
class AotKernel:
    """One specialisation of one Triton kernel, as its launcher would ask for it.

    Args:
        name: of the kernel, and of the specialisation if there are several.
        load: returns the ``@triton.jit`` function; called only when triton is there.
        signature: Triton type of each run-time argument by name, e.g. ``{"x_ptr": "*fp32", "F": "i32"}``; ``i32:16`` is a multiple of 16.
        constants: value of each ``tl.constexpr`` argument.
        num_warps: as launched.
        spill_reason: why register spills are acceptable for this specialisation, if they are.
    """

    name: str
    load: Callable[[], Any]
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    spill_reason: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def all_cases() -> Iterator[OpCase]:
    """Every op of the library."""
    for folder in OP_FOLDERS:
        yield from importlib.import_module(f"{__package__}.{folder}.cases").CASES


def all_kernels() -> Iterator[AotKernel]:
    """Every Triton kernel of the library, in every specialisation that is checked ahead of time."""
    for folder in OP_FOLDERS:
        yield from importlib.import_module(f"{__package__}.{folder}.cases").KERNELS


def random_graph(shape: Shape, generator: torch.Generator) -> CSRGraph:
    """Random directed edges with duplicates and self loops; the last two of three or more nodes are isolated."""
    busy = max(1, shape.nodes - 2) if shape.nodes else 0
    if busy == 0 and shape.edges:
        raise ValueError("a graph without nodes has no edges")
    edge_src, edge_dst = (torch.randint(max(busy, 1), (shape.edges,), generator=generator) for _ in range(2))
    return CSRGraph.from_edges(edge_src, edge_dst, shape.nodes)


def random_tensor(*size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, drawn in float64 and rounded, so that every dtype sees the same ones."""
    return torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype)
