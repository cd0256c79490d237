"""triplet_filter: values and gradients of force training against plain torch, absent cotangents, settled inputs, refusals."""

import pytest
import torch
from fastkd_kernels import backends
from fastkd_kernels.registry import Shape
from fastkd_kernels.triplet_filter import cases, reference
from fastkd_kernels.triplet_filter.op import triplet_filter

SHAPES = [Shape(7, 23, 5), Shape(1, 0, 3), Shape(12, 61, 1), Shape(150, 700, 33)]


def sample(shape, dtype=torch.float64):
    made = cases._sample(shape, dtype, torch.Generator().manual_seed(3))
    return [tensor.requires_grad_() for tensor in made.inputs], made.extra[0]


def specification(inputs, triplets):
    return reference.triplet_filter(*inputs, reference.plain_sums(*triplets.tensors))


def force_training(function, inputs, of, by):
    """Gradients by ``of`` of a sum, and those by ``by`` of a combination of these: what training on forces takes."""
    generator = torch.Generator().manual_seed(5)

    def draw(like):
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    value = function(inputs)
    first = torch.autograd.grad(value, [inputs[i] for i in of], draw(value).requires_grad_(), create_graph=True)
    total = (value * draw(value)).sum() + sum((grad * draw(grad)).sum() for grad in first)
    second = torch.autograd.grad(total, [inputs[i] for i in by], create_graph=True)
    third = torch.autograd.grad(sum((grad * draw(grad)).sum() for grad in second), inputs, allow_unused=True)
    return [value, *first, *second, *third]


def assert_same(got, want):
    """Equal up to rounding; a gradient that does not exist is zero."""
    for left, right in zip(got, want, strict=True):
        if left is None or right is None:
            assert left is None or not left.any()
            assert right is None or not right.any()
        else:
            torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("of", [(0, 1, 3), (0,), (1,), (3,), (0, 1), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_on_gradients(shape, of, backend):
    inputs, triplets = sample(shape)
    got = force_training(lambda t: triplet_filter(*t, triplets, backend=backend), inputs, of, (0, 1, 2, 3))
    want = force_training(lambda t: specification(t, triplets), inputs, of, (0, 1, 2, 3))
    assert_same(got, want)


@pytest.mark.parametrize("by", [(0,), (2,), (3,)], ids=str)
def test_parts_of_the_second_gradient(by):
    inputs, triplets = sample(SHAPES[0])
    got = force_training(lambda t: triplet_filter(*t, triplets, backend="numba"), inputs, (0, 1, 3), by)
    want = force_training(lambda t: specification(t, triplets), inputs, (0, 1, 3), by)
    assert_same(got, want)


def test_numerical_derivatives():
    inputs, triplets = sample(Shape(4, 9, 3))
    assert torch.autograd.gradcheck(lambda *t: triplet_filter(*t, triplets, backend="numba"), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: triplet_filter(*t, triplets, backend="numba"), inputs)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_absent_gradients_are_not_computed(backend, monkeypatch):
    inputs, triplets = sample(Shape(20, 60, 8))
    seen = []
    name = "gradients"
    module = reference if backend == "reference" else __import__("fastkd_kernels.triplet_filter.numba_launch", fromlist=[name])
    plain = getattr(module, name)

    def spy(*args, **flags):
        seen.append((flags["by_w"], flags["by_a"]) if flags else args[-2:])
        return plain(*args, **flags)

    monkeypatch.setattr(module, name, spy)
    # as in a force pass, autograd says that the weight needs a gradient, and the engine throws it away
    edge, radial, weight, angular = inputs
    total = triplet_filter(2 * edge, 2 * radial, 2 * weight, 2 * angular, triplets, backend=backend).sum()
    torch.autograd.grad(total, [edge], retain_graph=True)
    torch.autograd.grad(total, [edge, angular])
    assert seen == [(False, False), (False, True)]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.leaf = x
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return None if g is None else 2 * g


def test_a_leaf_that_asks_no_more_gets_nothing():
    (edge, radial, weight, angular), triplets = sample(Shape(20, 60, 8))
    total = triplet_filter(edge, radial, weight, Doubled.apply(angular), triplets, backend="numba").sum()
    (by_angular,) = torch.autograd.grad(total, angular, retain_graph=True)
    assert by_angular.any()
    angular.requires_grad_(False)
    total.backward()
    assert angular.grad is None
    (want,) = torch.autograd.grad(triplet_filter(edge, radial, weight, 2 * angular, triplets, backend="numba").sum(), edge)
    assert torch.equal(edge.grad, want)


def test_threads_change_no_bit():
    inputs, triplets = sample(Shape(900, 9000, 64), torch.float32)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(force_training(lambda t: triplet_filter(*t, triplets, backend="numba"), inputs, (0, 1, 3), (0, 1, 2, 3))[:8])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(left, right) for left, right in zip(*runs, strict=True))


def test_what_does_not_fit_is_named():
    (edge, radial, weight, angular), triplets = sample(Shape(7, 23, 6))
    for wrong in (
        (edge[1:], radial, weight, angular),
        (edge, radial[:, 1:], weight, angular),
        (edge, radial, weight.T, angular),
        (edge, radial, weight, angular[1:]),
        (edge.float(), radial, weight, angular),
        tuple(tensor.long() for tensor in (edge, radial, weight, angular)),
    ):
        with pytest.raises(ValueError, match="triplet_filter needs edge"):
            triplet_filter(*wrong, triplets)
    with pytest.raises(ValueError, match="unknown backend"):
        triplet_filter(edge, radial, weight, angular, triplets, backend="fortran")


def test_direct_route_is_the_registered_operator(monkeypatch):
    inputs, triplets = sample(Shape(9, 30, 4))
    runs = []
    for direct in (True, False):
        monkeypatch.setattr(backends, "DIRECT", direct)
        runs.append(force_training(lambda t: triplet_filter(*t, triplets, backend="numba"), inputs, (0, 1, 3), (0, 1, 2, 3))[:8])
    assert all(torch.equal(left, right) for left, right in zip(*runs, strict=True))
