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

#: of the papers' models, counted on the reference implementations (DimeNet++ also in test_presets_peers.py)
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
    **{"dimenet_pp_qm9": 1_885_830, "dimenet_pp_md17": 1_885_830, "dimenet_pp_oc20": 1_810_182, "dimenet_pp_oc20_large": 10_718_342},
    **{f"mxmnet_{data}": 3_773_862 for data in ("qm9", "md17")},
    **{f"pamnet_{data}": 3_581_100 for data in ("qm9", "md17")},
    **{f"pamnet_s_{data}": 3_573_292 for data in ("qm9", "md17")},
}
#: rows of our table of elements, and of the reference's; layers of the reference that are never used
TABLES = {"dimenet_pp": (119, 95), "mxmnet": (119, 5), "pamnet": (119, 5)}
UNUSED = {"pamnet_qm9": 18 * 128, "pamnet_md17": 18 * 128}
ALONE = ["compare={arms: []}", "data={path: embedded, systems: [ethanol]}"]


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_parameters_are_as_many_as_published(name):
    with torch.device("meta"):  # shapes are enough
        model = presets.make(name)
    preset = presets.PRESETS[name]
    ours, theirs = TABLES.get(preset.architecture, (0, 0))
    count = sum(parameter.numel() for parameter in model.parameters()) - (ours - theirs) * preset.options.width + UNUSED.get(name, 0)
    assert (preset.extra_rows, preset.unused) == (ours - theirs, UNUSED.get(name, 0))
    assert count == preset.parameters
    assert count == COUNTS[name]
    assert COUNTS.keys() == presets.PRESETS.keys()


def test_the_sizes_of_the_paper():
    painn, schnet = presets.find("painn_oc20").options, presets.find("schnet_oc20").options
    assert isinstance(painn, PaiNNOptions)
    assert isinstance(schnet, SchNetOptions)
    assert (painn.width, painn.layers, painn.radial, painn.cutoff, painn.max_neighbors, painn.forces) == (512, 6, 128, 12.0, 50, "direct")
    assert (painn.layer_norm, painn.residual_scaling, painn.mirrored, painn.activation) == (True, True, True, "scaled_silu")
    assert (schnet.width, schnet.filters, schnet.layers, schnet.radial, schnet.cutoff) == (1024, 256, 5, 200, 6.0)
    assert [presets.find(f"painn_{name}").options.width for name in ("oc20_small", "coll", "coll_small")] == [256, 256, 128]
    assert [presets.find(f"painn_{name}").options.layers for name in ("oc20_small", "coll", "coll_small")] == [4, 6, 4]


def test_the_sizes_of_the_other_papers():
    """Spec of the models that knowledge mixing distils: the authors' for QM9; on trajectories bonds follow from distances."""
    dimenet = presets.find("dimenet_pp_qm9").options
    sizes = (
        dimenet.width,
        dimenet.layers,
        dimenet.triplet_width,
        dimenet.basis_width,
        dimenet.output_width,
        dimenet.degrees,
        dimenet.radial,
    )
    assert sizes == (128, 4, 64, 8, 256, 7, 6)
    assert (dimenet.cutoff, dimenet.before_skip, dimenet.after_skip, dimenet.output_layers) == (5.0, 1, 2, 3)
    assert presets.find("dimenet_pp_md17").options == dimenet
    ocp = presets.find("dimenet_pp_oc20_large").options
    assert (ocp.width, ocp.layers, ocp.output_width, ocp.cutoff, ocp.max_neighbors, ocp.angle_forces) == (512, 3, 384, 6.0, 50, False)
    for name in ("mxmnet", "pamnet", "pamnet_s"):
        small, moving = (presets.find(f"{name}_{data}").options for data in ("qm9", "md17"))
        assert (small.width, small.layers, small.cutoff, small.local_cutoff, small.local, small.smooth) == (
            128,
            6,
            5.0,
            5.0,
            "covalent",
            False,
        )
        assert (small.radial, small.spherical, small.spherical_radial, small.envelope_exponent) == (16, 7, 6, 5)
        assert (moving.cutoff, moving.local_cutoff, moving.local, moving.local_distance, moving.smooth) == (6.0, 2.0, "distance", 2.0, True)
        assert getattr(moving, "simple", False) == (name == "pamnet_s")


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_every_preset_is_a_model_of_a_config(name):
    """With the sizes that a config knows, which may be given once more, and no others."""
    config = load_config(None, [*ALONE, f"model={{preset: {name}}}"]).model
    with torch.device("meta"):
        assert build_model(config).options == presets.find(name).options
    again = {key: value for key, value in config.model_dump().items() if key in presets.config_values(name)}
    assert ModelConfig(preset=name, **again) == config
    assert config.kind == ("pamnet_s" if name.startswith("pamnet_s") else presets.find(name).architecture)


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
        ("{preset: pamnet_md17, local: covalent}", "local=covalent contradicts preset=pamnet_md17"),
        ("{preset: pamnet_qm9, kind: pamnet_s}", "kind=pamnet_s contradicts"),
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
