"""Every public op under torch.compile and make_fx: one graph without breaks, no new graph for new sizes, right at two orders.

torch.compile cannot differentiate twice. Training on forces compiles the graph that `make_fx` traced of energy, forces and the
gradient of their loss, so that graph is what is tested here at second order.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

import pytest
import torch
import torch._dynamo
from fastkd_kernels.namespace import NAMESPACE
from fastkd_kernels.registry import OpCase, Sample, Shape, all_cases
from fastkd_kernels.testing import sample
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

CASES = list(all_cases())
#: One case for each set of operators; the others are variants, and slow.
FIRST = [next(other for other in CASES if other.operators == case.operators) is case for case in CASES]
each_op = pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[] if first else [pytest.mark.slow]) for c, first in zip(CASES, FIRST, strict=True)]
)
#: Sizes that differ from each other, also when halved or doubled, and from small constants: torch takes equal sizes for one.
NODES, EDGES, WIDTH = 19, (58, 74, 106, 142), 11
ONE, OTHER = Shape(NODES, EDGES[0], WIDTH), Shape(NODES + 10, EDGES[1], WIDTH)
BACKEND = "numba"


def flatten(extra: tuple[Any, ...]) -> tuple[list[Tensor], Callable[[list[Tensor]], tuple[Any, ...]]]:
    """The tensors in the arguments of an op, those of graphs too, and how to put others in their place."""
    tensors: list[Tensor] = []

    def collect(item: Any) -> None:
        if isinstance(item, Tensor):
            tensors.append(item)
        elif is_dataclass(item):
            for field in arguments_of(item):
                collect(getattr(item, field.name))

    def rebuilt(item: Any, rest: Iterator[Tensor]) -> Any:
        if isinstance(item, Tensor):
            return next(rest)
        return type(item)(*(rebuilt(getattr(item, field.name), rest) for field in arguments_of(item))) if is_dataclass(item) else item

    def arguments_of(item: Any) -> list[Field[Any]]:
        # what a dataclass makes itself is not given to it
        return [field for field in fields(item) if field.init]

    def rebuild(others: list[Tensor]) -> tuple[Any, ...]:
        rest = iter(others)
        return tuple(rebuilt(item, rest) for item in extra)

    for item in extra:
        collect(item)
    return tensors, rebuild


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def training_step(case: OpCase, inputs: list[Tensor], extra: tuple[Any, ...]) -> list[Tensor]:
    """Energy, its gradient by every input, and the gradient of the sum of squares of that."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = as_tuple(case.function(*inputs, *extra, backend=BACKEND))
    energy = sum(output.square().sum() for output in outputs)
    first = torch.autograd.grad(energy, inputs, create_graph=True)
    loss = sum(gradient.square().sum() for gradient in first)
    return [energy, *first, *torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)]


def assert_same(ours: Any, eager: Any) -> None:
    for got, want in zip(ours, eager, strict=True):
        torch.testing.assert_close(got, want)


def gradients(outputs: Any, made: Sample) -> list[Tensor]:
    outputs = as_tuple(outputs)
    return [*outputs, *torch.autograd.grad(sum(output.square().sum() for output in outputs), made.inputs)]


def check_compiled(function: Callable[..., Any], samples: list[Sample], *, dynamic: bool | None, most_graphs: int) -> None:
    """Forward and backward of one compiled function on several sizes; torch raises where it would make another graph, or break one."""
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", dynamic=dynamic, fullgraph=True)
    # counting what a backend is given would count twice where torch starts over, as it does for arguments that are plain floats
    with torch._dynamo.config.patch(recompile_limit=most_graphs, error_on_recompile=most_graphs == 1):
        for made in samples:
            assert_same(gradients(compiled(made.inputs, made.extra), made), gradients(function(made.inputs, made.extra), made))


def on_one_backend(case: OpCase) -> Callable[[Any, Any], Any]:
    return lambda inputs, extra: case.function(*inputs, *extra, backend=BACKEND)


@each_op
def test_one_graph_for_all_sizes(case: OpCase) -> None:
    # the number of nodes is a plain number for some ops, so the edges alone vary
    samples = [sample(case, Shape(NODES, edges, WIDTH), torch.float64) for edges in EDGES]
    check_compiled(on_one_backend(case), samples, dynamic=True, most_graphs=1)


@each_op
def test_one_more_graph_at_most_when_sizes_turn_out_to_vary(case: OpCase) -> None:
    """Without ``dynamic`` torch assumes fixed sizes first, and sizes that vary from the second on."""
    samples = [sample(case, Shape(NODES + 10 * number, edges, WIDTH), torch.float64) for number, edges in enumerate(EDGES)]
    check_compiled(on_one_backend(case), samples, dynamic=None, most_graphs=2)


@pytest.mark.parametrize("most_graphs", [1, 2])
def test_another_graph_would_be_noticed(most_graphs: int) -> None:
    case = next(case for case in CASES if case.name == "cfconv")
    samples = [sample(case, Shape(NODES, edges, WIDTH), torch.float64) for edges in EDGES]
    with pytest.raises((torch._dynamo.exc.RecompileError, torch._dynamo.exc.FailOnRecompileLimitHit)):
        check_compiled(on_one_backend(case), samples, dynamic=False, most_graphs=most_graphs)


#: Operators that no case names, because the tests of their folder run `torch.library.opcheck` themselves.
CHECKED_IN_THEIR_FOLDER: frozenset[str] = frozenset(
    {"edge_to_node_rows", "edge_to_node_rows_backward", "radial_conv_double_backward", "radial_place"}
)


def test_every_registered_operator_is_given_to_opcheck() -> None:
    """`test_all_ops.test_registration` runs all checks of `torch.library.opcheck` on the operators that cases name."""
    registered = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"{NAMESPACE}::")}
    named = {name for case in CASES for name in case.operators}
    assert registered - CHECKED_IN_THEIR_FOLDER == named, "add the operator to `operators` of a case"


@each_op
def test_a_traced_training_step_runs_on_other_sizes(case: OpCase) -> None:
    made, other = (sample(case, shape, torch.float64, seed=seed) for seed, shape in enumerate((ONE, OTHER)))
    fixed = any(isinstance(item, int) for item in made.extra)
    if fixed:
        # a number in the arguments belongs to the graph that was traced: the nodes stay
        other = sample(case, Shape(ONE.nodes, OTHER.edges, ONE.width), torch.float64, seed=1)
    tensors, rebuild = flatten(made.extra)

    def step(inputs: list[Tensor], graph: list[Tensor]) -> list[Tensor]:
        return training_step(case, inputs, rebuild(graph))

    traced = make_fx(step, tracing_mode="symbolic")(list(made.inputs), tensors)
    targets = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert any(target.startswith(f"{NAMESPACE}.") for target in targets), "the registered operators are in the graph"
    for one in (made, other):
        detached = [tensor.detach() for tensor in one.inputs]
        assert_same(traced(detached, flatten(one.extra)[0]), training_step(case, detached, one.extra))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor uses what torch deprecates
@pytest.mark.parametrize("name", ["cfconv", "edge_to_node_both"])
def test_inductor(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    made, other = (sample(case, Shape(NODES, edges, WIDTH), torch.float64) for edges in EDGES[:2])
    torch._dynamo.reset()
    compiled = torch.compile(on_one_backend(case), dynamic=True, fullgraph=True)
    for one in (made, other):
        eager = case.function(*one.inputs, *one.extra, backend=BACKEND)
        assert_same(gradients(compiled(one.inputs, one.extra), one), gradients(eager, one))
    tensors, rebuild = flatten(made.extra)
    detached = [tensor.detach() for tensor in made.inputs]
    traced = make_fx(lambda inputs, graph: training_step(case, inputs, rebuild(graph)), tracing_mode="symbolic")(detached, tensors)
    with torch.no_grad():
        whole = torch.compile(traced, dynamic=True)
        for one in (made, other):
            inputs = [tensor.detach() for tensor in one.inputs]
            with torch.enable_grad():
                want = training_step(case, inputs, one.extra)
            assert_same(whole(inputs, flatten(one.extra)[0]), want)
