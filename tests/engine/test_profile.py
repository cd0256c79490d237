"""``fastkd profile``: parts add up to the step, terms and caches are accounted for, and steps are what they were."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastkd.cli import main
from fastkd.config_loading import load_config
from fastkd.engine.profile import ALL, ALONE, Cache, Profile, cache_bytes, profile, timer_cost
from fastkd.engine.profile_command import duration, sentences, size
from fastkd.engine.setup import Workbench, prepare
from fastkd.engine.step import train_step
from fastkd.engine.timing import OFF, StepTimer
from fastkd.errors import ConfigError
from fastkd.teachers import CachedTeacher, LiveTeacher, TeacherOutput
from fastkd.teachers.store import MemoryStore

from .synthetic import make_job

TERMS = "distill.terms=[{kind: n2n}, {kind: forces}]"


def quiet(_: str) -> None:
    pass


def test_parts_add_up_to_the_step(config_file: Path, teacher_folder: Path) -> None:
    config = load_config(config_file, [f"teacher.path={teacher_folder}", "teacher.cache=none", TERMS])
    found = profile(config, steps=6, warmup=1, say=quiet)
    assert set(found.parts) == {
        *("data", "teacher", "student energy", "student forces", "labels", "kd n2n", "kd forces", "backward", "optimiser", "rest"),
    }
    assert list(found.parts)[:2] == ["data", "teacher"]
    assert all(found.parts[name] > 0 for name in ("teacher", "student energy", "kd n2n", "backward", "optimiser"))
    # medians of parts, against the median of sums: they need not agree exactly
    assert sum(found.parts.values()) == pytest.approx(found.step, rel=0.5)
    assert set(found.variants) == {ALL, "without n2n", "without forces", ALONE}
    assert set(found.overhead) == {"n2n", "forces"}
    assert found.mode == "none"
    assert found.cache is not None
    assert found.cache.steps == 12
    assert found.cache.structures == 8
    assert found.cache.saved_s == pytest.approx(1e-3 * 12 * (found.cache.live_ms - found.cache.cached_ms) - found.cache.build_s)
    assert 0 < found.timer_us < 1e3 * found.step


def test_a_cache_costs_what_was_said(config_file: Path, teacher_folder: Path) -> None:
    """The bytes that are foretold are those of a real cache."""
    options = [f"teacher.path={teacher_folder}", "distill.terms=[{kind: n2n}, {kind: v2v}, {kind: energy}, {kind: e2n, reduce: mean}]"]
    config = load_config(config_file, options)
    found = profile(config, steps=3, warmup=1, say=quiet)
    assert found.mode == "memory"
    job, _ = prepare(config, "cached", Workbench(say=quiet), resume=False)
    cached = job.trainee.teacher
    assert isinstance(cached, CachedTeacher)
    assert isinstance(cached.store, MemoryStore)
    kept = sum(value.numel() * value.element_size() for value in cached.store.values.values())
    assert found.cache is not None
    assert found.cache.bytes == kept


def test_bytes_of_structures_and_atoms(tmp_path: Path) -> None:
    job = make_job(tmp_path, TERMS)
    batch = next(job.batches)
    assert isinstance(job.trainee.teacher, LiveTeacher)
    assert job.trainee.terms is not None
    output = job.trainee.teacher(batch)
    # positions, 12 features and 3 components of forces, in float32
    assert cache_bytes(output, job.trainee.terms, batch, structures=10, atoms=50) == 50 * 4 * (3 + 12 + 3)
    job.trainee.terms.needs = frozenset({"energy"})
    output = TeacherOutput(energy=torch.zeros(4, dtype=torch.float64))
    assert cache_bytes(output, job.trainee.terms, batch, structures=10, atoms=50) == 50 * 12 + 10 * 8


def test_bytes_of_layers_and_edges(tmp_path: Path) -> None:
    job = make_job(tmp_path, TERMS)
    batch = next(job.batches)
    assert isinstance(job.trainee.teacher, LiveTeacher)
    assert job.trainee.terms is not None
    teacher = job.trainee.teacher.teacher
    job.trainee.terms.needs = frozenset({"node@regular_0", "edge"})
    output = teacher(batch, job.trainee.terms.needs)
    assert output.graph is not None
    assert output.edge is not None
    node, edges = output.get("node@regular_0"), 3 * output.graph.num_edges
    assert node is not None
    # an edge has its feature, source, target, three shifts and three components of its direction
    want = 3 * batch.num_atoms * 4 * (3 + node.shape[1]) + edges * (4 * output.edge.shape[1] + 8 * (1 + 1 + 3) + 4 * 3)
    assert cache_bytes(output, job.trainee.terms, batch, structures=10, atoms=3 * batch.num_atoms) == want


def test_without_distillation_there_are_no_terms(config_file: Path) -> None:
    found = profile(load_config(config_file, []), steps=3, warmup=1, say=quiet)
    assert "teacher" not in found.parts
    assert (found.variants, found.overhead, found.cache) == ({}, {}, None)
    assert any("no distillation" in line for line in sentences(found))


def test_a_timer_changes_no_bit(tmp_path: Path) -> None:
    plain, timed = make_job(tmp_path / "a", TERMS), make_job(tmp_path / "b", TERMS)
    timed.trainee.timer = StepTimer(torch.device("cpu"))
    for step in range(3):
        timed.trainee.timer.next_step()
        for job in (plain, timed):
            train_step(job.trainee, next(job.batches), 1e-2, step)
    for one, other in zip(plain.trainee.parameters, timed.trainee.parameters, strict=True):
        assert torch.equal(one, other)
    rows = timed.trainee.timer.milliseconds()
    assert len(rows) == 3
    assert all({"teacher", "student", "labels", "backward", "optimiser"} == set(row) for row in rows)


def test_the_clock_tells_the_time() -> None:
    timer = StepTimer(torch.device("cpu"))
    with timer.part("before the first step"):
        pass
    timer.next_step()
    for _ in range(2):
        with timer.part("sleep"):
            time.sleep(0.01)
    assert timer.wrap("sum", sum)([1, 2]) == 3
    (row,) = timer.milliseconds()
    assert set(row) == {"sleep", "sum"}
    assert row["sleep"] >= 20
    assert timer_cost(torch.device("cpu")) < 1e4
    with OFF.part("nothing"):
        pass
    assert OFF.milliseconds() == []


def test_terms_are_as_before_when_it_is_done(config_file: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []
    monkeypatch.setattr("fastkd.engine.profile.prepare", lambda *args, **kw: jobs.append(prepare(*args, **kw)) or jobs[-1])
    profile(load_config(config_file, [f"teacher.path={teacher_folder}", TERMS]), steps=3, warmup=1, say=quiet)
    terms = jobs[0][0].trainee.terms
    assert terms is not None
    assert all("raw" not in vars(term) for term in terms.terms.values())


def test_the_command(config_file: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", str(config_file), f"teacher.path={teacher_folder}", "teacher.cache=none", TERMS, "--steps", "3", "--warmup", "1"]
    out = tmp_path / "profile.json"
    assert main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "double backward" in said
    assert "% of the step; caching " in said
    assert "without n2n" in said
    content = json.loads(out.read_text())
    assert content["percent"]["teacher"] == pytest.approx(100 * content["parts"]["teacher"] / content["step"])
    assert content["sentences"]
    assert content["config"]["train"]["steps"] == 12
    assert main([*words, "--out", str(out)]) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [["--steps", "2"], ["--warmup", "0"], ["compare.arms=[{name: a}]"]])
def test_mistakes(change: list[str], config_file: Path) -> None:
    assert main(["profile", str(config_file), *change]) == 2


def test_a_comparison_is_refused(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"compare.arms=\[\]"):
        profile(load_config(config_file, ["compare.arms=[{name: a}]"]), say=quiet)


def made_up(mode: str, saved: float) -> Profile:
    cache = Cache(live_ms=41.0, cached_ms=0.5, build_s=90.0, saved_s=saved, bytes=22_000_000_000, structures=1_000_000, steps=60_000)
    parts = {"data": 1.0, "teacher": 41.0 if mode == "none" else 0.5, "kd n2n": 2.0, "backward": 30.0, "rest": 1.0}
    return Profile(
        parts, 100.0, {ALL: 100.0, "without n2n": 97.0, ALONE: 50.0}, {"n2n": 3.0, "forces": 2.0}, cache, mode, 30, 200.0, "cpu", 1, 5.0
    )


def test_the_sentence_that_matters() -> None:
    first, second, _ = sentences(made_up("none", 38 * 60.0))
    assert first == (
        "the teacher is 41 % of the step; caching saves 38 min of 100 min (60,000 steps) and costs 22 GB for 1,000,000 structures"
    )
    assert "2.00 times as long as the student's own" in second
    assert "n2n adds most (+3.00 ms" in second
    noisy = replace(made_up("none", 1.0), overhead={"n2n": -0.1, "forces": -0.2})
    assert "lost in the noise" in sentences(noisy)[1]
    assert "caching loses 10 s" in sentences(made_up("none", -10.0))[0]
    assert "live the teacher would be 29 %" in sentences(made_up("memory", 60.0))[0]


def test_durations_and_sizes_in_words() -> None:
    assert [duration(s) for s in (0.04, 59, 121, 7199, 7200, 360000)] == ["0.0 s", "59 s", "2.0 min", "120 min", "2.0 h", "100 h"]
    assert [size(n) for n in (12, 1500, 22_000_000, 22_400_000_000, 5_000_000_000_000_000)] == [
        "12 B",
        "1.5 kB",
        "22 MB",
        "22 GB",
        "5000 TB",
    ]
