"""Our models against reference outputs of the public implementations, to 1e-9 in float64; and the program that compares them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastkd.errors import CheckpointError, DataError
from fastkd.models.ocp import load_painn, load_schnet
from tests import parity

FILES = sorted((Path(__file__).parents[1] / "fixtures" / "parity").glob("ocp_[ps]*.safetensors"))
MULTIPLEX = sorted((Path(__file__).parents[1] / "fixtures" / "parity").glob("[mp]*net_qm9.safetensors"))


def write(path, file, **changes):
    """A file with some of its groups changed."""
    groups = {"state": file.state, "in": file.inputs, "out": file.outputs, **{k: v for k, v in changes.items() if k in ("state", "out")}}
    tensors = {f"{group}/{name}": value.contiguous() for group, values in groups.items() for name, value in values.items()}
    save_file(tensors, path, metadata={"model": changes.get("model", file.model), "config": json.dumps(changes.get("config", file.config))})
    return path


def test_the_files_are_here():
    assert [path.stem for path in MULTIPLEX] == ["mxmnet_qm9", "pamnet_qm9"]
    assert [path.stem for path in FILES] == ["ocp_painn_molecules", "ocp_painn_slabs", "ocp_schnet_molecules", "ocp_schnet_slabs"]


@pytest.mark.parametrize("path", [*FILES, *MULTIPLEX], ids=lambda path: path.stem)
def test_every_output_agrees(path):
    file = parity.read(path)
    comparisons = parity.compare(file)
    assert {item.output for item in comparisons} == set(file.outputs)
    assert max(item.relative for item in comparisons) < 1e-12  # three digits inside the tolerance


@pytest.mark.parametrize("path", [*FILES[::2], *MULTIPLEX], ids=lambda path: path.stem)
def test_a_wrong_output_is_noticed(path, tmp_path, capsys):
    file = parity.read(path)
    for output in file.outputs:
        wrong = file.outputs[output].clone()
        wrong.flatten()[-1] += 1e-6 * wrong.abs().max()
        assert parity.main([str(write(tmp_path / "wrong.safetensors", file, out={**file.outputs, output: wrong}))]) == 1
        assert "FAILED" in capsys.readouterr().out


def test_exit_statuses(tmp_path, capsys):
    assert parity.main([str(path) for path in FILES]) == 0
    assert capsys.readouterr().out.count(" ok") == 16
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    save_file({"state/some.weight": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"model": "pamnet_qm9", "config": "{}"})
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    for name, message in [
        ("broken", "not a readable"),
        ("other", "unexpected tensor 'some.weight'"),
        ("plain", "no 'config'"),
        ("none", "none"),
    ]:
        assert parity.main([str(tmp_path / f"{name}.safetensors")]) == 2
        assert message in capsys.readouterr().err
    assert parity.main([]) == 2


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("painn", {"rbf": {"name": "spherical_bessel"}}, "spherical_bessel"),
        ("painn", {"direct_forces": False}, "direct_forces=False"),
        ("painn", {"hidden_channels": 16}, "does not fit"),
        ("schnet", {"readout": "max"}, "'max'"),
        ("schnet", {"num_gaussians": 9}, "does not fit"),
    ],
)
def test_variants_that_are_not_supported(family, change, message):
    file = parity.read(next(path for path in FILES if family in path.name))
    with pytest.raises(CheckpointError, match=message):
        parity.FAMILIES[family][1]({**file.config, **change}, file.state)


def test_unknown_and_missing_tensors():
    painn, schnet = parity.read(FILES[0]), parity.read(FILES[2])
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'surprise\.weight'"):
        load_painn(painn.config, {**painn.state, "surprise.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="missing"):
        load_painn(painn.config, {k: v for k, v in painn.state.items() if "layers.0.rbf_proj" not in k})
    with pytest.raises(CheckpointError, match="embeddings is missing"):
        load_schnet(schnet.config, {k: v for k, v in schnet.state.items() if k != "embedding.weight"})


def test_wrapped_names_and_fitted_scales():
    file = parity.read(FILES[0])
    plain, wrapped = (load_painn(file.config, state) for state in (file.state, {f"module.module.{k}": v for k, v in file.state.items()}))
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), wrapped.model.parameters(), strict=True))
    assert set(plain.maps) == {"n2n", "n2e", "v2v", "e2e"}
    assert plain.maps["v2v"][1] is None
    scaled = load_painn(file.config, {**file.state, "upd_out_scalar_scale_1.scale_factor": torch.tensor(2.0, dtype=torch.float64)})
    assert scaled.model.scales.tolist() == [1.0, 2.0, 1.0]
    batch = parity.make_batch(file.inputs, plain)
    assert not torch.allclose(scaled.model(batch).energy, plain.model(batch).energy)


def test_only_elements_of_the_reference_are_known():
    file = parity.read(FILES[0])
    model = load_painn(file.config, file.state).model
    assert model.known_element.nonzero().flatten().tolist() == list(range(1, 84))


def test_mean_readout():
    file = parity.read(FILES[2])
    mean = load_schnet({**file.config, "readout": "mean"}, file.state)
    batch = parity.make_batch(file.inputs, mean)
    torch.testing.assert_close(mean.model(batch).energy, file.outputs["energy"] / file.inputs["natoms"])


def test_a_model_that_cannot_be_told_is_refused(tmp_path):
    file = parity.read(FILES[0])
    with pytest.raises(DataError, match="cannot tell"):
        parity.family(parity.read(write(tmp_path / "x.safetensors", file, state={"a": torch.zeros(1)}, model="mystery")))
