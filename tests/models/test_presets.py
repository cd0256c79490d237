"""Presets: parameter counts to the digit, from Python and from a config; and what contradicts one."""

import json
from dataclasses import replace

import pytest
import torch

from fastkd.config import ModelConfig
from fastkd.config_loading import load_config, to_yaml
from fastkd.errors import ConfigError, DataError
from fastkd.models import PaiNN, PaiNNOptions, SchNetOptions, build_model, load_model, presets, save_model

from .structures import batch_of, random_molecule

#: of spec section 1.4, counted on the reference implementation
COUNTS = {
    "painn_oc20": 20_073_475,
    "painn_oc20_small": 3_689_475,
    "painn_coll": 5_334_531,
    "painn_coll_small": 1_029_635,
    "schnet_oc20": 9_088_513,
    "schnet_coll": 455_809,
    "gemnet_oc_base": 38_864_384,
    "gemnet_oc_small": 8_753_408,
    "gemnet_oc_coll": 11_197_184,
}
ALONE = ["compare={arms: []}", "data={path: embedded, systems: [ethanol]}"]


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_parameters_are_as_many_as_published(name):
    with torch.device("meta"):  # shapes are enough
        model = presets.make(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == presets.PRESETS[name].parameters
    assert count == COUNTS.get(name, count)
    assert COUNTS.keys() <= presets.PRESETS.keys()


def test_the_sizes_of_the_paper():
    painn, schnet = presets.find("painn_oc20").options, presets.find("schnet_oc20").options
    assert isinstance(painn, PaiNNOptions)
    assert isinstance(schnet, SchNetOptions)
    assert (painn.width, painn.layers, painn.radial, painn.cutoff, painn.max_neighbors, painn.forces) == (512, 6, 128, 12.0, 50, "direct")
    assert (painn.layer_norm, painn.residual_scaling, painn.mirrored, painn.activation) == (True, True, True, "scaled_silu")
    assert (schnet.width, schnet.filters, schnet.layers, schnet.radial, schnet.cutoff) == (1024, 256, 5, 200, 6.0)
    assert [presets.find(f"painn_{name}").options.width for name in ("oc20_small", "coll", "coll_small")] == [256, 256, 128]
    assert [presets.find(f"painn_{name}").options.layers for name in ("oc20_small", "coll", "coll_small")] == [4, 6, 4]


def test_the_registry():
    with pytest.raises(ConfigError, match="no preset 'painn_oc2O'; did you mean painn_oc20"):
        presets.find("painn_oc2O")
    with pytest.raises(ValueError, match="already"):
        presets.register("painn_oc20", presets.PRESETS["painn_oc20"])
    tiny = presets.Preset("painn", PaiNNOptions(width=4, layers=1, radial=3), 0, "this test")
    presets.register("tiny", tiny)
    try:
        model = build_model(ModelConfig(preset="tiny", filters="exact"))
        assert isinstance(model, PaiNN)
        assert model.options == tiny.options
        assert model.tables.method == "exact"
    finally:
        del presets.PRESETS["tiny"]


def test_from_a_config_and_back():
    config = load_config(None, [*ALONE, "model={preset: painn_coll_small}"])
    says = {"preset": "painn_coll_small", "kind": "painn", "width": 128, "layers": 4, "radial": 128, "cutoff": 12.0, "forces": "direct"}
    assert config.model.model_dump() == ModelConfig().model_dump() | says
    assert ModelConfig.model_validate_json(json.dumps(config.model.model_dump())) == config.model
    assert "preset: painn_coll_small" in to_yaml(config)
    assert build_model(config.model).options == presets.find("painn_coll_small").options
    # filters are narrower than features there, which no other key can say
    assert build_model(ModelConfig(preset="schnet_coll")).options == presets.find("schnet_coll").options


def test_a_dumped_config_reads_back(tmp_path):
    config = load_config(None, [*ALONE, "model={preset: schnet_coll, cutoff: 12}"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "{preset: painn_coll, width: 64, cutoff: 12}",
            r"model: width=64 contradicts preset=painn_coll, which says kind=painn, forces=direct, width=256",
        ),
        ("{preset: painn_coll, kind: schnet}", "kind=schnet contradicts"),
        ("{preset: schnet_coll, forces: direct}", "forces=direct contradicts preset=schnet_coll"),
        ("{preset: painn}", "model: preset: there is no preset 'painn'"),
        ("{preset: 3}", "model.preset = 3: must be text"),
    ],
)
def test_contradictions(model, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*ALONE, f"model={model}"])


def test_an_arm_may_have_a_preset():
    arms = "compare={arms: [{name: a}, {name: b, set: {model.preset: schnet_coll}}], seeds: [0]}"
    config = load_config(None, [*ALONE, arms, "model={width: 64, filters: exact}"])
    assert config.model.width == 64
    wrong = arms.replace("model.preset: schnet_coll", "model.preset: schnet_coll, model.width: 32")
    with pytest.raises(ConfigError, match=r"compare\.arms\.1 \(b\): model: width=32 contradicts"):
        load_config(None, [*ALONE, wrong, "model={width: 64}"])


def test_elements_outside_the_table_are_refused(tmp_path):
    torch.manual_seed(0)
    model = presets.make("schnet_coll")
    with pytest.raises(ConfigError, match="from H to Es, and Fm is not in it"):
        model.know_elements([1, 100])
    model.know_elements([8, 1])
    assert model.known_element.nonzero().flatten().tolist() == [1, 8]
    painn = PaiNN(replace(presets.find("painn_coll_small").options, width=8, layers=1, radial=4))
    save_model(painn, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.known_element.nonzero().flatten().tolist() == list(range(1, 84))
    numbers, positions = random_molecule(4, 0)
    for known, atomic_number in ((True, 83), (False, 84)):
        numbers[0] = atomic_number
        batch = batch_of((numbers, positions), cutoff=12.0, dtype=torch.float32)
        if known:
            assert torch.isfinite(loaded(batch).energy).all()
        else:
            with pytest.raises(DataError, match="Po"):
                loaded(batch)
