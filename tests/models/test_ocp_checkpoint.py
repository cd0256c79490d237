"""Checkpoints of OCP and fairchem-core 1.x become ours: every layout, what they hold beside weights, and what is wrong with them."""

import json
import re
from dataclasses import replace

import pytest
import torch

from fastkd.cli import main
from fastkd.errors import CheckpointError
from fastkd.models import load_model, ocp_architectures
from fastkd.models.convert_command import Request, convert_checkpoint, describe
from fastkd.models.foreign_file import read_file
from fastkd.models.ocp import load_painn
from fastkd.models.ocp_graph import ocp_graph
from tests import parity

from .ocp_files import ENERGY, FORCES, NAMES, SAME, checkpoint, forces_of, reference, weights, write

FAMILIES = list(NAMES)


def convert(contents, folder, **request):
    return convert_checkpoint(write(folder / "checkpoint.pt", contents), Request(**request))


def whole_batch(file, cutoff):
    """The structures of a reference file with all their neighbours, which is what our loaders make."""
    batch = parity.make_batch(file.inputs, parity.FAMILIES[parity.family(file)][1](file.config, file.state))
    inputs = file.inputs
    graph = ocp_graph(inputs["positions"].double(), inputs["cell"].double(), inputs["natoms"], cutoff, 0, symmetric=False)
    batch.graphs[cutoff] = graph
    return batch


def check_outputs(model, file, energy=ENERGY, forces=FORCES, references=None):
    """Against the reference outputs, normalisation undone by hand."""
    prediction = model.double()(whole_batch(file, model.cutoff))
    want = file.outputs["energy"] * float(energy["rmsd"]) + float(energy["mean"])
    if references is not None:
        index = torch.arange(len(file.inputs["natoms"])).repeat_interleave(file.inputs["natoms"])
        want = want.index_add(0, index, references[file.inputs["atomic_numbers"].long()])
    torch.testing.assert_close(prediction.energy, want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(prediction.forces, file.outputs["forces"] * float(forces["rmsd"]), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("family", "layout"),
    [(family, layout) for family in FAMILIES for layout in ("v1", "hydra", "legacy") if (family, layout) != ("schnet", "hydra")],
)
def test_every_layout_predicts_what_the_reference_does(family, layout, tmp_path):
    file = reference(family)
    converted = convert(checkpoint(family, layout), tmp_path)
    check_outputs(converted.model, file, forces=forces_of(family))
    options = converted.model.options
    limit = options.neighbors if family == "gemnet_oc" else options.max_neighbors
    assert limit == (file.config["max_neighbors"] if family in ("painn", "gemnet_oc") else 50)
    assert converted.provenance["weights"] == "as stored (state_dict)"
    assert converted.provenance["step"] == 1200
    assert not converted.notes


def test_neighbours_are_cut_off_by_the_model_itself(tmp_path):
    """With a limit that bites, on a graph of all neighbours, as the reference with its own graph."""
    for family in ("painn", "schnet", "dimenet"):  # GemNet-OC has limits of its own
        file = reference(family)
        limited = {**file.config, "max_neighbors": 12}
        contents = checkpoint(family, normalizers={})
        contents["config"]["model"] |= limited
        model = convert(contents, tmp_path).model.double()
        if family != "painn":  # the reference has no such option
            model.options = replace(model.options, max_neighbors=12)
        plain = parity.FAMILIES[family][1](limited, file.state).model.double()
        batch = whole_batch(file, model.cutoff)
        inputs = file.inputs
        cut = ocp_graph(
            inputs["positions"].double(), inputs["cell"].double(), inputs["natoms"], model.cutoff, 12, symmetric=family == "painn"
        )
        want = plain(replace(batch, graphs={cut.cutoff: cut}))
        got = model(batch)
        assert cut.num_edges < batch.graph(model.cutoff).num_edges
        torch.testing.assert_close(got.energy, want.energy, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.forces, want.forces, rtol=1e-10, atol=1e-12)


def trained(family):
    """Names of the parameters in the optimiser's order, as the reference lists them."""
    return [n for n in weights(family) if not re.search(r"offset$|scale_factor$|\.conv\.nn\.|\.seq_energy_pre\.", n)]


@pytest.mark.parametrize("family", FAMILIES)
def test_moving_averages_are_used_where_the_reference_uses_them(family, tmp_path):
    state, names = weights(family), trained(family)
    # averages are the right weights, what is stored is not
    ema = {"decay": 0.999, "num_updates": None, "shadow_params": [state[name] for name in names], "collected_params": []}
    twice = (".conv.nn.", ".seq_energy_pre.")
    spoilt = {name: value + 0.1 if name in names or any(part in name for part in twice) else value for name, value in state.items()}
    forces = forces_of(family)
    converted = convert(checkpoint(family, state=spoilt, ema=ema), tmp_path)
    assert converted.provenance["weights"] == "moving averages (ema)"
    check_outputs(converted.model, reference(family), forces=forces)
    last = convert(checkpoint(family, state=spoilt, ema=ema), tmp_path, use_ema=False)
    assert last.provenance["weights"] == "as stored (state_dict)"
    tables = {"schnet": "embedding.weight", "dimenet": "emb.emb.weight"}
    table = spoilt[tables.get(family, "atom_emb.embeddings.weight")]
    assert torch.equal(last.model.embedding.weight[: len(table)], table)
    without = checkpoint(family, ema=ema)
    del without["config"]["optim"]["ema_decay"]
    converted = convert(without, tmp_path)
    assert "no optim.ema_decay" in converted.notes[0]
    ema["shadow_params"] = ema["shadow_params"][1:]
    with pytest.raises(CheckpointError, match=r"moving averages in 'ema' do not fit.*--no-ema"):
        convert(checkpoint(family, ema=ema), tmp_path)


def test_element_references_are_added(tmp_path):
    table = torch.linspace(-5, 3, 119)
    contents = checkpoint("painn", elementrefs={"energy": {"element_references": table}})
    check_outputs(convert(contents, tmp_path).model, reference("painn"), references=table.double())


def test_scale_factors_from_the_file_a_scale_file_and_nowhere(tmp_path):
    state = weights("painn")
    slots = sorted(name for name in state if name.endswith(".scale_factor"))
    scales = {name.removesuffix(".scale_factor"): 0.5 + 0.25 * number for number, name in enumerate(slots)}
    assert len(scales) == 3
    want = convert(
        checkpoint("painn", state={**state, **{n: torch.tensor(v).double() for n, v in zip(slots, scales.values(), strict=True)}}), tmp_path
    )
    assert want.model.options.fitted_scales
    inside = convert(checkpoint("painn", scale_dict=scales), tmp_path)
    assert torch.equal(inside.model.scales, want.model.scales)
    scale_file = tmp_path / "scales.json"
    scale_file.write_text(json.dumps({"comment": "PaiNN", **scales}))
    contents = checkpoint("painn")
    contents["config"]["model"]["scale_file"] = "configs/painn_scales.json"
    with pytest.raises(CheckpointError, match=r"configs/painn_scales\.json.*--scale-file"):
        convert(contents, tmp_path)
    assert torch.equal(convert(contents, tmp_path, scale_file=scale_file).model.scales, want.model.scales)
    torch.save({name: torch.tensor(value) for name, value in scales.items()}, tmp_path / "scales.pt")
    assert torch.equal(convert(contents, tmp_path, scale_file=tmp_path / "scales.pt").model.scales, want.model.scales)
    scale_file.write_text(json.dumps({"upd_out_scalar_scale_0": 1.5, "nothing": 2.0}))
    with pytest.raises(CheckpointError, match="scale factors of 'upd_out_scalar_scale_1', 'upd_out_scalar_scale_2' are missing"):
        convert(contents, tmp_path, scale_file=scale_file)
    for text in ("[1, 2]", "{}", '{"a": "b"}', "{"):
        scale_file.write_text(text)
        with pytest.raises(CheckpointError, match="scale file"):
            convert(contents, tmp_path, scale_file=scale_file)


def test_normalisers_of_the_config_and_none(tmp_path):
    dataset = {
        "train": {"normalize_labels": True, "target_mean": -0.75, "target_std": 2.5, "grad_target_mean": 0.0, "grad_target_std": 1.5}
    }
    contents = checkpoint("painn", normalizers={})
    assert "no normalisers" in convert(contents, tmp_path).notes[0]
    contents["config"]["dataset"] = dataset
    converted = convert(contents, tmp_path)
    assert "dataset section" in converted.notes[0]
    check_outputs(converted.model, reference("painn"))
    contents["config"]["dataset"] = [dataset["train"]]
    check_outputs(convert(contents, tmp_path).model, reference("painn"))


@pytest.mark.parametrize(
    ("family", "normalizers", "message"),
    [
        ("schnet", {"energy": ENERGY, "forces": FORCES}, r"0\.6 times the derivative"),
        ("painn", {"energy": ENERGY, "forces": {"mean": torch.tensor(0.1), "rmsd": torch.tensor(1.0)}}, "the same everywhere"),
        ("painn", {"energy": {"mean": torch.tensor(0.0), "rmsd": torch.tensor(0.0)}}, "cannot be undone"),
        ("painn", {"energy": {"mean": torch.tensor(0.0)}}, "neither rmsd nor std"),
        ("painn", {"energy": {"mean": torch.zeros(3), "rmsd": torch.tensor(1.0)}}, "holds 3 numbers"),
    ],
)
def test_normalisers_that_cannot_be_undone(family, normalizers, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        convert(checkpoint(family, normalizers=normalizers), tmp_path)


def without(contents, *path):
    inner = contents
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return contents


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (lambda: without(checkpoint("painn"), "state_dict"), "state_dict missing.*it holds 'epoch'"),
        (lambda: without(checkpoint("painn"), "config"), r"config missing.*best_checkpoint\.pt"),
        (lambda: without(checkpoint("painn"), "config", "model"), "config has no 'model' section"),
        (lambda: weights("painn"), "bare state dict"),
        (lambda: {}, "it holds nothing"),
        (lambda: checkpoint("painn", state={**weights("painn"), "one.more": torch.zeros(1), "two.more": torch.zeros(1)}), "unexpected tensors 'one.more', 'two.more'"),
        (
            lambda: checkpoint("painn", state={n: v for n, v in weights("painn").items() if "rbf_proj" not in n}),
            r"6 missing: 'message_layers\.0\.rbf_proj\.weight'.*'message_layers\.2\.rbf_proj\.bias'",
        ),
        (lambda: checkpoint("painn", state={"cnn.weight": torch.zeros(1)}), "its tensors are missing: state_dict holds 'cnn.weight'"),
        (lambda: checkpoint("painn", config={"model": {"name": "spinconv"}}), r"model 'spinconv' are not supported; supported are.*schnet"),
        (lambda: checkpoint("painn", state_dict={"a": 1}), "no tensor: 'a'"),
        (lambda: checkpoint("painn", elementrefs={"energy": {}}), "element_references"),
    ],
)  # fmt: skip
def test_files_that_lack_something(contents, message, tmp_path, capsys):
    file = write(tmp_path / "x.pt", contents())
    assert main(["convert", "checkpoint", str(file), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: ")
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(file, Request())
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_checkpoints(tmp_path):
    file = write(tmp_path / "x.pt", checkpoint("painn"))
    whole = file.read_bytes()
    for size in (0, 1, 40, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            read_file(file)
    file.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(CheckpointError, match="web page"):
        read_file(file)
    file.write_bytes(b"nothing of the kind" * 9)
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        read_file(file)
    with pytest.raises(CheckpointError, match="no file"):
        read_file(tmp_path)
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match="holds a list"):
        read_file(file)
    (tmp_path / "x.npz").write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match="npz file"):
        read_file(tmp_path / "x.npz")


class Surprise:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("run",))


def test_code_in_a_file_is_never_run(tmp_path, capsys):
    file = write(tmp_path / "x.pt", checkpoint("painn", scheduler=Surprise()))
    with pytest.raises(CheckpointError, match=r"holds more than data: .*print.*never runs code"):
        read_file(file)
    assert capsys.readouterr().out == ""


def test_the_command_says_what_it_found_and_writes_it(tmp_path, capsys):
    file = write(tmp_path / "checkpoint.pt", checkpoint("painn"))
    assert main(["convert", "checkpoint", str(file), "--inspect"]) == 0
    said = capsys.readouterr().out
    for part in (
        "OCP / fairchem-core 1.x",
        "painn",
        "width=32",
        "direct head",
        "Å, eV, eV/Å",
        "E = 2.5 eV · network − 0.75 eV per structure",
        "83, H to Bi",
    ):
        assert part in said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    out = tmp_path / "out"
    assert main(["convert", "checkpoint", str(file), str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = load_model(out)
    check_outputs(model, reference("painn"))
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["provenance"]["model_config"]["name"] == "painn"
    assert len(found["provenance"]["sha256"]) == 64
    assert main(["inspect", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["convert", "checkpoint", str(file), str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", "checkpoint", str(file), str(out), "--overwrite"]) == 0
    for arguments in ([str(file)], [str(file), str(out), "--inspect"], [str(file), str(out), "--energy-unit", "eV", "--overwrite"]):
        assert main(["convert", "checkpoint", *arguments]) == 2


def test_other_architectures_can_take_part(tmp_path):
    entry = ocp_architectures.OcpArchitecture(load_painn, ("mine",), r"message_layers\.0\.x_proj\.0\.weight", r"radial_basis\..*")
    with pytest.raises(ValueError, match="already"):
        ocp_architectures.register("painn", entry)
    ocp_architectures.register("mine", entry)
    try:
        contents = checkpoint("painn", normalizers={"energy": dict(ENERGY), "forces": dict(SAME)})
        contents["config"]["model"]["name"] = "mine"
        check_outputs(convert(contents, tmp_path).model, reference("painn"), forces=SAME)
    finally:
        del ocp_architectures.ARCHITECTURES["mine"]


def test_projections_are_named_and_left_out(tmp_path):
    converted = convert(checkpoint("painn", state=reference("painn").state), tmp_path)
    assert any("'e2e', 'n2e', 'n2n', 'v2v'" in note for note in converted.notes)
    assert describe(converted)["notes"] == list(converted.notes)
