"""``fastkd fit-scales``: from data to a file to a model that starts with the factors in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastkd.cli import main
from fastkd.config import ModelConfig
from fastkd.models import GemNetOC, build_model, load_model, save_model
from fastkd.models.gemnet_oc import GemNetOCOptions, read_scales
from fastkd.models.gemnet_oc.layers import ScaleFactor

MODEL = {"kind": "gemnet_oc", "width": 8, "layers": 1, "radial": 6, "cutoff": 4.0}
SMALL = ("--batches", "2", "--batch-size", "3")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {json.dumps(MODEL)}\nrun: {{seed: 3}}\n")
    return path


def factors(model: torch.nn.Module) -> dict[str, ScaleFactor]:
    return {f"{name}.factor": module for name, module in model.named_modules() if isinstance(module, ScaleFactor)}


def started(**changes: object) -> GemNetOC:
    """The model that a training with the config starts from."""
    torch.manual_seed(3)
    model = build_model(ModelConfig.model_validate({**MODEL, **changes}))
    assert isinstance(model, GemNetOC)
    return model


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_from_a_config_to_a_model_with_these_factors(config: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = config.with_name(f"scales{suffix}")
    assert main(["fit-scales", str(config), "embedded", "--out", str(out), *SMALL]) == 0
    assert f"model.scale_file={out}" in capsys.readouterr().out
    written, plain, model = read_scales(out), started(), started(scale_file=str(out))
    assert set(written) == set(factors(plain))
    for name, scale in factors(model).items():
        assert scale.factor.item() == pytest.approx(written[name], rel=1e-6)
    assert any(abs(value - 1) > 0.05 for value in written.values())
    assert all(scale.factor.item() == 1 for scale in factors(plain).values())
    # weights are those of a training without factors
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_variances_are_those_of_what_went_in(config: Path) -> None:
    from fastkd.data.dataset import StructureDataset
    from fastkd.data.select import open_data_file
    from fastkd.engine.evaluate_command import chosen

    out = config.with_name("scales.json")
    # all structures of a system, so that the test needs no knowledge of the choice
    file = open_data_file("embedded")
    indices = chosen(file, "val", ["ethanol"]).tolist()
    arguments = ("--split", "val", "--systems", "ethanol", "--batches", "1", "--batch-size", str(len(indices)))
    assert main(["fit-scales", str(config), "embedded", "--out", str(out), *arguments]) == 0
    model = started(scale_file=str(out)).eval()
    seen: dict[str, tuple[float, float]] = {}
    for name, scale in factors(model).items():
        scale.observer = lambda x, reference, name=name: seen.update({name: (_variance(x), _variance(reference))})
    (batch,) = StructureDataset(file, [model.cutoff]).batches(indices, max_structures=len(indices), max_atoms=10**6)
    model(batch, forces=False)
    assert set(seen) == set(factors(model))
    for name, (after, reference) in seen.items():
        assert after == pytest.approx(reference, rel=1e-4), name


def _variance(x: torch.Tensor) -> float:
    return x.detach().double().var(dim=0).mean().item()


def test_of_a_checkpoint_and_once_more(config: Path) -> None:
    save_model(started(), config.with_name("model.safetensors"))
    out = config.with_name("scales.json")
    arguments = ["fit-scales", str(config.with_name("model.safetensors")), "embedded", "--out", str(out), *SMALL]
    assert main(arguments) == 0
    first = out.read_text()
    assert main([*arguments, "--overwrite"]) == 0
    assert out.read_text() == first
    # a config whose own scale file is the one that is made again
    config.write_text(config.read_text().replace('"kind"', f'"scale_file": {json.dumps(str(out))}, "kind"'))
    assert main(["fit-scales", str(config), "embedded", "--out", str(out), "--overwrite", *SMALL]) == 0
    assert out.read_text() == first
    assert isinstance(load_model(config.with_name("model.safetensors")), GemNetOC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--out", "{folder}/scales.txt"], "ends in .json or .pt"),
        (["--batches", "0"], "--batches must be at least 1"),
        (["--split", "nowhere"], "no structures in split 'nowhere'"),
        (["--out", "{folder}/there.json"], "add --overwrite"),
        (["model.kind=painn"], "only GemNet-OC has scale factors"),
        (["model.widht=3"], "model.width"),
    ],
)
def test_mistakes_exit_2(config: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    config.with_name("there.json").write_text("{}")
    change = [item.format(folder=config.parent) for item in change]
    given = ["fit-scales", str(config), "embedded", *(change if "=" in change[0] else ()), "--out", str(config.with_name("scales.json"))]
    assert main([*given, *(() if "=" in change[0] else change)]) == 2
    assert message in capsys.readouterr().err
    assert not config.with_name("scales.json").exists()


def test_checkpoints_have_no_options_and_files_must_fit(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-scales", str(config.parent), "embedded", "model.width=4", "--out", str(config.with_name("s.json"))]) == 2
    assert "a checkpoint has no options" in capsys.readouterr().err
    assert GemNetOCOptions().layers != MODEL["layers"]
    out = config.with_name("scales.json")
    assert main(["fit-scales", str(config), "embedded", "--out", str(out), *SMALL]) == 0
    assert main(["train", str(config), "model.layers=2", f"model.scale_file={out}", f"run.dir={config.parent / 'run'}"]) == 2
    assert "the file is of a model with other blocks" in capsys.readouterr().err
    assert main(["train", str(config), "model.kind=painn", f"model.scale_file={out}", f"run.dir={config.parent / 'other'}"]) == 2
    assert "only GemNet-OC has scale factors" in capsys.readouterr().err
