"""An operator runs directly in eager mode and through the dispatcher when something traces or transforms: both give the same bits."""

import pytest
import torch
from fastkd_kernels import CSRGraph, backends, cfconv, projected_loss
from fastkd_kernels.registry import Shape, all_cases
from fastkd_kernels.testing import errors, sample, three_orders
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

CASES = list(all_cases())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_routes_give_the_same_bits_at_three_orders(case, monkeypatch):
    made = sample(case, Shape(6, 31, 5), torch.float32)
    found = []
    for direct in (True, False):
        monkeypatch.setattr(backends, "DIRECT", direct)
        found.append(three_orders(lambda *x: case.function(*x, *made.extra, backend="numba"), made.inputs, torch.float32))
    for ours, theirs in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_backend_chosen_for_small_input_is_right_at_three_orders(case, dtype):
    for shape in (Shape(6, 31, 5), Shape(3, 0, 3)):
        found = errors(case, shape, dtype, None)
        assert found.ok, str(found)


def test_small_input_is_left_to_torch_unless_a_backend_is_named(monkeypatch):
    small = torch.randn(4, 3)
    few, many = small.numel(), backends.PLAIN_BELOW
    assert backends.plain_is_faster(None, small, few)
    assert not backends.plain_is_faster(None, small, many)
    assert not backends.plain_is_faster("numba", small, few)
    assert not backends.plain_is_faster(None, small.half(), few)
    with Recorder():
        assert not backends.plain_is_faster(None, small, few)
    with torch.autocast("cpu", torch.bfloat16):
        assert not backends.plain_is_faster(None, small, few)
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "numba")
    assert not backends.plain_is_faster(None, small, few)


def test_autocast_leaves_the_loss_of_small_features_in_float32():
    x, weight, target = torch.randn(9, 5), torch.randn(4, 5), torch.randn(9, 4)
    want = projected_loss(x, weight, None, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ weight.T).dtype == torch.bfloat16
        torch.testing.assert_close(projected_loss(x, weight, None, target), want)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def call():
    graph = CSRGraph.from_edges(torch.tensor([0, 1]), torch.tensor([1, 0]), 2)
    return cfconv, torch.randn(2, 3), torch.randn(2, 3), graph


def test_a_dispatch_mode_sees_the_registered_operator():
    function, x, weight, graph = call()
    with Recorder() as recorder:
        function(x, weight, graph)
    assert "fastkd.cfconv.default" in recorder.names


def test_a_traced_graph_holds_the_registered_operators_of_two_orders():
    function, x, weight, graph = call()

    def forces(x, weight):
        x = x.requires_grad_()
        return torch.autograd.grad(function(x, weight, graph).square().sum(), x, create_graph=True)[0]

    traced = make_fx(forces)(x, weight)
    names = [str(node.target) for node in traced.graph.nodes]
    assert names.count("fastkd.cfconv.default") == 2
    torch.testing.assert_close(traced(x, weight), forces(x, weight))


def test_a_tensor_subclass_is_dispatched():
    class Marked(torch.Tensor):
        pass

    assert not backends.runs_directly((torch.randn(1).as_subclass(Marked),))
    assert backends.runs_directly((torch.randn(1), torch.nn.Parameter(torch.randn(1)), None, "numba", [True]))


_, _, WEIGHT, GRAPH = call()


def dual_level(x, y):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call_on(forward_ad.make_dual(x, y))).tangent


def call_on(x):
    return cfconv(x, WEIGHT, GRAPH)


TRANSFORMS = {
    "dual_level": dual_level,
    "jvp": lambda x, y: torch.func.jvp(call_on, (x,), (y,)),
    "vmap of jvp": lambda x, y: torch.func.jacfwd(call_on)(x),
    "jvp of vmap": lambda x, y: torch.func.jvp(torch.func.vmap(lambda row: call_on(x * row.sum())), (x,), (y,)),
    "jvp of a gradient": lambda x, y: torch.func.jvp(torch.func.grad(lambda x: call_on(x).sum()), (x,), (y,)),
    "grad": lambda x, y: torch.func.grad(lambda x: call_on(x).sum())(x),
}


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatched"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_derivative_that_is_missing_is_an_error(transform, direct, monkeypatch):
    monkeypatch.setattr(backends, "DIRECT", direct)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"in reverse mode alone|setup_context|Batching rule"):
        transform(torch.randn(2, 3), torch.randn(2, 3))


def test_what_carries_no_tangent_runs_within_forward_mode():
    function, x, weight, graph = call()
    with forward_ad.dual_level():
        torch.testing.assert_close(function(x, weight, graph), function(x, weight, graph, backend="reference"))
