"""Teachers, live and cached: frozen, as lazy as the terms allow, and the same numbers either way."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from fastkd.config import DistillConfig, TermConfig
from fastkd.distill import build_terms
from fastkd.errors import CheckpointError, DataError
from fastkd.models import PaiNN, PaiNNOptions, save_model
from fastkd.teachers import CachedTeacher, LiveTeacher, Offer, Teacher, load_teacher, state_hash

from .common import make_batch, prediction

CUTOFF = 3.0
EVERYTHING = frozenset({"energy", "forces", "atom_energy", "node", "vector", "edge_sum", "edge_vector_sum", "degree"})


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> PaiNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PaiNN(PaiNNOptions(width=8, layers=2, radial=6, cutoff=CUTOFF)).to(dtype)
    model.reference_energy[[1, 6, 8]] = torch.tensor([-13.6, -1029.0, -2041.0], dtype=torch.float64)
    return model


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(make_model())


@pytest.fixture(scope="module")
def cache(teacher) -> CachedTeacher:
    return CachedTeacher.build(teacher, EVERYTHING, [make_batch([4, 0, 7]), make_batch([2, 9])], dataset_hash="data")


def values(output) -> dict[str, torch.Tensor]:
    return {need: getattr(output, need) for need in sorted(EVERYTHING) if getattr(output, need) is not None}


def test_a_teacher_is_frozen_and_leaves_no_graph(teacher):
    model = make_model().train()
    wrapped = Teacher(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    output = wrapped(make_batch([0, 1]), EVERYTHING)
    assert all(not value.requires_grad for value in values(output).values())
    assert not output.edge.requires_grad
    assert torch.is_grad_enabled()


def test_a_teacher_says_what_the_model_says(teacher):
    batch = make_batch([0, 1, 2])
    want = make_model().eval()(batch)
    got = teacher(batch, EVERYTHING)
    for name in ("energy", "forces", "atom_energy"):
        assert torch.equal(getattr(got, name), getattr(want, name).detach())
    assert torch.equal(got.node, want.features.node.detach())
    assert torch.equal(got.vector, want.features.vector.detach())
    direction = nn.functional.normalize(batch.edge_vectors(batch.graph(CUTOFF)), dim=-1)
    edge, dst = want.features.edge.detach(), batch.graph(CUTOFF).csr.edge_dst
    by_hand = torch.zeros_like(got.edge_sum).index_add(0, dst, edge)
    torch.testing.assert_close(got.edge_sum, by_hand, rtol=1e-12, atol=1e-14)
    by_hand = torch.zeros_like(got.edge_vector_sum).index_add(0, dst, direction[:, :, None] * edge[:, None, :])
    torch.testing.assert_close(got.edge_vector_sum, by_hand, rtol=1e-12, atol=1e-14)
    assert torch.equal(got.degree, torch.bincount(dst, minlength=batch.num_atoms))


@pytest.mark.parametrize("need", sorted(EVERYTHING))
def test_only_what_is_asked_for_is_there(teacher, need):
    assert set(values(teacher(make_batch([0]), frozenset({need})))) == {need}


def test_forces_are_computed_only_when_asked_for(teacher, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(args))
    teacher(make_batch([0]), EVERYTHING - {"forces"})
    assert not calls


def test_a_float32_batch_may_meet_a_float64_teacher(teacher):
    low = make_batch([0, 1], dtype=torch.float32)
    output = teacher(low, frozenset({"node"}))
    assert output.node.dtype == torch.float64
    student = Offer("student", {"node": 5}, blocks=2)
    terms = build_terms(DistillConfig(terms=[TermConfig(kind="n2n")]), student, teacher.offer)
    value = terms(prediction(low, 5, dtype=torch.float32), output, low)["n2n"].raw
    assert value.dtype == torch.float32
    assert value.isfinite()


@pytest.mark.parametrize("structures", [[4, 0, 7], [2, 9]])
def test_cache_equals_live_to_the_bit(teacher, cache, structures):
    batch = make_batch(structures)
    live, cached = LiveTeacher(teacher, EVERYTHING)(batch), cache(batch)
    for name, value in values(live).items():
        assert torch.equal(getattr(cached, name), value), name
        assert getattr(cached, name).dtype == value.dtype


@pytest.mark.parametrize("structures", [[9], [7, 2, 0, 9, 4], [0, 2], [4, 4]])
def test_any_subset_in_any_order_gets_each_structures_own_numbers(teacher, cache, structures):
    batch = make_batch(structures)
    cached, live = cache(batch), teacher(batch, EVERYTHING)
    alone = [cache(make_batch([structure])) for structure in structures]
    for name, value in values(cached).items():
        assert torch.equal(value, torch.cat([getattr(output, name) for output in alone])), name
        torch.testing.assert_close(value, getattr(live, name), rtol=1e-11, atol=1e-11)


def test_cache_needs_no_neighbour_list_of_the_teacher(cache):
    batch = replace(make_batch([7, 2]), graphs={})
    assert torch.equal(cache(batch).edge_sum, cache(make_batch([7, 2])).edge_sum)


def test_terms_are_the_same_to_the_bit_with_a_cache(teacher):
    kinds = ("energy", "forces", "atom_energy", "n2n", "e2n", "v2v")
    config = DistillConfig(terms=[*(TermConfig(kind=kind) for kind in kinds), TermConfig(kind="e2n", reduce="mean")])
    student = Offer("student", {"node": 5, "vector": 5, "atom_energy": 1}, blocks=2)
    terms = build_terms(config, student, teacher.offer).double()
    batch = make_batch([1, 3, 5])
    cached = CachedTeacher.build(teacher, terms.needs, [batch], dataset_hash="data")
    out = prediction(batch, 5)
    live_values, cached_values = terms(out, LiveTeacher(teacher, terms.needs)(batch), batch), terms(out, cached(batch), batch)
    assert len(live_values) == len(kinds) + 1
    for name, value in live_values.items():
        assert torch.equal(value.raw, cached_values[name].raw), name


def test_cache_refuses_what_it_was_not_built_for(cache, teacher):
    good = {"teacher_hash": teacher.hash, "dataset_hash": "data", "needs": frozenset({"node"})}
    cache.require(**good)
    other = Teacher(make_model(seed=1))
    with pytest.raises(CheckpointError, match="belongs to teacher"):
        cache.require(**{**good, "teacher_hash": other.hash})
    with pytest.raises(CheckpointError, match="belongs to data set"):
        cache.require(**{**good, "dataset_hash": "other"})
    small = CachedTeacher.build(teacher, frozenset({"energy"}), [make_batch([0])], dataset_hash="data")
    with pytest.raises(CheckpointError, match=r"lacks .*node"):
        small.require(**good)


def test_cache_refuses_structures_it_has_not_seen(cache):
    with pytest.raises(DataError, match="structure 1 is not in"):
        cache(make_batch([0, 1]))
    with pytest.raises(DataError, match="structure 25 is not in"):
        cache(make_batch([25]))
    moved = make_batch([0, 2])
    with pytest.raises(DataError, match="moved atoms"):
        cache(replace(moved, positions=moved.positions + 1e-6))
    with pytest.raises(DataError, match="another data set"):
        cache(replace(make_batch([1]), structure_index=torch.tensor([0])))


def test_cache_wants_each_structure_once_and_at_least_one(teacher):
    with pytest.raises(DataError, match="twice"):
        CachedTeacher.build(teacher, frozenset({"energy"}), [make_batch([0]), make_batch([0])], dataset_hash="data")
    with pytest.raises(DataError, match="no structure"):
        CachedTeacher.build(teacher, frozenset({"energy"}), [], dataset_hash="data")


def test_costs_are_reported(cache, teacher):
    atoms = make_batch([4, 0, 7, 2, 9]).num_atoms
    assert (cache.cost.structures, cache.cost.atoms) == (5, atoms)
    assert cache.cost.seconds > 0
    # per atom: 3 forces, energy, node, vector, edge and edge vector sums at width 8, degree and positions, 8 bytes each
    per_atom = 8 * (3 + 1 + 8 + 24 + 8 + 24 + 1 + 3)
    assert cache.cost.bytes == atoms * per_atom + 8 * (10 + 6 + 5)
    assert "5 structures" in str(cache.cost)
    live = LiveTeacher(teacher, frozenset({"node"}))
    live(make_batch([0]))
    live(make_batch([0, 1]))
    assert (live.cost.structures, live.cost.bytes) == (3, 0)


def test_hash_is_of_the_weights():
    model = make_model()
    assert state_hash(model) == state_hash(make_model()) == Teacher(make_model()).hash
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-12
    assert state_hash(model) != state_hash(make_model())


def test_a_saved_model_loads_as_a_teacher(tmp_path):
    model = make_model(dtype=torch.float32)
    save_model(model, tmp_path)
    loaded = load_teacher(tmp_path)
    assert loaded.hash == state_hash(model)
    assert loaded.cutoff == CUTOFF
    assert loaded.offer.blocks == 2
    batch = make_batch([0, 1], dtype=torch.float32)
    # frozen as a teacher is, so that filters are tabulated alike
    assert torch.equal(loaded(batch, EVERYTHING).energy, model.eval().requires_grad_(False)(batch).energy)
    wide = load_teacher(tmp_path, dtype=torch.float64)
    assert wide.dtype == torch.float64


def test_no_teacher_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"no teacher at .*nowhere"):
        load_teacher(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="checkpoint"):
        load_teacher(tmp_path)


def test_the_output_has_a_field_for_every_need(teacher):
    names = {item.name for item in fields(type(teacher(make_batch([0]), frozenset())))}
    assert names >= EVERYTHING
