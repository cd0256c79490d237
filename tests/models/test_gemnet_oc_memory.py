"""Parts that are computed again in backward: the same derivatives at every order, and less that is kept."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastkd.models.gemnet_oc import GemNetOC, bases, memory
from fastkd.models.gemnet_oc.memory import forgetting, recomputed

from .structures import GEMNET, batch_of, random_molecule


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def body(a: Tensor, b: Tensor) -> Tensor:
    return torch.sin(a) * b + a.square() @ torch.ones(3, 3, dtype=a.dtype)


@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_to_third_order(weighted):
    *tensors, weight = inputs((4, 3), (4, 3), (2, 3))
    wanted = [*tensors, weight] if weighted else tensors

    def value(again: bool) -> Tensor:
        if again:
            return recomputed(body, *tensors, weight=weight if weighted else None)
        return functional.linear(body(*tensors), weight) if weighted else body(*tensors)

    found = []
    for again in (False, True):
        total, orders = value(again).pow(3).sum(), []
        for _ in range(3):
            grads = torch.autograd.grad(total, wanted, create_graph=True)
            orders += grads
            total = sum(g.square().sum() for g in grads)
        found.append(orders)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def test_nothing_but_the_arguments_is_kept():
    made = []

    def wide(a: Tensor) -> Tensor:
        outer = a.exp()[:, :, None] * a[:, None, :]
        made.append(weakref.ref(outer))
        return outer.flatten(1)

    (a, weight) = inputs((4, 3), (2, 9))
    y = recomputed(wide, a, weight=weight)
    gc.collect()
    assert made[0]() is None
    (force,) = torch.autograd.grad(y.square().sum(), a, create_graph=True)
    gc.collect()
    assert all(reference() is None for reference in made)
    force.square().sum().backward()
    assert weight.grad is not None


def test_gradients_nobody_asks_for_are_left_out(monkeypatch):
    a, b, weight = inputs((4, 3), (4, 3), (2, 3))
    y, asked, original = recomputed(body, a * 1, b, weight=weight), [], memory.through_reference
    monkeypatch.setattr(memory, "through_reference", lambda f, t, c, needs: asked.append(needs) or original(f, t, c, needs))
    torch.autograd.grad(y.sum(), a)
    assert asked == [[True, False]]


def test_without_gradients_the_body_is_called_once():
    calls = []
    (a,) = inputs((4, 3))
    with torch.no_grad():
        recomputed(lambda x: calls.append(1) or x.exp(), a)
    assert len(calls) == 1


def test_a_forgotten_value_is_freed_and_made_again():
    x, weight = inputs((5, 4), (3, 4))
    results = []
    for forget in (False, True):
        y = x * 1.5
        z, kept = functional.silu(y), y.detach()
        reference = weakref.ref(z)
        if forget:
            with forgetting(z, lambda kept=kept: functional.silu(kept)):
                out = functional.linear(z, weight)
        else:
            out = functional.linear(z, weight)
        del z
        assert (reference() is None) == forget
        grads = torch.autograd.grad(out.pow(3).sum(), (x, weight), create_graph=True)
        results.append([*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), (x, weight))])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_a_model_keeps_no_sums_over_triplets(forces):
    # sizes of which no two products are alike
    options = replace(GEMNET, forces=forces, triplet_in=5, circular_width=7, spherical_width=11, quad_in=13, spherical=4)
    model, batch = GemNetOC(options).double().train(), batch_of(random_molecule(12, 1))
    batch.positions.requires_grad_()
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        prediction = model(batch, forces=forces == "direct")
    graph = prediction.features.edge_graph
    assert graph is not None
    # matrices of weights have fewer rows
    assert graph.csr.num_edges > max(options.edge_width, options.width)
    widths = {shape[1:].numel() for shape in kept if len(shape) > 1 and shape[0] == graph.csr.num_edges}
    assert {5, 7 * 4, 13} <= widths  # messages and weights of bases
    assert not widths & {5 * 4, 7 * 5, 13 * 4, 13 * 4 * 4, 11 * 13}


@pytest.mark.parametrize("angular", ["legendre_outer", "spherical_harmonics", "smooth_harmonics"])
def test_predictions_do_a_few_edges_at_a_time(angular, monkeypatch):
    options = replace(GEMNET, angular=angular, forces="direct")
    torch.manual_seed(0)
    model, batch = GemNetOC(options).double().eval(), batch_of(random_molecule(12, 1), random_molecule(7, 2))
    cuts, original = [], bases._into
    monkeypatch.setattr(bases, "_into", lambda index, first, last: cuts.append(last - first) or original(index, first, last))
    found = []
    for at_once in (10**6, 7):
        monkeypatch.setattr(bases, "EDGES_AT_ONCE", at_once)
        with torch.no_grad():
            found.append(model(batch))
        assert bool(cuts) == (at_once == 7)
    edges = found[0].features.edge_graph.csr.num_edges
    assert cuts[0] == 7 < edges
    assert edges % 7
    # where autograd records, the values are the same
    for other in (found[1], model(batch)):
        torch.testing.assert_close(other.energy, found[0].energy, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(other.forces, found[0].forces, rtol=1e-12, atol=1e-13)
