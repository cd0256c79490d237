"""Runs whose teacher is read from a file: the same bits as from memory, and files that others use, or must not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastkd.cli import main
from fastkd.config_loading import load_config
from fastkd.engine import sources as module
from fastkd.engine.run import run
from fastkd.engine.setup import Workbench, prepare
from fastkd.engine.state import load_checkpoint
from fastkd.engine.teacher_cache import Verdict
from fastkd.models import save_model
from fastkd.teachers import LiveTeacher
from fastkd.teachers.cache_file import CacheFile, open_cache
from fastkd.teachers.store import MemoryStore

from .synthetic import same, seeded_model

TERMS = "distill.terms=[{kind: forces}, {kind: n2n, teacher_layer: regular_1}, {kind: e2n}]"


@pytest.fixture
def words(config_file: Path, tmp_path: Path, teacher_folder: Path) -> list[str]:
    return [
        str(config_file),
        f"teacher.path={teacher_folder}",
        f"teacher.cache_path={tmp_path / 'kept'}",
        TERMS,
        "teacher.cache=disk",
        "data.labelled=0",
    ]


def start(words: list[str], *options: str) -> str:
    screen = io.StringIO()
    run(load_config(words[0], [*words[1:], *options]), Console(file=screen, width=500))
    return screen.getvalue()


def test_a_run_from_a_file_is_bitwise_that_from_memory(words: list[str], tmp_path: Path) -> None:
    start(words, "teacher.cache=memory", f"run.dir={tmp_path / 'memory'}")
    said = start(words, f"run.dir={tmp_path / 'disk'}", "teacher.cache_preload=0")
    assert "24 structures asked of the teacher" in said
    again = start(words, f"run.dir={tmp_path / 'again'}")
    assert "asked of the teacher" not in again
    assert "loaded into memory" in again
    wanted = load_checkpoint(tmp_path / "memory").tree
    for other in ("disk", "again"):
        tree = load_checkpoint(tmp_path / other).tree
        for part in ("weights", "projections", "average", "optimizer"):
            same(tree[part], wanted[part])
    assert len(list((tmp_path / "kept").glob("*.h5"))) == 1


def test_the_store_is_a_file_or_memory_as_the_config_says(words: list[str]) -> None:
    for preload, kind in (("0", CacheFile), ("1", MemoryStore)):
        job, _ = prepare(load_config(words[0], [*words[1:], f"teacher.cache_preload={preload}"]), "x", Workbench(print), resume=False)
        assert type(job.trainee.teacher.store) is kind


def test_dtypes_say_what_they_cost_and_change_the_loss_by_as_much(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "build", *words, "teacher.cache_dtype=bfloat16"]) == 0
    said = capsys.readouterr().out
    assert "relative errors of what is kept: edge_sum 0.00" in said
    assert "of the loss at the start: " in said
    (path,) = Path(words[2].split("=")[1]).glob("*.h5")
    with open_cache(path) as file:
        errors = file.told["loss_error"]
    # forces are kept whole
    assert errors["forces"] == 0.0
    assert 0 < errors["n2n"] < 2e-2
    assert 0 < errors["e2n"] < 2e-2
    assert main(["cache", "inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "every checksum is right" in text
    assert "node@regular_1" in text
    assert "loss n2n at the start of training: relative error" in text
    assert main(["cache", "inspect", "--json", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["structures"] == 24
    assert facts["arrays"]["edge_sum"]["dtype"] == "bfloat16"
    # the loss of the first batch, from the file and live
    config = load_config(words[0], [*words[1:], "teacher.cache_dtype=bfloat16", "data.batch_size=4"])
    job, data = prepare(config, "x", Workbench(print), resume=False)
    batch = data.dataset(5.0).batch(data.selection.train[:4].tolist())
    losses = []
    for source in (job.trainee.teacher, LiveTeacher(job.teacher, job.trainee.terms.needs)):
        output = source(batch)
        found = job.trainee.terms(job.trainee.student(batch), output, batch)
        losses.append({name: float(value.raw.detach()) for name, value in found.items()})
    for name, error in errors.items():
        assert abs(losses[0][name] - losses[1][name]) / losses[1][name] == pytest.approx(error, rel=0.05, abs=1e-6), name


def test_a_file_of_another_teacher_is_refused_with_exit_2(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = f"teacher.cache_path={tmp_path / 'one.h5'}"
    assert main(["cache", "build", *words, file]) == 0
    save_model(seeded_model(12, 98), tmp_path / "other")
    refused = {
        "was made for another teacher's weights": [f"teacher.path={tmp_path / 'other'}"],
        "was made for other training structures: it has 0 of 6": ["data.train_split=test", "data.test_split=train"],
        "lacks vector of the teacher": ["distill.terms=[{kind: v2v}]"],
        "was made for another dtype": ["run.dtype=float64", "teacher.dtype=float32"],
        "dtypes that features are kept in": ["teacher.cache_dtype=float16"],
    }
    for message, options in refused.items():
        capsys.readouterr()
        assert main(["train", *words, file, *options]) == 2, message
        assert message in capsys.readouterr().err
    (tmp_path / "one.h5").write_bytes((tmp_path / "one.h5").read_bytes()[:300])
    assert main(["train", *words, file]) == 2
    assert "damaged or truncated" in capsys.readouterr().err
    assert main(["cache", "inspect", str(tmp_path / "one.h5")]) == 2
    assert main(["cache", "inspect", str(tmp_path / "none.h5")]) == 2
    assert main(["cache", "build", *words, "distill.terms=[]"]) == 2


def test_ranks_of_the_command(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastkd.data.dataset import StructureDataset

    real = StructureDataset.chunks
    monkeypatch.setattr(StructureDataset, "chunks", lambda self, indices, **_: real(self, indices, max_structures=5))
    assert main(["cache", "build", *words, "--rank", "1", "--world", "2"]) == 0
    assert "2 of 5 batches are left to other ranks" in capsys.readouterr().out
    assert main(["cache", "build", *words, "--rank", "0", "--world", "2"]) == 0
    assert "teacher outputs on disk" in capsys.readouterr().out
    assert main(["cache", "build", *words]) == 0
    assert "asked of the teacher" not in capsys.readouterr().out
    assert main(["cache", "build", *words, "--rank", "2", "--world", "2"]) == 2


@pytest.mark.parametrize(
    ("live", "cached", "size", "free", "exists", "kept"),
    [
        (100.0, 10.0, 1e9, 1e12, False, True),
        (100.0, 10.0, 8.9e9, 1e12, False, True),
        (100.0, 10.0, 9.1e9, 1e12, False, False),  # fewer than 10 s per GB
        (100.0, 10.0, 1e9, 1.9e9, False, False),  # more than half of what is free
        (10.0, 11.0, 0.0, 1e12, False, False),
        (10.0, 11.0, 1e12, 0.0, True, True),
    ],
)
def test_auto_weighs_disk_against_time(live: float, cached: float, size: float, free: float, exists: bool, kept: bool) -> None:
    verdict = Verdict(live, cached, int(size), int(free), exists)
    assert verdict.cached is kept
    assert ("on disk" if kept else "live") in str(verdict)


def test_auto_goes_on_as_it_began(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = module.judge

    def judged(*arguments: object, **more: object) -> Verdict:
        verdict = real(*arguments, **more)  # type: ignore[arg-type]
        assert 0 < verdict.live_s < 100
        # positions, forces, and two features of width 12
        assert verdict.bytes == 24 * 5 * 4 * (3 + 3 + 12 + 12)
        asked.append("")
        return Verdict(1.0, 2.0, verdict.bytes, verdict.free, exists=False)

    monkeypatch.setattr(module, "judge", judged)
    said = start(words, "teacher.cache=auto", "train.schedule=constant")
    assert "teacher.cache=auto: live, because a cache takes" in said
    said = start(words, "teacher.cache=auto", "train.schedule=constant", "train.steps=14", "run.resume=true")
    assert "teacher.cache=auto" not in said
    assert len(asked) == 1
    assert not (tmp_path / "kept").exists()
    monkeypatch.undo()
    assert main(["cache", "build", *words]) == 0
    said = start(words, "teacher.cache=auto", f"run.dir={tmp_path / 'there'}")
    assert "teacher.cache=auto: on disk, because the cache is there" in said
    assert not load_checkpoint(tmp_path / "there").tree["live_teachers"]


def test_arms_share_a_file(words: list[str], tmp_path: Path) -> None:
    arms = "compare.arms=[{name: a, set: {distill.terms: [{kind: n2n}]}}, {name: b, set: {distill.terms: [{kind: e2n}]}}]"
    assert main(["cache", "build", *words, arms]) == 0
    (path,) = (tmp_path / "kept").glob("*.h5")
    with open_cache(path) as file:
        assert file.key.needs == {"node", "edge_sum"}
        assert torch.equal(file.layout.atom_start.diff(), torch.full((24,), 5))
