"""CKA against its definition with Gram matrices, its invariances, and intervals against a bootstrap done the long way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fastkd.analysis.cka import BatchSums, Layer, LayerSums, Similarity, hsic_1, hsic_vector, normalised


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """The specification: HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with centred n × n Gram matrices."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = (centre @ (z @ z.T) @ centre for z in (x, y))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def gram_hsic_1(x: np.ndarray, y: np.ndarray) -> float:
    """Nguyen et al. 2021, eq. 3, written with Gram matrices."""
    n = len(x)
    # long doubles: Gram matrices of features far from zero lose many digits
    k, m = (z.astype(np.longdouble) @ z.astype(np.longdouble).T for z in (x, y))
    for gram in (k, m):
        np.fill_diagonal(gram, 0)
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ m) + middle - np.longdouble(2) / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


@pytest.fixture
def layers() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(60, 5, generator=generator, dtype=torch.float64) + 3.0
    second = first @ torch.randn(5, 7, generator=generator, dtype=torch.float64) + torch.randn(60, 7, generator=generator)
    return [first, second, torch.randn(60, 3, generator=generator, dtype=torch.float64) - 100.0]


def streamed(layers: list[torch.Tensor], sizes: list[int], *, centred: bool = True) -> LayerSums:
    sums = LayerSums([layer.shape[-1] for layer in layers], centred=centred)
    for parts in zip(*(layer.split(sizes) for layer in layers), strict=True):
        sums.add(parts)
    return sums


@pytest.mark.parametrize("sizes", [[60], [1, 10, 49], [20, 20, 20]])
def test_full_is_the_specification_however_it_is_streamed(layers, sizes):
    value = streamed(layers, sizes).cka()
    for i, j in itertools.product(range(3), repeat=2):
        assert value[i, j] == pytest.approx(gram_cka(layers[i].numpy(), layers[j].numpy()), rel=1e-11)
    np.testing.assert_array_equal(value, value.T)
    assert np.diag(value) == pytest.approx(1.0, rel=1e-14)


def test_full_is_the_kernel(layers):
    from fastkd_kernels import linear_cka

    value = streamed(layers, [13, 47]).cka()
    assert value[0, 1] == pytest.approx(float(linear_cka(layers[0], layers[1])), rel=1e-10)


def test_rotations_and_scales_do_not_matter(layers):
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    for sums in (streamed([layers[0], 7 * layers[0] @ turn - 2], [30, 30]), _minibatch([[layers[0], 7 * layers[0] @ turn - 2]])):
        assert sums.cka() == pytest.approx(1.0, rel=1e-11)


def _minibatch(batches: list[list[torch.Tensor]], *, centred: bool = True) -> BatchSums:
    sums = BatchSums(centred=centred)
    for batch in batches:
        sums.add(batch)
    return sums


def test_hsic_1_is_its_formula_with_gram_matrices(layers):
    value = hsic_1(layers)
    for i, j in itertools.product(range(3), repeat=2):
        assert float(value[i, j]) == pytest.approx(gram_hsic_1(layers[i].numpy(), layers[j].numpy()), rel=1e-8)


def test_hsic_1_is_unbiased_where_the_full_estimate_is_not():
    """Independent features with more channels than a batch has rows: the full estimate says they are alike."""
    rng = np.random.default_rng(0)
    batches = [[torch.from_numpy(rng.normal(size=(10, 30))) for _ in range(2)] for _ in range(400)]
    alone = np.mean([streamed(batch, [10]).cka()[0, 1] for batch in batches])
    assert alone > 0.6
    mean = _minibatch(batches)
    assert abs(mean.cka()[0, 1]) < 0.01
    low, high, units = mean.interval(500, 0)
    assert units == 400
    assert low[0, 1] < 0 < high[0, 1]


def test_minibatch_follows_nguyen_over_batches(layers):
    batches = [[layer[start : start + 20] for layer in layers] for start in (0, 20, 40)]
    mean = np.mean([[[gram_hsic_1(x.numpy(), y.numpy()) for y in batch] for x in batch] for batch in batches], axis=0)
    np.testing.assert_allclose(_minibatch(batches).cka(), normalised(mean), rtol=1e-8)


def test_vectors_leave_out_pairs_of_an_atom_with_itself():
    generator = torch.Generator().manual_seed(3)
    v, w = (torch.randn(12, 3, width, generator=generator, dtype=torch.float64) for width in (4, 6))
    explicit = 0.0
    for a, b in itertools.permutations(range(12), 2):
        explicit += float(((v[a].T @ w[a]) * (v[b].T @ w[b])).sum())
    assert float(hsic_vector([v, w])[0, 1]) == pytest.approx(explicit / (12 * 11), rel=1e-11)


@pytest.mark.parametrize("full", [True, False])
def test_vectors_may_turn(full):
    """Each atom's vectors turned by a rotation of its own, the same in both models: nothing changes."""
    generator = torch.Generator().manual_seed(4)
    v = torch.randn(40, 3, 4, generator=generator, dtype=torch.float64)
    w = v @ torch.randn(4, 6, generator=generator, dtype=torch.float64) + torch.randn(40, 3, 6, generator=generator)
    turns = torch.linalg.qr(torch.randn(40, 3, 3, generator=generator, dtype=torch.float64)).Q
    pairs = ([v, w], [turns @ v, turns @ w])
    before, after = (streamed(list(p), [40], centred=False) if full else _minibatch([list(p)], centred=False) for p in pairs)
    np.testing.assert_allclose(before.cka(), after.cka(), rtol=1e-10)
    assert 0.2 < before.cka()[0, 1] < 0.99


def _clusters(structures: int, seed: int = 5) -> tuple[list[torch.Tensor], np.ndarray]:
    """Rows that belong together: structures of different sizes with an offset of their own."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 9, structures)
    index = np.repeat(np.arange(structures), sizes)
    x = rng.normal(size=(len(index), 4)) + rng.normal(size=(structures, 4))[index]
    y = x @ rng.normal(size=(4, 3)) + 1.5 * rng.normal(size=(len(index), 3)) + rng.normal(size=(structures, 3))[index]
    return [torch.from_numpy(x), torch.from_numpy(y)], index


def test_the_interval_is_that_of_a_bootstrap_done_the_long_way():
    layers, index = _clusters(150)
    sums = streamed(layers, [len(index)])
    half = int(np.searchsorted(index, 75))
    for first, last, offset in ((0, half, 0), (half, len(index), 75)):
        sums.add_influence([layer[first:last] for layer in layers], torch.from_numpy(index[first:last] - offset), 75)
    low, high, units = sums.interval(4000, 0)
    rng = np.random.default_rng(1)
    rows = [np.flatnonzero(index == s) for s in range(150)]
    explicit = []
    for _ in range(1000):
        chosen = np.concatenate([rows[s] for s in rng.integers(0, 150, 150)])
        explicit.append(streamed([layer[chosen] for layer in layers], [len(chosen)]).cka()[0, 1])
    expected = np.quantile(explicit, [0.025, 0.975])
    assert units == 150
    width = expected[1] - expected[0]
    assert high[0, 1] - low[0, 1] == pytest.approx(width, rel=0.12)
    assert abs(low[0, 1] - expected[0]) < 0.12 * width
    assert abs(high[0, 1] - expected[1]) < 0.12 * width
    assert low[0, 0] == high[0, 0] == pytest.approx(1.0)


def test_shares_of_structures_add_up_to_the_norms():
    layers, index = _clusters(20)
    sums = streamed(layers, [len(index)])
    sums.add_influence(layers, torch.from_numpy(index), 20)
    np.testing.assert_allclose(np.concatenate(sums._influence).sum(0), sums.norms(), rtol=1e-11)


def test_few_units_have_no_interval_and_constant_layers_no_value():
    layers, index = _clusters(4)
    constant = torch.full((len(index), 2), 1.7, dtype=torch.float64)
    sums = streamed([layers[0], constant], [len(index)])
    sums.add_influence([layers[0], constant], torch.from_numpy(index), 4)
    low, high, units = sums.interval(100, 0)
    assert units == 4
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert sums.cka()[0, 0] == pytest.approx(1.0)
    assert np.isnan(sums.cka()[0, 1])


def test_small_batches_are_left_out_and_counted():
    layers, _ = _clusters(10)
    sums = _minibatch([layers, [layer[:3] for layer in layers]])
    assert sums.left_out == 3
    assert sums.rows == len(layers[0])


def test_parts_of_a_similarity():
    names = (Layer("student", "a"), Layer("student", "b"), Layer("teacher", "c"))
    value = np.arange(9.0).reshape(3, 3)
    whole = Similarity("node", "full", names, value, value - 1, value + 1, 10, 5)
    part = whole.between("student", "teacher")
    assert part is not None
    assert part.value.tolist() == [[2.0], [5.0]]
    assert part.low.tolist() == [[1.0], [4.0]]
    assert whole.between("student", "before") is None
    assert whole.names("student") == ("a", "b")


def _elements() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Features that agree on the element of an atom, and on nothing else."""
    rng = np.random.default_rng(8)
    group = torch.from_numpy(rng.integers(0, 3, 600)) * 7 + 1
    levels = rng.normal(size=(3, 4)) * 10
    return [torch.from_numpy(levels[(group.numpy() - 1) // 7] + rng.normal(size=(600, 4))) for _ in range(2)], group


def test_within_elements_what_tells_elements_apart_does_not_count():
    layers, group = _elements()
    assert streamed(layers, [600]).cka()[0, 1] > 0.9
    sums, mini = LayerSums([4, 4], centred=True), BatchSums(centred=True)
    for first in range(0, 600, 100):
        part = slice(first, first + 100)
        sums.add([layer[part] for layer in layers], group[part])
        mini.add([layer[part] for layer in layers], group[part])
    centred = [layer.clone() for layer in layers]
    for key in (1, 8, 15):
        for layer in centred:
            layer[group == key] -= layer[group == key].mean(0)
    product = [(a.T @ b).square().sum() for a, b in ((centred[0], centred[1]), (centred[0], centred[0]), (centred[1], centred[1]))]
    assert sums.cka()[0, 1] == pytest.approx(float(product[0] / (product[1] * product[2]).sqrt()), rel=1e-10)
    assert sums.cka()[0, 1] < 0.05
    assert abs(mini.cka()[0, 1]) < 0.05
    assert mini.rows == sums.rows == 600


def test_shares_add_up_within_elements():
    layers, group = _elements()
    sums = LayerSums([4, 4], centred=True)
    sums.add(layers, group)
    structure = torch.arange(600) // 30
    sums.add_influence(layers, structure, 20, group)
    np.testing.assert_allclose(np.concatenate(sums._influence).sum(0), sums.norms(), rtol=1e-11)
    low, high, _ = sums.interval(200, 0)
    assert low[0, 1] <= sums.cka()[0, 1] <= high[0, 1]
