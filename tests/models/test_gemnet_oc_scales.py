"""Scale factors of GemNet-OC: fitted so that variances are kept, and read from the files of the reference."""

import json
from dataclasses import replace

import pytest
import torch

from fastkd.errors import CheckpointError, DataError
from fastkd.models import GemNetOC
from fastkd.models.gemnet_oc import fit_scales, load_scales, read_scales
from fastkd.models.gemnet_oc.layers import ScaleFactor

from .structures import GEMNET, batch_of, random_molecule

BATCHES = [batch_of(random_molecule(9, 1), random_molecule(7, 2)), batch_of(random_molecule(8, 3))]


def fresh(**changes):
    torch.manual_seed(0)
    return GemNetOC(replace(GEMNET, layers=2, **changes)).double()


def factors(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, ScaleFactor)}


@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_each_factor_keeps_the_variance_it_sees(forces):
    model = fresh(forces=forces).train()
    fitted = fit_scales(model, iter(BATCHES))
    assert model.training
    assert {item.name for item in fitted} == set(factors(model))
    # blocks are met in turn: an output, then a block, then the next output
    order = [".".join(item.name.split(".")[:2]) for item in fitted]
    assert sorted(set(order), key=order.index) == ["outputs.0", "blocks.0", "outputs.1", "blocks.1", "outputs.2"]

    weights, totals = {}, {}
    for name, module in factors(model).items():

        def observe(x, reference, name=name):
            count = x.shape[0]
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += count * x.var(dim=0).mean().item()
            total[1] += count * reference.var(dim=0).mean().item()
            weights[name] = weights.get(name, 0) + count

        module.observer = observe
    with torch.no_grad():
        for batch in BATCHES:
            model(batch, forces=forces == "direct")
    for item in fitted:
        out, into = (total / weights[item.name] for total in totals[item.name])
        # later factors change nothing that earlier ones see, so all hold at once
        assert out == pytest.approx(into, rel=1e-10), item
        assert into == pytest.approx(item.variance_in, rel=1e-10)
        assert out == pytest.approx(item.variance_out * item.factor**2, rel=1e-10)
        assert factors(model)[item.name].factor.item() == pytest.approx(item.factor, rel=1e-12)


def test_weights_stay_and_the_result_does_not_hang_on_what_was_fitted_before():
    model, again = fresh(), fresh()
    for module in factors(again).values():
        module.factor.fill_(3.0)
    first, second = (fit_scales(one, BATCHES) for one in (model, again))
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh().parameters(), strict=True))
    assert all(module.observer is None for module in factors(model).values())


def test_fitted_factors_can_be_kept():
    model = fresh()
    kept = model.blocks[0].edge_to_edge.sum_scale.factor
    kept.fill_(2.5)
    fitted = fit_scales(model, BATCHES, keep_fitted=True)
    assert kept.item() == 2.5
    assert "blocks.0.edge_to_edge.sum_scale" not in {item.name for item in fitted}
    assert len(fitted) == len(factors(model)) - 1


def test_data_in_which_an_interaction_does_not_happen():
    with pytest.raises(DataError, match="no batches"):
        fit_scales(fresh(), [])
    two = batch_of((torch.tensor([1, 8]), torch.tensor([[0.0, 0, 0], [1.0, 0, 0]], dtype=torch.float64)))
    with pytest.raises(DataError, match=r"sum_scale|circular_scale|radial_scale"):
        fit_scales(fresh(), [two])


def theirs(model):
    """Names as in the reference's scale files."""
    blocks = {
        "edge_to_edge.radial_scale": "trip_interaction.scale_rbf",
        "edge_to_edge.sum_scale": "trip_interaction.scale_cbf_sum",
        "atom_to_edge.radial_scale": "atom_edge_interaction.scale_rbf",
        "atom_to_edge.sum_scale": "atom_edge_interaction.scale_cbf_sum",
        "edge_to_atom.radial_scale": "edge_atom_interaction.scale_rbf",
        "edge_to_atom.sum_scale": "edge_atom_interaction.scale_cbf_sum",
        "quadruplets.radial_scale": "quad_interaction.scale_rbf",
        "quadruplets.circular_scale": "quad_interaction.scale_cbf",
        "quadruplets.sum_scale": "quad_interaction.scale_sbf_sum",
        "atom_to_atom.sum_scale": "atom_interaction.scale_rbf_sum",
        "atom_update.scale": "atom_update.scale_sum",
    }
    outputs = {"atoms.scale": "scale_sum", "edge_scale": "scale_rbf_F"}
    names = {}
    for name in factors(model):
        kind, number, rest = name.split(".", 2)
        names[name] = f"int_blocks.{number}.{blocks[rest]}" if kind == "blocks" else f"out_blocks.{number}.{outputs[rest]}"
    return names


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_scale_files_of_the_reference(suffix, tmp_path):
    model, names = fresh(), theirs(fresh())
    values = {name: 0.5 + 0.01 * number for number, name in enumerate(names.values())}
    path = tmp_path / f"scales{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps({"comment": "GemNetOC", **values}))
    else:
        torch.save({f"{name}.scale_factor": torch.tensor(value, dtype=torch.float64) for name, value in values.items()}, path)
    load_scales(model, path)
    assert len(names) == 2 * 11 + 3 * 2
    for ours, name in names.items():
        assert factors(model)[ours].factor.item() == values[name]

    one_less, one_more = dict(list(values.items())[1:]), {**values, "int_blocks.2.atom_update.scale_sum": 1.0}
    for content, message in ((one_less, "lacks outputs|lacks blocks"), (one_more, r"has blocks\.2\.atom_update")):
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            load_scales(model, tmp_path / "other.json")


def test_files_that_are_no_scale_files(tmp_path):
    for content, message in (
        ("[1, 2]", "holds a list"),
        ('{"x": 1}', "'x' is no scale factor"),
        ("{", "not a readable"),
        (None, "readable"),
    ):
        path = tmp_path / "scales.json"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(CheckpointError, match=message):
            read_scales(path)
    (tmp_path / "scales.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable"):
        read_scales(tmp_path / "scales.pt")
