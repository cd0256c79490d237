"""What is measured: ops, their input, and the three modes.

An op is a case of `fastkd_kernels.registry`: its function, its plain-torch reference and its random input are those of the tests. A new
op is measured as soon as its folder has a ``cases.py``; one line in `OPS` chooses shapes, and says by which inputs forces flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastkd_kernels import CSRGraph
from fastkd_kernels.registry import OpCase, all_cases
from fastkd_kernels.testing import sample
from torch import Tensor

from bench.kernels.floors import Size, floor_bytes
from bench.kernels.shapes import BenchShape, make_graph

MODES = ("forward", "force", "force_training")
Extra = tuple[Any, ...]


def _same_graph(extra: Extra, graph: CSRGraph) -> Extra:
    return tuple(graph if isinstance(item, CSRGraph) else item for item in extra)


def _as_ptr(extra: Extra, graph: CSRGraph) -> Extra:
    return (graph.edge_ptr, *extra[1:])


def _as_index(extra: Extra, graph: CSRGraph) -> Extra:
    return (graph.edge_dst, *extra[1:])


@dataclass(frozen=True)
class BenchOp:
    """How an op is measured.

    Args:
        name: of its case in the registry; of several ``name[…]`` the first.
        shapes: names of `shapes.SHAPES`; the first that fits the device is the one on which torch.compile is timed as well.
        regraph: puts the graph of a shape into the arguments of the case; without it the case's own random graph stays.
        leaves: numbers of the inputs that require grad; all if None.
        first: numbers of the inputs by which the first gradient is taken, that is, those that depend on positions; all leaves if None.
        quick: also on the middle size in the quick set.
    """

    name: str
    shapes: tuple[str, ...]
    regraph: Callable[[Extra, CSRGraph], Extra] | None = None
    leaves: tuple[int, ...] | None = None
    first: tuple[int, ...] | None = None
    quick: bool = False


_EDGES = ("md", "gate", "small", "qm9", "oc20", "skewed", "giant", "skewed_large", "giant_large")
_REDUCE = ("md", "gate", "small", "giant", "giant_large")
_NODES = ("oc20", "qm9", "small")

#: In the order of their weight: a run that is cut short has measured what matters most.
OPS: tuple[BenchOp, ...] = (
    BenchOp("cfconv", _EDGES, _same_graph, quick=True),
    BenchOp("painn_message", _EDGES, _same_graph, quick=True),
    BenchOp("edge_to_node_both", _EDGES, _same_graph, quick=True),
    BenchOp("radial_conv", _EDGES, _same_graph, first=(0, 1)),
    BenchOp("painn_radial", _EDGES, _same_graph, first=(0, 1, 2)),
    BenchOp("cfconv_exact", _EDGES, _same_graph, first=(0, 1)),
    BenchOp("painn_exact", _EDGES, _same_graph, first=(0, 1, 2)),
    BenchOp("linear_cka", ("cka", "nodes", "small")),
    BenchOp("gated_edge_to_node", ("oc20", "gate", "small"), _same_graph),
    BenchOp("triplet_reduce", ("md", "qm9", "small")),
    BenchOp("edge_to_node_loss", ("oc20", "gate", "small"), _same_graph),
    BenchOp("paired_cfconv", ("md", "gate", "small", "qm9")),
    BenchOp("projected_loss[mse]", _NODES, leaves=(0, 1, 2)),
    BenchOp("vector_loss[mse]", _NODES, leaves=(0, 1)),
    BenchOp("segment_reduce[sum]", _REDUCE, _as_ptr),
    BenchOp("scatter_reduce[sum]", _REDUCE, _as_index),
    BenchOp("segment_reduce[max]", ("md", "gate", "small"), _as_ptr),
    BenchOp("edge_to_node", ("md", "gate", "small"), _same_graph),
    BenchOp("edge_to_node_vector", ("md", "gate", "small"), _same_graph),
)
_DEFAULT_SHAPES = ("qm9", "small")


def find_ops(only: Sequence[str] = ()) -> Iterator[tuple[BenchOp, OpCase | None]]:
    """Ops to measure, those of `OPS` first; without a case where this version does not have the op.

    Args:
        only: whole names, or parts of names. Without it, the cases that `OPS` does not name are left out where a sibling
            (``name[…]``) of theirs is named.
    """
    cases = {case.name: case for case in all_cases()}
    named = [op.name for op in OPS]
    families = {name.split("[")[0] for name in named}
    others = [name for name in cases if name not in named and (only or name.split("[")[0] not in families)]
    everything = {*named, *others}

    def wanted(name: str) -> bool:
        return not only or any(part == name or (part in name and part not in everything) for part in only)

    for op in OPS:
        if wanted(op.name):
            yield op, next((case for name, case in cases.items() if name == op.name or name.startswith(f"{op.name}[")), None)
    for name in others:
        if wanted(name):
            yield BenchOp(name, _DEFAULT_SHAPES), cases[name]


@dataclass(frozen=True, eq=False)
class Problem:
    """One op on one shape, with everything that a step of any mode needs."""

    op: BenchOp
    case: OpCase
    shape: BenchShape
    graph: CSRGraph | None
    inputs: tuple[Tensor, ...]
    extra: Extra
    cotangents: tuple[Tensor, ...]  #: one per output
    tangents: tuple[Tensor, ...]  #: one per first gradient

    @property
    def leaves(self) -> tuple[int, ...]:
        return self.op.leaves or tuple(range(len(self.inputs)))

    @property
    def first(self) -> tuple[int, ...]:
        return self.op.first or self.leaves

    def floor(self, mode: str) -> int:
        """Least bytes of a mode."""
        size = self.shape.size
        name = self.op.name
        return floor_bytes(
            name, Size(size.nodes, size.edges, size.width, self.inputs[0].element_size()), mode, self.inputs, self.cotangents
        )

    def step(self, function: Callable[..., Any], mode: str) -> tuple[Tensor | None, ...]:
        """Outputs, and by mode their first and second gradients, by a function of the inputs alone."""
        return step(function, self.inputs, self.cotangents, self.tangents, self.leaves, self.first, mode)


def step(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    tangents: Sequence[Tensor],
    leaves: Sequence[int],
    first: Sequence[int],
    mode: str,
) -> tuple[Tensor | None, ...]:
    """``forward``: y. ``force``: and the gradient of ⟨cotangent, y⟩. ``force_training``: and the gradient of ⟨tangent, gradient⟩.

    Cotangents and tangents are given numbers, so that no provider spends time on a loss.
    """
    if mode == "forward":
        with torch.no_grad():
            return _tuple(function(*inputs))
    outputs = _tuple(function(*inputs))
    training = mode == "force_training"
    gradients = torch.autograd.grad(outputs, [inputs[i] for i in first], list(cotangents), create_graph=training, allow_unused=True)
    if not training:
        return *outputs, *gradients
    pairs = [(g, t) for g, t in zip(gradients, tangents, strict=True) if g is not None and g.requires_grad]
    by = [*(inputs[i] for i in leaves), *cotangents]
    if not pairs:
        return *outputs, *gradients, *(None for _ in by)
    seconds = torch.autograd.grad([g for g, _ in pairs], by, [t for _, t in pairs], allow_unused=True)
    return *outputs, *gradients, *seconds


def make_problem(op: BenchOp, case: OpCase, shape: BenchShape, dtype: torch.dtype, device: torch.device, seed: int) -> Problem:
    """Random input on the device; the numbers differ between devices, the sizes do not."""
    made = _sample(case, shape, dtype, device, seed)
    graph = None
    extra = made.extra
    if op.regraph is not None:
        graph = make_graph(shape, seed, device)
        extra = op.regraph(extra, graph)
    inputs = tuple(tensor.detach() for tensor in made.inputs)
    with torch.no_grad():
        outputs = _tuple(case.reference(*inputs, *extra))
    generator = torch.Generator(device).manual_seed(seed + 1)
    cotangents = tuple(_like(output, generator) for output in outputs)
    bare = Problem(op, case, shape, graph, inputs, extra, cotangents, ())
    for number, tensor in enumerate(inputs):
        tensor.requires_grad_(number in bare.leaves)
    for tensor in cotangents:
        tensor.requires_grad_()
    return replace(bare, tangents=tuple(_like(inputs[i], generator) for i in bare.first))


def _sample(case: OpCase, shape: BenchShape, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    if device.type == "cpu":
        return sample(case, shape.size, dtype, seed)
    try:
        # a factory without a device makes its tensors where this context says: a million edges are drawn in a moment
        with torch.device(device):
            return case.make(shape.size, dtype, torch.Generator(device).manual_seed(seed))
    except (RuntimeError, TypeError, ValueError):
        # a case that insists on the CPU for some of its tensors
        return sample(case, shape.size, dtype, seed, device)


def _like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, dtype=tensor.dtype, device=tensor.device, generator=generator)


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
