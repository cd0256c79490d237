"""The comparison of whole models refuses to print speeds of models that differ, and measures what it says."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch

from bench.models import __main__ as command
from bench.models import cases, goals, markdown, plain, run, shapes, steps

CPU = torch.device("cpu")
#: needs no other package
FAST = ["--device", "cpu", "--quick", "--models", "pamnet_s", "--repeats", "3"]
PLAIN = {"mxmnet": plain.mxmnet, "pamnet": plain.pamnet, "pamnet_s": partial(plain.pamnet, simple=True)}


def test_a_model_is_measured_in_both_modes(capsys, tmp_path):
    threads = torch.get_num_threads()
    file = tmp_path / "m.json"
    assert command.main([*FAST, "--json", str(file)]) == 0
    assert capsys.readouterr().out.count("×") == 2
    written = json.loads(file.read_text())
    assert {row["mode"] for row in written["rows"]} == set(steps.MODES)
    for row in written["rows"]:
        assert row["ratio"] == row["theirs"]["median"] / row["ours"]["median"]
        assert row["memory"] == row["ours_peak_bytes"] / row["theirs_peak_bytes"]
        assert row["error"]["float64"] < 1e-12
        assert (row["kind"], row["atoms"], row["edges"], row["threads"]) == ("plain twin", 18, 144, 1)
    assert torch.get_num_threads() == threads
    assert command.main(["--markdown", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| tiny PAMNet-s, 128 × 6, gradient forces | plain torch (ours) |") == 2


def scaled(pair, wrong):
    """A twin that is slightly off."""
    if wrong == "energy":
        return dataclasses.replace(pair, theirs_energy=lambda positions: pair.theirs_energy(positions) * (1 + 1e-6))
    if wrong == "forces":
        moved = lambda positions: pair.theirs_energy(positions) + 1e-6 * (positions - positions.detach()).sum()  # noqa: E731
        return dataclasses.replace(pair, theirs_energy=moved)
    if wrong == "missing":
        as_ours = lambda weights: {name: value for name, value in pair.as_ours(weights).items() if "embedding" not in name}  # noqa: E731
        return dataclasses.replace(pair, as_ours=as_ours)
    next(iter(pair.theirs.parameters())).register_hook(lambda gradient: gradient * (1 + 1e-6))
    return pair


@pytest.mark.parametrize("wrong", ["energy", "forces", "gradient", "missing"])
def test_a_twin_that_differs_gets_no_speed(wrong, monkeypatch, capsys, tmp_path):
    case = cases.CASES["pamnet_s"]
    broken = dataclasses.replace(case, make=lambda *args, **options: scaled(case.make(*args, **options), wrong))
    monkeypatch.setitem(cases.CASES, "pamnet_s", broken)
    assert command.main([*FAST, "--json", str(tmp_path / "m.json")]) == 1
    printed = capsys.readouterr().out
    assert "no speed is printed" in printed
    assert "×" not in printed
    assert " ms" not in printed
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["rows"] == []
    assert len(written["failed"]) == 1


@pytest.mark.parametrize("name", PLAIN)
def test_plain_twins_are_the_same_functions(name):
    pair = PLAIN[name](shapes.SHAPES["organic"].structures(1, 1), torch.float64, CPU, 1, small=True)
    verdict = steps.check(pair)
    assert not verdict.reason
    assert verdict.error < 1e-11


@pytest.mark.peers
@pytest.mark.parametrize(
    "name",
    [
        "schnet",
        "painn",
        "schnet_oc",
        "painn_oc_direct",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("dimenet_pp", "dimenet_pp_oc", "gemnet_oc", "gemnet_oc_direct")),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*jittable' is deprecated:UserWarning")
# fairchem-core's own code
@pytest.mark.filterwarnings("ignore:Using torch.cross")
def test_packages_are_the_same_functions(name):
    pytest.importorskip("torch_geometric", reason="needs the extra `peers`")
    case = cases.CASES[name]
    shape = shapes.SHAPES["one_slab" if "slab" in case.shapes else case.shapes[0]]
    try:
        pair = case.pair(shape.structures(1, 1), torch.float64, CPU, 1, small=True)
    except SystemExit as error:
        pytest.skip(str(error))
    verdict = steps.check(pair)
    assert not verdict.reason
    # fairchem-core writes the spherical Bessel functions as closed forms, which cancel near the origin: 1e-10 of its gradients in float64
    assert verdict.error < (1e-9 if name == "dimenet_pp_oc" else 1e-11)


def test_in_float32_the_other_model_may_round_more_but_ours_may_not(monkeypatch):
    pair = PLAIN["pamnet_s"](shapes.SHAPES["ethanol"].structures(1, 1), torch.float32, CPU, 1, small=True)
    rough = dataclasses.replace(pair, theirs_energy=lambda positions: pair.theirs_energy(positions) * (1 + 1e-2))
    assert not steps.check(rough).reason
    far = dataclasses.replace(pair, theirs_energy=lambda positions: pair.theirs_energy(positions) * 1.5)
    assert "in float32" in steps.check(far).reason
    monkeypatch.setattr(steps, "rounding", lambda pair, modes: 2e-3)
    assert "in float32" in steps.check(rough).reason


def test_rounding_compares_with_float64_at_the_same_weights():
    pair = PLAIN["pamnet_s"](shapes.SHAPES["ethanol"].structures(1, 1), torch.float32, CPU, 1, small=True)
    assert 1e-9 < steps.rounding(pair, steps.MODES) < 1e-4
    pair.ours.energy_scale.fill_(1 + 1e-3)
    assert steps.rounding(pair, steps.MODES) < 1e-4


def test_forces_alone_leave_no_gradients_and_training_does():
    pair = PLAIN["pamnet_s"](shapes.SHAPES["ethanol"].structures(1, 1), torch.float32, CPU, 1, small=True)
    steps.prepare(pair, "forces")
    for step in (steps.ours_step(pair, "forces"), steps.theirs_step(pair, "forces")):
        assert not any(value.requires_grad for value in step())
    assert all(parameter.grad is None for model in (pair.ours, pair.theirs) for parameter in model.parameters())
    steps.prepare(pair, "training")
    steps.ours_step(pair, "training")()
    assert any(parameter.grad is not None for parameter in pair.ours.parameters())
    run.forget(pair)
    assert all(parameter.grad is None for parameter in pair.ours.parameters())


def test_structures_are_what_their_names_say():
    for shape in shapes.SHAPES.values():
        structures = shape.structures(0)
        batch = structures.batch(5.0, torch.float64)
        assert batch.num_atoms == shape.copies * len(shape.atoms())
        lengths = batch.edge_vectors(batch.graph(5.0)).norm(dim=1)
        assert 0.6 < lengths.min() < 1.5
        assert lengths.max() < 5.0
        assert bool(batch.pbc.all()) == shape.periodic
    heptanol = shapes.alcohol(7)
    assert heptanol.get_chemical_formula() == "C7H16O"
    distances = heptanol.get_all_distances()
    near = (distances < 1.25 * 1.09) & (distances > 0)
    assert near[:7].sum(1).tolist() == [3, 2, 2, 2, 2, 2, 2]  # hydrogens of each carbon
    assert distances[distances > 0].min() == pytest.approx(0.96)
    slab = shapes.slab()
    assert np.bincount(slab.get_tags()).tolist() == [27, 9, 2]
    assert slab.positions[slab.get_tags() == 1, 2].min() > slab.positions[slab.get_tags() == 0, 2].max()


def test_frames_of_a_file_take_the_place_of_the_droplet(tmp_path):
    positions = np.arange(5)[:, None, None] + np.array([[[0.0, 0, 0], [1.1, 0, 0]]])
    np.savez(tmp_path / "co.npz", positions=positions, atomic_numbers=np.array([6, 8]))
    shape = shapes.frames(tmp_path / "co.npz", 2)
    structures = shape.structures(0)
    assert structures.numbers.tolist() == [6, 8]
    torch.testing.assert_close(structures.positions, torch.from_numpy(positions[[0, 2]]), rtol=0, atol=0.21)
    found = run.shapes_of(cases.CASES["schnet"], run.Options(CPU, frames=shape))
    assert [item.name for item in found] == ["ethanol", "organic", "frames"]
    with pytest.raises(SystemExit, match="need positions"):
        shapes.frames(tmp_path / "co.npz", 6)


def row(case="gemnet_oc_small", device="cpu", **values):
    return {
        "case": case,
        "device_type": device,
        "tiny": False,
        "ratio": 1.5,
        "memory": 0.6,
        "shape": "slab",
        "mode": "forces",
        "threads": 1,
    } | values


def test_goals_are_printed_beside_what_was_found():
    assert goals.verdicts(row()) == ("met", "MISSED")
    assert goals.verdicts(row(device="cuda", memory=0.5)) == ("MISSED", "met")
    assert goals.verdicts(row("painn", ratio=1.99)) == ("MISSED", "")
    assert goals.verdicts(row("schnet_oc", ratio=2.0)) == ("met", "")
    assert goals.verdicts(row("pamnet")) == ("", "")
    assert goals.verdicts(row(tiny=True)) == ("", "")
    report = goals.report([row(), row(ratio=0.9, memory=0.4), row("pamnet")])
    assert "MISSED in 1 of 2 rows; worst 0.90× (slab, forces, 1 thread)" in report
    assert "MISSED in 1 of 2 rows; worst 60%" in report
    assert "pamnet" not in report


def test_losses_are_bold_in_the_table(tmp_path):
    times = {"median": 1.0, "low": 1.0, "high": 1.0}
    more = {"model": "M", "forces": "direct", "peer": "p", "kind": "package", "structures": "s", "atoms": 1, "edges": 2, "theirs": times}
    more |= {"ours": times, "theirs_peak_bytes": 1, "ours_peak_bytes": 1, "error": {"float64": 0.0}, "ratio": 0.5, "repeats": 5}
    about = {"device": "d", "cores": 1, "versions": {"torch": "2"}, "commit": "c", "seed": 0}
    (tmp_path / "m.json").write_text(json.dumps({"provenance": about, "rows": [row(**more)], "failed": [], "skipped": ["x: no package"]}))
    table = markdown.table(tmp_path / "m.json")
    assert "| **0.50×** | MISSED |" in table
    assert "Left out: x: no package." in table


def test_unknown_models_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--models", "nobody"])
    assert "no model begins with 'nobody'" in capsys.readouterr().err


def test_a_missing_package_is_left_out(monkeypatch):
    def make(*args, **options):
        pytest.skip("needs something: make peers")

    monkeypatch.setitem(cases.CASES, "pamnet_s", dataclasses.replace(cases.CASES["pamnet_s"], make=make))
    session = run.run(run.Options(CPU, models=("pamnet_s",), quick=True), say=lambda text: None)
    assert session.rows == []
    assert session.skipped == ["pamnet_s: needs something: make peers"]
