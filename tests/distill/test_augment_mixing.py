"""Synthetic structures mixed in: weights, weighted losses against restatements, sampling and its resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastkd.config import DistillConfig, LossConfig
from fastkd.data.mixture import JoinedFiles, mixing_weights
from fastkd.data.reader import DataFile
from fastkd.data.sampler import BatchSampler, Caps
from fastkd.data.structure import Structure
from fastkd.data.writer import DataWriter
from fastkd.distill import build_terms
from fastkd.distill.projections import IdentityProjection, LinearProjection, MLPProjection, Projection, elementwise
from fastkd.engine.step import label_loss
from fastkd.teachers import Offer, TeacherOutput

from .common import make_batch, normal, prediction


@pytest.mark.parametrize("ratio", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("synthetic", [[True, False, False, False, True], [False] * 4, [True] * 3])
def test_weights_are_the_formula_and_one_on_average(ratio: float, synthetic: list[bool]) -> None:
    share = sum(synthetic) / len(synthetic)
    own = 1 / (1 - share + ratio * share)
    expected = [ratio * own if made else own for made in synthetic]
    found = mixing_weights(torch.tensor(synthetic), ratio)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)
    assert float(found.mean()) == pytest.approx(1.0, abs=1e-15)


def rho(residual: Tensor, kind: str) -> Tensor:
    if kind == "mse":
        return residual**2
    return residual.abs() if kind == "mae" else torch.where(residual.abs() <= 1, residual**2 / 2, residual.abs() - 0.5)


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
@pytest.mark.parametrize("shape", ["linear", "no_bias", "mlp", "identity"])
def test_weighted_rows_of_scalars(kind: str, shape: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps: dict[str, Projection] = {
        "linear": LinearProjection(5, 7, bias=True, generator=generator),
        "no_bias": LinearProjection(5, 7, bias=False, generator=generator),
        "mlp": MLPProjection(5, 5, 7, generator=generator),
        "identity": IdentityProjection(),
    }
    projection = maps[shape].double()
    x, t = normal(9, 5, seed=1).requires_grad_(), 2 * normal(9, 5 if shape == "identity" else 7, seed=2)
    weight = normal(9, seed=3).abs() + 0.1
    found = projection.node_loss(x, t, kind, weight)  # type: ignore[arg-type]
    expected = (weight[:, None] * rho(projection.map(x) - t, kind)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    inputs = [x, *projection.parameters()]
    for one, two in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(projection.node_loss(x, t, kind, torch.ones(9).double()), projection.node_loss(x, t, kind))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_weighted_rows_of_vectors(kind: str) -> None:
    projection = LinearProjection(5, 7, bias=False, generator=torch.Generator().manual_seed(0)).double()
    v, t, weight = normal(9, 3, 5, seed=1), 2 * normal(9, 3, 7, seed=2), normal(9, seed=3).abs()
    expected = (weight[:, None, None] * rho(projection.map(v) - t, kind)).mean()
    torch.testing.assert_close(projection.vector_loss(v, t, kind, weight), expected, rtol=1e-13, atol=0)  # type: ignore[arg-type]
    torch.testing.assert_close(
        elementwise(projection.map(v) - t, kind, weight),  # type: ignore[arg-type]
        expected,
        rtol=1e-13,
        atol=0,
    )


def test_terms_and_labels_are_weighted_structure_by_structure() -> None:
    batch = make_batch([0, 1, 2, 3], (3.0,))
    weight = mixing_weights(torch.tensor([True, False, False, True]), 0.2)
    batch = replace(
        batch,
        energy=normal(4, seed=20),
        forces=normal(batch.num_atoms, 3, seed=21),
        labelled=torch.tensor([True, True, False, True]),
        fixed=torch.arange(batch.num_atoms) % 4 == 0,
    )
    weighted = replace(batch, weight=weight)
    student = prediction(batch, 6)
    offer = Offer("student", {"node": 6, "vector": 6}, blocks=2, cutoff=3.0)
    config = DistillConfig.model_validate({"terms": [{"kind": k} for k in ("energy", "forces", "atom_energy", "n2n", "v2v")]})
    terms = build_terms(config, offer, replace(offer, name="teacher")).double()
    said = TeacherOutput(
        energy=normal(4, seed=1),
        forces=normal(batch.num_atoms, 3, seed=2),
        atom_energy=normal(batch.num_atoms, seed=3),
        node=normal(batch.num_atoms, 6, seed=4),
        vector=normal(batch.num_atoms, 3, 6, seed=5),
    )
    found = {name: float(value.raw.detach()) for name, value in terms(student, said, weighted).items()}
    atom = weight[batch.graph_index]
    free = (~batch.fixed).double()  # type: ignore[operator]
    assert said.energy is not None
    assert said.forces is not None
    assert said.atom_energy is not None
    assert said.node is not None
    assert said.vector is not None
    assert student.forces is not None
    assert student.features.node is not None
    assert student.features.vector is not None
    n2n, v2v = terms.terms["n2n"].projection, terms.terms["v2v"].projection
    expected = {
        "energy": (weight * (student.energy - said.energy).abs()).mean(),
        "forces": (atom * free * (student.forces - said.forces).norm(dim=-1)).sum() / free.sum(),
        "atom_energy": (atom * (student.atom_energy - said.atom_energy).abs()).mean(),
        "n2n": (atom[:, None] * (n2n.map(student.features.node) - said.node) ** 2).mean(),  # type: ignore[operator, union-attr]
        "v2v": (atom[:, None, None] * (v2v.map(student.features.vector) - said.vector) ** 2).mean(),  # type: ignore[operator, union-attr]
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value.detach()), rel=1e-12), name
    labels = label_loss(student, weighted, LossConfig())
    known = batch.labelled.double()
    error = (weight * known * (student.energy - batch.energy).abs()).sum() / 3
    assert float(labels.energy.detach()) == pytest.approx(float(error.detach()), rel=1e-12)
    counted = known[batch.graph_index] * free
    force = (atom * counted * (student.forces - batch.forces).norm(dim=-1)).sum() / counted.sum()
    assert float(labels.forces.detach()) == pytest.approx(float(force.detach()), rel=1e-12)
    ones = replace(batch, weight=torch.ones(4, dtype=torch.float64))
    assert torch.equal(label_loss(student, ones, LossConfig()).total, label_loss(student, batch, LossConfig()).total)


def sampler(fraction: float = 0.3, **options: object) -> BatchSampler:
    given = {"caps": Caps(8), "seed": 1, "synthetic": range(100, 140), "synthetic_fraction": fraction} | options
    return BatchSampler(range(20), (), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("caps", [Caps(8), Caps(100, atoms=40), Caps(1)])
def test_the_synthetic_share_and_its_scatter_are_those_of_weighted_sampling(caps: Caps) -> None:
    stream = sampler(caps=caps, size=lambda index: (3 + index % 5, 10))
    batches = [next(stream) for _ in range(6000 // (7 if caps.structures > 1 else 1))]
    made = np.array([index >= 100 for batch in batches for index in batch])
    assert abs(made.mean() - 0.3) < 4 * (0.21 / len(made)) ** 0.5
    counts = np.bincount([index for batch in batches for index in batch])
    # each pool epoch by epoch
    assert np.ptp(counts[:20]) <= 1
    assert np.ptp(counts[100:]) <= 1
    if caps == Caps(8):
        share = np.array([np.mean(np.array(batch) >= 100) for batch in batches])
        assert share.var() == pytest.approx(0.21 / 8, rel=0.2)


def test_mixed_sampling_goes_on_where_it_was() -> None:
    stream = sampler(caps=Caps(8, atoms=30), size=lambda index: (3 + index % 5, 10))
    for _ in range(37):
        next(stream)
    state = stream.state_dict()
    expected = [next(stream) for _ in range(30)]
    other = sampler(caps=Caps(8, atoms=30), size=lambda index: (3 + index % 5, 10))
    other.load_state_dict(state)
    assert [next(other) for _ in range(30)] == expected
    with pytest.raises(ValueError, match="synthetic structures"):
        BatchSampler(range(20), (), caps=Caps(8), seed=1).load_state_dict(state)


def test_two_files_count_as_one(tmp_path: Path) -> None:
    for name, count, z in (("own", 3, 6), ("made", 4, 1)):
        with DataWriter(tmp_path / f"{name}.h5", level_of_theory=name) as writer:
            for number in range(count):
                writer.append(Structure(np.array([z, z]), np.array([[0.0, 0, 0], [0, 0, 1 + number]]), energy=1.0, forces=np.zeros((2, 3))))
    with DataFile(tmp_path / "own.h5") as own, DataFile(tmp_path / "made.h5") as made:
        joined = JoinedFiles(own, made)
        assert len(joined) == 7
        found = joined.read([5, 0, 3, 2])
        assert [(int(s.atomic_numbers[0]), float(s.positions[1, 2])) for s in found] == [(1, 3.0), (6, 1.0), (1, 1.0), (6, 3.0)]
        assert joined.second(torch.tensor([2, 3])).tolist() == [False, True]
        assert joined.content_hash not in (own.content_hash, made.content_hash)
