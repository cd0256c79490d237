"""What checkpoints of GemNet-OC and DimeNet++ have beside the others: scale files, heads of their own, and every published setting."""

import json

import pytest
import torch

from fastkd.errors import CheckpointError
from fastkd.models import GemNetOC, GemNetOCOptions
from fastkd.models.gemnet_oc import load_gemnet_oc
from fastkd.models.gemnet_oc.layers import ScaleFactor
from fastkd.models.gemnet_oc.load import options_of, parameter_name

from .ocp_files import FORCES, HEADS, SAME, checkpoint, reference, weights
from .test_ocp_checkpoint import check_outputs, convert, whole_batch

#: gemnet-oc.yml of OC20, as its checkpoints have it
PUBLISHED = {
    **dict.fromkeys(("quad_interaction", "atom_edge_interaction", "edge_atom_interaction", "atom_interaction"), True),
    **dict.fromkeys(("cutoff", "cutoff_qint", "cutoff_aeaint", "cutoff_aint"), 12.0),
    **{"emb_size_atom": 256, "emb_size_edge": 512, "emb_size_trip_in": 64, "emb_size_trip_out": 64, "emb_size_quad_in": 32},
    **{"emb_size_quad_out": 32, "emb_size_aint_in": 64, "emb_size_aint_out": 64, "emb_size_rbf": 16, "emb_size_cbf": 16},
    **{"emb_size_sbf": 32, "num_before_skip": 2, "num_after_skip": 2, "num_concat": 1, "num_atom": 3, "num_output_afteratom": 3},
    **{"num_spherical": 7, "num_radial": 128, "num_blocks": 4, "num_atom_emb_layers": 2, "num_global_out_layers": 2},
    **{"max_neighbors": 30, "max_neighbors_qint": 8, "max_neighbors_aeaint": 20, "max_neighbors_aint": 1000, "qint_tags": [1, 2]},
    **{"rbf": {"name": "gaussian"}, "envelope": {"name": "polynomial", "exponent": 5}, "cbf": {"name": "spherical_harmonics"}},
    **{"sbf": {"name": "legendre_outer"}, "extensive": True, "output_init": "HeOrthogonal", "activation": "silu", "regress_forces": True},
    **{"direct_forces": True, "forces_coupled": False, "otf_graph": True},
}
#: gemnet-oc-large.yml
LARGE = {
    **{"num_blocks": 6, "emb_size_edge": 1024, "emb_size_trip_out": 128, "emb_size_quad_in": 64, "emb_size_rbf": 32, "emb_size_sbf": 64},
    "num_concat": 4,
}
ODAC = {**dict.fromkeys(("cutoff", "cutoff_qint", "cutoff_aeaint", "cutoff_aint"), 8.0), "num_elements": 100, "qint_tags": [0, 1, 2]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scale_file": "gemnet-oc.pt"}, {}),
        (
            LARGE,
            {"layers": 6, "edge_width": 1024, "triplet_out": 128, "quad_in": 64, "radial_width": 32, "spherical_width": 64, "concat": 4},
        ),
        ({"enforce_max_neighbors_strictly": False}, {"strict_neighbors": False}),  # OC20 + OC22, degenerate edges
        (
            ODAC,
            {"elements": 100, "quad_tags": (0, 1, 2), **dict.fromkeys(("cutoff", "quad_cutoff", "atom_edge_cutoff", "atom_cutoff"), 8.0)},
        ),
        ({**ODAC, "regress_forces": False, "direct_forces": False}, {"forces": "conservative", "elements": 100}),
    ],
    ids=["oc20", "oc20_large", "oc22_degenerate", "odac", "odac_energies"],
)
def test_published_settings_become_options(changes, expected):
    options = options_of({**PUBLISHED, **changes})
    base = {**vars(GemNetOCOptions.base()), "angle_basis": "gaussian"}
    base |= dict.fromkeys(("quad_cutoff", "atom_edge_cutoff", "atom_cutoff"), 12.0)
    got = vars(options)
    if "layers" not in expected and options.cutoff == 12:
        assert got == base | expected
    assert {key: got[key] for key in expected} == expected


#: what fairchem-core's own class has with these settings
LARGE_PARAMETERS = 216_408_064


def test_the_large_model_is_as_large_as_published():
    with torch.device("meta"):
        model = GemNetOC(options_of({**PUBLISHED, **LARGE}))
    assert sum(parameter.numel() for parameter in model.parameters()) == LARGE_PARAMETERS


def with_scales(kind):
    """The state dict with scale factors as files have them, and the factors by their names in scale files."""
    model = load_gemnet_oc(reference("gemnet_oc").config, reference("gemnet_oc").state).model
    ours = {f"{name}.factor" for name, module in model.named_modules() if isinstance(module, ScaleFactor)}
    slots = [name for name in candidates() if parameter_name(f"{name}.scale_factor") in ours]
    assert len(slots) == len(ours)
    scales = {name: 0.5 + 0.03 * number for number, name in enumerate(slots)}
    fill = {"fitted": scales, "zeros": dict.fromkeys(slots, 0.0), "ones": dict.fromkeys(slots, 1.0), "none": {}}[kind]
    return {**weights("gemnet_oc"), **{f"{n}.scale_factor": torch.tensor(v, dtype=torch.float64) for n, v in fill.items()}}, scales


def candidates():
    """Names of the factors of the fixture's model."""
    of_block = [
        *("trip_interaction.scale_rbf", "trip_interaction.scale_cbf_sum", "quad_interaction.scale_rbf", "quad_interaction.scale_cbf"),
        *("quad_interaction.scale_sbf_sum", "atom_edge_interaction.scale_rbf", "atom_edge_interaction.scale_cbf_sum"),
        *("edge_atom_interaction.scale_rbf", "edge_atom_interaction.scale_cbf_sum", "atom_interaction.scale_rbf_sum"),
        "atom_update.scale_sum",
    ]
    blocks = [f"int_blocks.{number}.{name}" for number in range(2) for name in of_block]
    return blocks + [f"out_blocks.{number}.{name}" for number in range(3) for name in ("scale_sum", "scale_rbf_F")]


@pytest.mark.parametrize("kind", ["zeros", "ones", "none"])
def test_scale_factors_from_a_scale_file(kind, tmp_path):
    """Files of 2022 have no factors, or ones; later ones have zeros until they are fitted."""
    want = convert(checkpoint("gemnet_oc", state=with_scales("fitted")[0]), tmp_path).model
    state, scales = with_scales(kind)
    contents = checkpoint("gemnet_oc", state=state)
    contents["config"]["model"]["scale_file"] = "configs/s2ef/all/gemnet/scaling_factors/gemnet-oc.pt"
    with pytest.raises(CheckpointError, match=r"scaling_factors/gemnet-oc\.pt.*--scale-file"):
        convert(contents, tmp_path)
    torch.save({name: torch.nn.Parameter(torch.tensor(value)) for name, value in scales.items()}, tmp_path / "gemnet-oc.pt")
    got = convert(contents, tmp_path, scale_file=tmp_path / "gemnet-oc.pt").model
    factors = [name for name in got.state_dict() if name.endswith(".factor")]
    assert len(factors) == len(scales)
    for name in factors:
        torch.testing.assert_close(got.state_dict()[name], want.state_dict()[name], rtol=1e-6, atol=0)
        assert got.state_dict()[name] != 1
    fewer = {name: value for name, value in scales.items() if not name.startswith("int_blocks.1.")}
    (tmp_path / "small.json").write_text(json.dumps(fewer))
    with pytest.raises(CheckpointError, match=r"int_blocks\.1\..* are missing|scale factors are missing: 'blocks\.1\."):
        convert(contents, tmp_path, scale_file=tmp_path / "small.json")


def test_scale_factors_of_a_hydra_file_go_by_the_names_of_its_backbone(tmp_path):
    scales = with_scales("none")[1]
    contents = checkpoint("gemnet_oc", "hydra", scale_dict={f"module.backbone.{name}": value for name, value in scales.items()})
    model = convert(contents, tmp_path).model
    assert model.blocks[0].edge_to_edge.radial_scale.factor.item() == pytest.approx(0.5)


def test_a_head_for_forces_that_was_never_trained_is_left_out(tmp_path):
    contents = checkpoint("gemnet_oc")
    contents["config"]["model"]["regress_forces"] = False
    converted = convert(contents, tmp_path)
    assert converted.model.force_mode == "conservative"
    assert any("head for forces was never trained" in note for note in converted.notes)
    check_energy(converted.model)
    hydra = checkpoint("gemnet_oc", "hydra")
    del hydra["config"]["model"]["heads"]["forces"]
    # a backbone keeps the head that no other replaces
    hydra["state_dict"] = {name.replace("output_heads.forces", "backbone"): value for name, value in hydra["state_dict"].items()}
    converted = convert(hydra, tmp_path)
    assert converted.model.force_mode == "conservative"
    check_energy(converted.model)


def check_energy(model):
    file = reference("gemnet_oc")
    energy = model.double()(whole_batch(file, model.cutoff), forces=False).energy
    torch.testing.assert_close(energy, file.outputs["energy"] * 2.5 - 0.75, rtol=1e-11, atol=1e-11)


def test_what_the_file_says_beside_the_model_is_passed_on(tmp_path):
    contents = checkpoint("gemnet_oc")
    contents["config"]["model"]["sphere_band"] = 3
    contents["config"]["dataset"] = {"train": {"lin_ref": "oc22_linfit_coeffs.npz"}}
    notes = convert(contents, tmp_path).notes
    assert any("'sphere_band', which the reference's GemNet-OC does not know" in note for note in notes)
    assert any("'oc22_linfit_coeffs.npz'" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_basis": True}, "scale_basis"),
        ({"num_targets": 2}, "num_targets=2"),
        ({"rbf": {"name": "bernstein"}}, "'bernstein'"),
        ({"num_blocks": 3}, r"does not fit its config; tensors \(by our names\) \d+ missing: 'blocks\.2\."),
        ({"num_blocks": 1}, r"\d+ unexpected: 'blocks\.1\."),
        ({"emb_size_atom": 16}, "size mismatch"),
        ({"emb_size_edge": None}, "'emb_size_edge'"),
    ],
)
def test_what_cannot_be_converted_is_named(changes, message, tmp_path):
    contents = checkpoint("gemnet_oc")
    contents["config"]["model"] |= changes
    with pytest.raises(CheckpointError, match=message):
        convert(contents, tmp_path)


def test_hydra_files_that_are_no_single_model(tmp_path):
    contents = checkpoint("gemnet_oc", "hydra")
    heads = contents["config"]["model"]["heads"]
    heads["forces"]["num_global_out_layers"] = 3
    with pytest.raises(CheckpointError, match=r"different num_global_out_layers \(2, 3\)"):
        convert(contents, tmp_path)
    heads["stress"] = {"module": "rank2_symmetric_head"}
    with pytest.raises(CheckpointError, match="heads of 'rank2_symmetric_head' is not supported"):
        convert(contents, tmp_path)
    contents = checkpoint("gemnet_oc", "hydra")
    more = {name.replace("heads.energy", "heads.oc22_energy"): value for name, value in contents["state_dict"].items()}
    contents["state_dict"] |= more
    with pytest.raises(CheckpointError, match=r"several heads of one kind.*output_heads\.energy.*output_heads\.oc22_energy"):
        convert(contents, tmp_path)
    contents = checkpoint("gemnet_oc", "hydra")
    contents["config"]["model"] = {"name": "hydra", "finetune_config": {"starting_checkpoint": "a.pt"}, "heads": HEADS["gemnet_oc"]}
    with pytest.raises(CheckpointError, match=r"finetune_config.*copy the 'backbone'"):
        convert(contents, tmp_path)


def test_forces_with_another_normaliser_than_energies(tmp_path):
    """A direct head takes the ratio; a model whose forces are derivatives cannot."""
    check_outputs(convert(checkpoint("gemnet_oc"), tmp_path).model, reference("gemnet_oc"), forces=FORCES)
    wrong = {**checkpoint("dimenet")["normalizers"], "forces": dict(FORCES)}
    with pytest.raises(CheckpointError, match=r"0\.6 times the derivative"):
        convert(checkpoint("dimenet", normalizers=wrong), tmp_path)


@pytest.mark.parametrize("layout", ["v1", "hydra", "legacy"])
def test_a_dimenet_for_energies_alone(layout, tmp_path):
    """As IS2RE has them: there are no forces to normalise."""
    contents = checkpoint("dimenet", layout)
    section = contents["config"]["model"] if layout != "legacy" else contents["config"]["model_attributes"]
    section.get("backbone", section)["regress_forces"] = False
    contents["normalizers"] = {"energy": contents["normalizers"].get("energy", contents["normalizers"].get("target"))}
    check_outputs(convert(contents, tmp_path).model, reference("dimenet"), forces=SAME)
