"""Building, saving and loading models."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fastkd.config import ModelConfig
from fastkd.errors import CheckpointError, ConfigError
from fastkd.models import (
    MXMNet,
    MXMNetOptions,
    PaiNN,
    PAMNet,
    PAMNetOptions,
    SchNet,
    build_model,
    load_model,
    model_config_dict,
    save_model,
)
from fastkd.models.factory import ARCHITECTURES, read_header

from .structures import OPTIONS, batch_of, make_model, random_molecule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(OPTIONS))
def test_round_trip_is_bitwise(name, dtype, tmp_path):
    model = make_model(name, dtype=dtype)
    model.known_element[7:] = False
    file = save_model(model, tmp_path / "run", {"seed": 3})
    assert file == tmp_path / "run" / "model.safetensors"
    state = torch.get_rng_state()
    loaded = load_model(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is type(model)
    assert loaded.options == model.options
    assert not loaded.training
    for (key, value), (other_key, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert key == other_key
        assert value.dtype == other.dtype
        assert torch.equal(value, other)
    numbers, positions = random_molecule(7, 0)
    batch = batch_of((numbers.clamp(max=6), positions), dtype=dtype)
    assert torch.equal(model.eval()(batch).forces, loaded(batch).forces)


def test_header_says_what_the_file_is(tmp_path):
    model = make_model("schnet")
    model.known_element.zero_()
    model.known_element[[1, 8]] = True
    file = save_model(model, tmp_path / "student.safetensors", {"teacher": "none"})
    header = read_header(file)
    assert header == json.loads((tmp_path / "student.json").read_text())
    assert header["schema_version"] == 1
    assert header["elements"] == ["H", "O"]
    assert header["units"]["forces"] == "eV/Å"
    assert header["provenance"] == {"teacher": "none"}
    assert header["versions"]["torch"] == torch.__version__
    assert {"architecture": header["architecture"], "options": header["options"]} == model_config_dict(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.safetensors"]


def test_the_offset_is_added_once_per_structure_and_older_files_have_none(tmp_path):
    model, batch = make_model("schnet"), batch_of(random_molecule(5, 0), random_molecule(3, 1))
    before = model(batch)
    model.energy_offset.fill_(-0.75)
    after = model(batch)
    torch.testing.assert_close(after.energy, before.energy - 0.75)
    assert torch.equal(after.atom_energy, before.atom_energy)
    assert torch.equal(after.forces, before.forces)
    file = save_model(model, tmp_path)
    assert load_model(file).energy_offset == -0.75
    state = {key: value.contiguous() for key, value in model.state_dict().items() if key != "energy_offset"}
    save_file(state, file, metadata={"fastkd": json.dumps(read_header(file))})
    assert load_model(file).energy_offset == 0
    del state["energy_scale"]
    save_file(state, file, metadata={"fastkd": json.dumps(read_header(file))})
    with pytest.raises(CheckpointError, match="energy_offset"):
        load_model(file)


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    file = save_model(make_model("painn"), tmp_path)
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_model(make_model("painn", seed=1), tmp_path)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_truncated_foreign_and_missing_files(tmp_path):
    file = save_model(make_model("painn"), tmp_path)
    whole = file.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            load_model(file)
    save_file({"x": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="not written by fastkd"):
        load_model(file)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "update fastkd"),
        ({"format": "other"}, "'other'"),
        ({"architecture": "gemnet"}, ", ".join(ARCHITECTURES)),
        ({"options": {"width": 8, "wings": 2}}, "unknown option 'wings'"),
        ({"options": {"width": 8}}, "tensors do not fit"),
        ({"options": {"basis": "gaussian", "radial": 1}}, "options do not make a model"),
    ],
)
def test_headers_that_do_not_fit(tmp_path, change, message):
    model = make_model("painn")
    file = save_model(model, tmp_path)
    header = {**read_header(file), **change}
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file, metadata={"fastkd": json.dumps(header)})
    with pytest.raises(CheckpointError, match=message):
        load_model(file)


def test_build_model():
    painn = build_model(ModelConfig(kind="painn", width=16, layers=3, radial=12, cutoff=4.0, forces="direct"))
    assert isinstance(painn, PaiNN)
    assert (painn.options.width, painn.options.layers, painn.num_blocks, painn.cutoff, painn.force_mode) == (16, 3, 3, 4.0, "direct")
    schnet = build_model(ModelConfig(kind="schnet", width=16, layers=3, radial=12))
    assert isinstance(schnet, SchNet)
    assert (schnet.options.filters, schnet.feature_widths["node"]) == (16, 16)
    with pytest.raises(ConfigError, match=r"model\.forces.*model\.kind=painn"):
        build_model(ModelConfig(kind="schnet", forces="direct"))
    mxmnet = build_model(ModelConfig(kind="mxmnet", width=16, layers=3, radial=12, cutoff=4.0, smooth=True))
    assert isinstance(mxmnet, MXMNet)
    assert mxmnet.options == MXMNetOptions(width=16, layers=3, radial=12, cutoff=4.0, local="covalent", smooth=True)
    with pytest.raises(ConfigError, match=r"model: local_distance is 2\.0 Å, beyond the cutoff of 1\.5 Å"):
        build_model(ModelConfig(kind="mxmnet", cutoff=1.5, local="distance"))
    for kind, simple in (("pamnet", False), ("pamnet_s", True)):
        pamnet = build_model(ModelConfig(kind=kind, width=16, layers=3, radial=12, local="distance"))
        assert isinstance(pamnet, PAMNet)
        assert pamnet.options == PAMNetOptions(width=16, layers=3, radial=12, local="distance", simple=simple)


def test_seed_determines_weights():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model(ModelConfig()).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])
