"""What is particular to the reduction over triplets: its index, the padded form of GemNet, widths of the basis, DimeNet++, memory, mistakes."""

import os
from itertools import product

import pytest
import torch
from fastkd_kernels import CSRGraph, cfconv, cpu
from fastkd_kernels.tolerances import TOLERANCES, relative_error
from fastkd_kernels.triplet_reduce import reference
from fastkd_kernels.triplet_reduce.op import triplet_contract, triplet_reduce
from fastkd_kernels.triplet_reduce.triplets import TripletIndex
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

INTERPRETED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
each_backend = pytest.mark.parametrize("backend", ["reference", "numba", pytest.param("triton", marks=[pytest.mark.triton, INTERPRETED])])
Inputs = tuple[Tensor, Tensor]


def make(
    num_in: int = 6, num_out: int = 5, count: int = 30, basis: int = 7, width: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Inputs, TripletIndex]:
    generator = torch.Generator().manual_seed(0)
    edge_in = torch.randint(max(num_in - 1, 1), (count,), generator=generator)
    edge_out = torch.randint(max(num_out - 1, 1), (count,), generator=generator)
    edge, angular = (
        torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for size in ((num_in, width), (count, basis))
    )
    return (edge, angular), TripletIndex.from_triplets(edge_in, edge_out, num_out, num_in=num_in)


def exact(inputs: Inputs, triplets: TripletIndex) -> Tensor:
    return reference.triplet_reduce(*inputs, triplets.edge_in, triplets.edge_out, triplets.num_out)


def nested_gradients(output: Tensor, inputs: tuple[Tensor, ...], order: int) -> list[tuple[Tensor, ...]]:
    """Gradients of Σ sin(y), of Σ sin of these, and so on: each holds all derivatives of the operator up to its order."""
    found, outputs = [], (output,)
    for _ in range(order):
        outputs = torch.autograd.grad(sum(tensor.sin().sum() for tensor in outputs), inputs, create_graph=True)
        found.append(outputs)
    return found


def test_the_index_is_sorted_both_ways():
    triplets = TripletIndex.from_triplets(torch.tensor([3, 0, 3, 1]), torch.tensor([1, 1, 0, 1]), 3, num_in=5)
    assert (triplets.num_in, triplets.num_out, triplets.num_triplets) == (5, 3, 4)
    assert triplets.out_ptr.tolist() == [0, 1, 4, 4]
    assert triplets.out_order.tolist() == [2, 0, 1, 3]
    assert triplets.in_ptr.tolist() == [0, 1, 2, 2, 4, 4]
    assert triplets.in_order.tolist() == [1, 3, 0, 2]
    assert all(torch.equal(one, two) for one, two in zip(triplets.to("cpu").tensors, triplets.tensors, strict=True))
    assert all(tensor.dtype == torch.int64 for tensor in triplets.tensors)


def test_mistakes_in_the_index_are_named():
    index = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"\(3,\) torch.int64 and \(2,\)"):
        TripletIndex.from_triplets(index, index[:2], 3)
    with pytest.raises(ValueError, match=r"torch.int32"):
        TripletIndex.from_triplets(index.int(), index, 3)
    with pytest.raises(ValueError, match=r"\[0, 2\), got values from 0 to 2"):
        TripletIndex.from_triplets(index, index, 3, num_in=2)
    with pytest.raises(ValueError, match=r"\[0, 2\), got values from 0 to 2"):
        TripletIndex.from_triplets(index, index, 2, num_in=3)


@each_backend
def test_an_example_by_hand(backend):
    triplets = TripletIndex.from_triplets(torch.tensor([1, 0, 1]), torch.tensor([0, 2, 0]), 3, num_in=2)
    edge, angular = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[1.0, 0.0], [5.0, -1.0], [1.0, 2.0]])
    got = triplet_reduce(edge, angular, triplets, backend=backend)
    assert got.tolist() == [[[6, -2], [6, -2]], [[0, 0], [0, 0]], [[5, 10], [-1, -2]]]


@each_backend
@pytest.mark.parametrize("basis", [1, 7, 49])
def test_it_is_a_sum_of_outer_products(backend, basis):
    (edge, angular), triplets = make(basis=basis, width=9)
    outer = torch.stack([torch.outer(a, edge[i]) for a, i in zip(angular, triplets.edge_in.tolist(), strict=True)])
    want = torch.zeros(triplets.num_out, basis, 9, dtype=torch.float64).index_add(0, triplets.edge_out, outer)
    got = triplet_reduce(edge, angular, triplets, backend=backend)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(nested_gradients(got, (edge, angular), 2), nested_gradients(want, (edge, angular), 2))


@each_backend
def test_gemnets_padded_matrices_give_the_same(backend):
    """GemNet writes messages and basis into [E, Kmax, D] and [E, S, Kmax], and multiplies."""
    (edge, angular), triplets = make(count=41)
    edge_out = triplets.edge_out
    # the place of each triplet among those of its output edge
    place = torch.empty_like(edge_out)
    place[triplets.out_order] = torch.arange(41) - triplets.out_ptr[edge_out[triplets.out_order]]
    widest = int(place.max()) + 1
    messages = edge.new_zeros(triplets.num_out, widest, edge.shape[1]).index_put((edge_out, place), edge[triplets.edge_in])
    basis = angular.new_zeros(triplets.num_out, widest, 7).index_put((edge_out, place), angular)
    want = basis.transpose(1, 2) @ messages
    got = triplet_reduce(edge, angular, triplets, backend=backend)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(nested_gradients(got, (edge, angular), 2), nested_gradients(want, (edge, angular), 2))


@each_backend
def test_four_orders(backend):
    inputs, triplets = make(4, 3, 9, 3, 2)
    # small enough that the nested sines do not amplify rounding
    inputs = tuple((tensor.detach() / 2).requires_grad_() for tensor in inputs)
    got = nested_gradients(triplet_reduce(*inputs, triplets, backend=backend), inputs, 4)
    want = nested_gradients(exact(inputs, triplets), inputs, 4)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["numba", pytest.param("triton", marks=[pytest.mark.triton, INTERPRETED])])
@pytest.mark.parametrize(("num_in", "num_out", "count", "basis", "width"), [(2, 1, 37, 33, 3), (3, 9, 20, 7, 131), (9, 2, 70, 1, 65), (1, 1, 5, 5, 1)])  # fmt: skip
def test_sizes_beyond_a_tile(backend, num_in, num_out, count, basis, width):
    """Ragged tiles of triplets, basis and width; rows too wide for both gradients in one pass; hubs on either side."""
    inputs, triplets = make(num_in, num_out, count, basis, width)
    got, want = triplet_reduce(*inputs, triplets, backend=backend), exact(inputs, triplets)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    for mine, theirs in zip(nested_gradients(got, inputs, 2), nested_gradients(want, inputs, 2), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["numba", pytest.param("triton", marks=[pytest.mark.triton, INTERPRETED])])
@pytest.mark.parametrize("needs", [needs for needs in product([False, True], repeat=3) if any(needs)])
def test_gradients_of_the_gradient_for_any_subset_of_inputs(backend, needs):
    inputs, triplets = make(4, 3, 11, 3, 2)
    upstream = torch.randn(3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    g, x, a = (tensor.detach().requires_grad_(need) for tensor, need in zip((upstream, *inputs), needs, strict=True))
    wanted = [tensor for tensor, need in zip((g, x, a), needs, strict=True) if need]
    got = torch.ops.fastkd.triplet_gradients(g, x, a, *triplets.tensors, backend)
    index = triplets.edge_in, triplets.edge_out
    want = reference.triplet_pull(g, a, *index, triplets.num_in), reference.triplet_dot(g, x, *index)
    for part in ((0,), (1,), (0, 1)):
        losses = [sum(outputs[i].sin().sum() for i in part) for outputs in (got, want)]
        if not losses[1].requires_grad:
            continue
        results = [torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True) for loss in losses]
        torch.testing.assert_close(*results)


@each_backend
def test_dimenets_product_is_cfconv_on_edges(backend):
    """Σ_t w_t ∘ x_in, DimeNet++'s interaction, needs no operator of its own: edges are the nodes of a graph whose edges are triplets."""
    generator = torch.Generator().manual_seed(0)
    edge_in, edge_out = (torch.randint(6, (20,), generator=generator) for _ in range(2))
    edge = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    got = cfconv(edge, weight, CSRGraph.from_edges(edge_in, edge_out, 6), backend=backend)
    want = torch.zeros(6, 4, dtype=torch.float64).index_add(0, edge_out, weight * edge[edge_in])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(nested_gradients(got, (edge, weight), 2), nested_gradients(want, (edge, weight), 2))


class _Sizes(TorchDispatchMode):
    """The largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor):
                self.largest = max(self.largest, item.numel())
        return out


def test_nothing_is_larger_than_the_result():
    """At three orders: no [T, S, D], no [T, D], no padding to an output edge with far more triplets than the others."""
    (edge, angular), triplets = make(5, 9, 600, 7, 16)
    upstream = torch.randn(9, 7, 16, dtype=torch.float64, requires_grad=True)
    with _Sizes() as sizes:
        first = torch.autograd.grad(triplet_reduce(edge, angular, triplets), (edge, angular), upstream, create_graph=True)
        torch.autograd.grad(first, (edge, angular, upstream), [gradient.detach() for gradient in first])
    assert sizes.largest == max(9 * 7 * 16, 600 * 7)


@pytest.mark.parametrize("order", range(3))
def test_long_sums_of_float32(order):
    """One output edge and one input edge of thousands of triplets each."""
    generator = torch.Generator().manual_seed(3)
    hub, rest = torch.zeros(6_000, dtype=torch.int64), torch.randint(40, (6_000,), generator=generator)
    triplets = TripletIndex.from_triplets(torch.cat([hub, rest]), torch.cat([rest, hub]), 40)
    shapes = (40, 5), (12_000, 7), (40, 7, 5)
    singles = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    doubles = [tensor.detach().double().requires_grad_() for tensor in singles]
    found = []
    for function, (x, a, g) in (
        (lambda *t: triplet_reduce(*t, triplets, backend="numba"), singles),
        (lambda *t: exact(t, triplets), doubles),
    ):
        outputs = [function(x, a)]
        if order:
            outputs = torch.autograd.grad(outputs, (x, a), g, create_graph=True)
        if order == 2:
            outputs = torch.autograd.grad(outputs, (x, a, g), [tensor.detach().to(g.dtype) for tensor in singles[:2]])
        found.append(outputs)
    limit = TOLERANCES[torch.float32].by_order[order]
    assert max(relative_error(got, want) for got, want in zip(*found, strict=True)) < limit


@pytest.mark.slow
def test_same_bits_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(cpu, "THREADED_WORK", 0)
    inputs, triplets = make(60, 50, 3_000, 7, 33, torch.float32)
    before, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(nested_gradients(triplet_reduce(*inputs, triplets, backend="numba"), inputs, 2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for pair in zip(*runs, strict=True) for one, two in zip(*pair, strict=True))


@each_backend
def test_nothing_to_sum(backend):
    for num_in, num_out, count, basis, width in ((3, 2, 0, 7, 4), (3, 2, 5, 0, 4), (3, 2, 5, 7, 0), (0, 3, 0, 7, 4), (3, 0, 0, 7, 4)):
        index = torch.zeros(count, dtype=torch.int64)
        triplets = TripletIndex.from_triplets(index, index, num_out, num_in=num_in)
        edge, angular = torch.ones(num_in, width, requires_grad=True), torch.ones(count, basis, requires_grad=True)
        total = triplet_reduce(edge, angular, triplets, backend=backend)
        assert torch.equal(total, torch.zeros(num_out, basis, width))
        by_edge, by_angular = torch.autograd.grad(total.sum(), (edge, angular), create_graph=True)
        assert torch.equal(by_edge, torch.zeros(num_in, width))
        assert torch.equal(by_angular, torch.zeros(count, basis))
        # one gradient alone takes another way
        for tensor in (edge, angular):
            (alone,) = torch.autograd.grad(triplet_reduce(edge, angular, triplets, backend=backend).sum(), tensor)
            assert torch.equal(alone, torch.zeros_like(tensor))


def test_mistakes_are_named():
    (edge, angular), triplets = make()
    with pytest.raises(ValueError, match=r"edge \[6, D\] and angular \[30, S\].*got edge \[5, 4\]"):
        triplet_reduce(edge[1:], angular, triplets)
    with pytest.raises(ValueError, match=r"angular \[29, 7\]"):
        triplet_reduce(edge, angular[1:], triplets)
    with pytest.raises(ValueError, match=r"angular \[30\]"):
        triplet_reduce(edge, angular[:, 0], triplets)
    with pytest.raises(ValueError, match=r"torch.float32"):
        triplet_reduce(edge, angular.float(), triplets)
    with pytest.raises(ValueError, match=r"torch.int64"):
        triplet_reduce(edge.detach().long(), angular.detach().long(), triplets)


@each_backend
def test_contraction_makes_dimenet_pps_basis_superfluous(backend):
    """Σ_t (R_in W)∘Y_t ∘ x_in with everything made per triplet, as in the reference, against rows of the input edges."""
    (edge, angular), triplets = make(width=5)
    generator = torch.Generator().manual_seed(1)
    radial = torch.randn(6, 7, 3, dtype=torch.float64, generator=generator)
    weight = torch.randn(5, 7, 3, dtype=torch.float64, generator=generator).requires_grad_()
    filters = torch.einsum("tln,tl,dln->td", radial[triplets.edge_in], angular, weight)
    want = edge.new_zeros(5, 5).index_add(0, triplets.edge_out, filters * edge[triplets.edge_in])
    rows = torch.einsum("eln,dln->eld", radial, weight) * edge[:, None]
    got = triplet_contract(rows, angular, triplets, backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    inputs = (edge, angular, weight)
    for ours, theirs in zip(nested_gradients(got, inputs, 2), nested_gradients(want, inputs, 2), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_mistakes_of_a_contraction_are_named():
    (_, angular), triplets = make()
    rows = torch.randn(6, 7, 4, dtype=torch.float64)
    for edge, basis, message in (
        (rows[:5], angular, r"edge \[6, S, D\] and angular \[30, S\].*got edge \[5, 7, 4\]"),
        (rows[:, :3], angular, r"edge \[6, 3, 4\].*angular \[30, 7\]"),
        (rows[:, :, 0], angular, r"got edge \[6, 7\]"),
        (rows.float(), angular, r"torch\.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            triplet_contract(edge, basis, triplets)
