"""Commands, reports and mistakes where features of distillation meet: several teachers, caches, Hessians, moved atoms, weights from gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastkd.cli import main
from fastkd.config_loading import load_config, read_yaml
from fastkd.distill.augment import Adversarial
from fastkd.engine import teacher_cache
from fastkd.engine.profile import _with_terms, profile
from fastkd.engine.setup import Workbench, prepare
from fastkd.engine.step import batch_loss
from fastkd.teachers import LiveTeacher
from fastkd.teachers.cache_file import open_cache
from fastkd.teachers.committee import Council

from .test_seams import filled, job_of, pair_of


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


def test_one_file_for_several_teachers_is_refused(
    config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    one, terms = tmp_path / "one.h5", "distill.terms=[{kind: forces}]"
    two = pair_of(teacher_folders, "disk", "auto", f", cache_path: '{one}'")
    ensemble = [f"teacher.path={teacher_folders['big']}", f"teacher.members=['{teacher_folders['other']}']", f"teacher.cache_path={one}"]
    assert "cache_path of teachers big and small" in refused(["train", str(config_file), terms, two], capsys)
    message = refused(["train", str(config_file), terms, *ensemble, "teacher.cache=disk"], capsys)
    assert "is one file, and a cache holds what one teacher says; name a folder" in message
    # the command keeps on disk what the config keeps in memory
    for options in (ensemble, [pair_of(teacher_folders, more=f", cache_path: '{one}'")]):
        assert "name a folder" in refused(["cache", "build", str(config_file), terms, *options], capsys)
    assert not one.exists()
    load_config(config_file, [terms, two.replace("cache: disk", "cache: none")])


@pytest.mark.parametrize("kind", ["several", "ensemble"])
def test_caches_of_several_teachers_are_built_and_used(
    kind: str, config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kept, words = (
        tmp_path / "kept",
        ["distill.terms=[{kind: forces, agree: 0.5}, {kind: hessian}]", "train.steps=2", "train.evaluate_every=2"],
    )
    if kind == "several":
        words.append(pair_of(teacher_folders, "disk", "disk", f", cache_path: '{kept}'"))
    else:
        words += [
            f"teacher.path={teacher_folders['big']}",
            f"teacher.members=['{teacher_folders['other']}']",
            "teacher.cache=disk",
            f"teacher.cache_path={kept}",
        ]
    assert main(["cache", "build", str(config_file), *words]) == 0
    hashes = set()
    for path in kept.glob("*.h5"):
        with open_cache(path) as file:
            file.check()
            hashes.add(file.key.teacher)
            assert file.arrays["hessian_rows@exact"]["shape"] == (3 * 25 * 8, 3)
    assert len(hashes) == 2
    capsys.readouterr()
    assert main(["train", str(config_file), *words]) == 0
    said = capsys.readouterr().out
    assert said.count("teacher outputs on disk") == 2
    assert "asked of the teacher" not in said


def arms_of(teacher_folders: dict[str, Path], kept: Path, moved: str) -> list[str]:
    arms = "[{name: still, set: {distill.terms: [{kind: n2n}, {kind: forces}]}}, "
    arms += "{name: also, set: {distill.terms: [{kind: v2v}]}}, "
    arms += f"{{name: moved, set: {{augment.kind: rattle, distill.terms: [{moved}]}}}}]"
    words = [f"compare.arms={arms}", f"teacher.path={teacher_folders['big']}", "teacher.cache=disk", f"teacher.cache_path={kept}"]
    return [*words, "teacher.cache_dtype={vector: bfloat16}", "train.steps=2", "train.evaluate_every=2"]


def test_arms_that_move_atoms_leave_the_cache_to_the_others(
    config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = arms_of(teacher_folders, tmp_path / "kept", "{kind: hessian}")
    assert main(["cache", "build", str(config_file), *words]) == 0
    (path,) = (tmp_path / "kept").glob("*.h5")
    with open_cache(path) as file:
        # whole Hessians, for nobody, would be most of the file
        assert file.key.needs == {"node", "forces", "vector"}
        # the first arm asks for no vectors, which are kept for the second
        assert dict(file.key.dtypes)["vector"] == "bfloat16"
    capsys.readouterr()
    assert main(["train", str(config_file), *words]) == 0
    said = capsys.readouterr().out
    assert "moves atoms: the teacher is asked anew" in said
    assert "asked of the teacher in" not in said
    alone = [word for word in words if not word.startswith(("compare.arms", "teacher.cache_dtype"))]
    message = refused(["cache", "build", str(config_file), *alone, "augment.kind=rattle", "distill.terms=[{kind: n2n}]"], capsys)
    assert "moves atoms, so a run cannot use a cache" in message


def test_auto_reckons_with_the_rows_of_a_step(
    config_file: Path, teacher_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache holds all rows of each Hessian; a live teacher is asked for two of them."""
    asked: list[int] = []
    timed = teacher_cache._timed

    def spy(teacher: Any, batch: Any, needs: Any) -> Any:
        asked.append(0 if batch.hessian_rows is None else len(batch.hessian_rows))
        output, seconds = timed(teacher, batch, needs)
        return output, 1.0 if asked[-1] == 15 else 0.25 if asked[-1] else seconds

    monkeypatch.setattr(teacher_cache, "_timed", spy)
    options = [
        f"teacher.path={teacher_folders['big']}",
        "teacher.cache=auto",
        f"teacher.cache_path={tmp_path / 'kept'}",
        "train.steps=100",
        "distill.terms=[{kind: hessian, rows: 2}]",
    ]
    said: list[str] = []
    prepare(load_config(config_file, options), "x", Workbench(said.append), resume=False)
    assert asked == [15, 2]
    # 100 steps of 0.25 s; building: 8 structures in batches of 4 at 1 s, and a few µs of disk
    assert any("saves 23 s of 25 s" in line for line in said), said


def test_adversaries_climb_the_terms_as_the_run_weighs_them(config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path]) -> None:
    terms = "distill.terms=[{kind: n2n, teacher: big, weight_rule: gradient_ratio, weight: 0.5}, {kind: forces, weight: 3}]"
    options = (pair_of(teacher_folders, "none", "none"), "augment.kind=adversarial", "distill.gradient_every=1", terms)
    job = job_of(config_file, tmp_path / "run", *options)
    trainee, batch = job.trainee, next(job.batches)
    batch_loss(trainee, batch, 0)
    balance, adversary = trainee.balance, trainee.perturbation
    assert isinstance(adversary, Adversarial)
    assert balance.scale("n2n") not in (0.0, 1.0)
    assert balance.scale("forces") == 1.0
    moved = adversary(batch, trainee.student, trainee.teacher, trainee.terms, 0)
    climbed = adversary.objective(moved, trainee.student, trainee.teacher, trainee.terms, 0)
    values = trainee.terms(trainee.student(moved), trainee.teacher(moved), moved, 0)
    wanted = 0.5 * balance.scale("n2n") * values["n2n"].raw.double() + 3 * values["forces"].raw.double()
    torch.testing.assert_close(climbed.detach(), wanted.detach(), rtol=1e-4, atol=0)


def test_forces_of_unlabelled_structures_cost_forces_alone(
    config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = "distill.terms=[{kind: hessian, teacher: big}, {kind: n2n, teacher: small}, {kind: forces}]"
    options = (pair_of(teacher_folders, "none", "none"), "augment.kind=rattle", "augment.along_force=only", "data.unlabelled=16", terms)
    job = job_of(config_file, tmp_path / "run", *options)
    asked: list[frozenset[str]] = []
    ask = LiveTeacher.ask

    def spy(self: LiveTeacher, batch: Any, needs: frozenset[str], **more: Any) -> Any:
        asked.append(needs)
        return ask(self, batch, needs, **more)

    monkeypatch.setattr(LiveTeacher, "ask", spy)
    batch = next(job.batches)
    assert not bool(batch.labelled.all())
    batch_loss(job.trainee, batch, 0)
    assert asked == [frozenset({"forces"})] * 2


def test_a_rule_compares_with_the_teacher_of_its_term(config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path]) -> None:
    terms = "distill.terms=[{kind: forces, when_passed: halve}, {kind: n2n, teacher: big, when_passed: stop}, {kind: v2v, teacher: small}]"
    job = job_of(config_file, tmp_path / "run", pair_of(teacher_folders), terms)
    balance = job.trainee.balance
    assert set(balance.bars) == {"", "big"}
    assert balance.bars[""].forces != balance.bars["big"].forces
    best = replace_errors(balance.bars["big"], 0.99)
    mean = replace_errors(balance.bars[""], 1.01)
    lines = balance.observe(type(best)(mean.energy, mean.forces, best.score), 7)
    assert len(lines) == 1
    assert "has passed the teacher big on validation" in lines[0]
    assert (balance.scale("n2n"), balance.scale("forces")) == (0.0, 1.0)


def replace_errors(errors: Any, factor: float) -> Any:
    return type(errors)(factor * errors.energy, factor * errors.forces, factor * errors.score)


def test_a_profile_without_the_terms_that_need_a_teacher(config_file: Path, teacher_folders: dict[str, Path]) -> None:
    common = [pair_of(teacher_folders, "disk", "auto"), "data.unlabelled=4"]
    options = [*common, "augment.kind=rattle", "distill.terms=[{kind: n2n, teacher: big}, {kind: lkm}, {kind: hessian, teacher: small}]"]
    config = load_config(config_file, options)
    found = profile(config, steps=3, warmup=1, say=lambda _: None)
    assert list(found.variants) == ["all terms", "without n2n", "without lkm", "without hessian", "student alone"]
    assert found.cache is None
    live = config.model_copy(update={"teachers": [item.model_copy(update={"cache": "none"}) for item in config.teachers]})
    trainee = prepare(live, "x", Workbench(lambda _: None), resume=False)[0].trainee
    assert isinstance(trainee.teacher, Council)
    left = _with_terms(trainee, ["n2n", "lkm"], trainee.teacher)
    assert list(left.teacher.sources) == ["big"]
    assert left.perturbation is trainee.perturbation
    own = _with_terms(trainee, ["lkm"], trainee.teacher)
    assert own.teacher is None
    assert own.perturbation is None


def test_a_profile_pays_for_whole_hessians(config_file: Path, teacher_folders: dict[str, Path]) -> None:
    options = [f"teacher.path={teacher_folders['big']}", "teacher.cache=none", "distill.terms=[{kind: hessian, rows: 1}]"]
    found = profile(load_config(config_file, options), steps=3, warmup=1, say=lambda _: None).cache
    # 15 rows of each structure, of which a step asks for one; two batches of four
    assert found.build_s > 2.5 * 2e-3 * found.live_ms


def test_reports_tables_and_analysis_of_runs_with_several_teachers(
    config_file: Path, tmp_path: Path, data_file: Path, teacher_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tmp_path / "alone", tmp_path / "taught"]
    short = ["train.steps=4", "train.evaluate_every=2"]
    terms = "distill.terms=[{kind: forces, agree: 0.5}, {kind: n2n, teacher: big}, {kind: n2n, teacher: small, weight: 7}, {kind: hessian}]"
    assert main(["train", str(config_file), *short, f"run.dir={runs[0]}"]) == 0
    assert main(["train", str(config_file), *short, f"run.dir={runs[1]}", pair_of(teacher_folders), terms, "distill.watch_cka=3"]) == 0
    assert main(["report", str(runs[1])]) == 0
    # the teacher of "gap closed" is the mean of both
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "joint")]) == 0
    rows = json.loads((tmp_path / "joint" / "summary.json").read_text())["rows"]
    assert [row["role"] for row in rows] == ["teacher", "student", "student"]
    mean = json.loads((runs[1] / "teacher" / "summary.json").read_text())["test"]["forces_mae"]
    assert rows[0]["metrics"]["forces_mae"]["mean"] == pytest.approx(mean)
    assert rows[2]["gap_forces"] is not None or rows[1]["metrics"]["forces_mae"]["mean"] <= mean
    one = json.loads((runs[1] / "teacher_big" / "summary.json").read_text())["test"]["forces_mae"]
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "big"), "--teacher", "teacher big"]) == 0
    rows = json.loads((tmp_path / "big" / "summary.json").read_text())["rows"]
    assert rows[0]["metrics"]["forces_mae"]["mean"] == pytest.approx(one)
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "again"), "--teacher", str(runs[1])]) == 0
    rows = json.loads((tmp_path / "again" / "summary.json").read_text())["rows"]
    assert rows[0]["metrics"]["forces_mae"]["mean"] == pytest.approx(mean)
    assert main(["eval", str(runs[1]), str(data_file), "--out", str(tmp_path / "eval")]) == 0
    # of two terms of one kind, each belongs to a teacher of its own
    small = ["--split", "train", "--batch", "6", "--bootstrap", "20", "--device", "cpu"]
    for name in ("big", "small", "other"):
        words = ["cka", str(runs[1]), str(teacher_folders[name]), str(data_file), *small, "--out", str(tmp_path / f"cka_{name}")]
        assert main(words) == 0
        result = json.loads((tmp_path / f"cka_{name}" / "cka.json").read_text())["result"]
        pairs = [pair for item in result if item["estimator"] == "full" for pair in item["distilled"]]
        assert len(pairs) == (0 if name == "other" else 1), name


def test_pairs_are_written_for_the_teacher_that_they_were_found_for(
    config_file: Path, tmp_path: Path, data_file: Path, teacher_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(
        config_file.read_text()
        + f"teachers: [{{name: big, path: '{teacher_folders['big']}'}}, {{name: small, path: '{teacher_folders['small']}'}}]\n"
        "distill: {terms: [{kind: forces}, {kind: n2n, teacher: big, weight: 5}, {kind: n2n, teacher: small, weight: 6, loss: mae}]}\n"
    )
    words = [
        "pair",
        str(config_file),
        str(teacher_folders["small"]),
        str(data_file),
        "--batch",
        "6",
        "--bootstrap",
        "20",
        "--device",
        "cpu",
    ]
    words += ["--config", str(base), "--out", str(tmp_path / "pairs.yaml"), "--strategy", "n2n", "v2v"]
    assert main(words) == 0
    terms = load_config(tmp_path / "pairs.yaml").distill.terms
    assert [(term.kind, term.teacher, term.weight, term.loss) for term in terms] == [
        ("forces", "", 1.0, "auto"),
        ("n2n", "big", 5.0, "auto"),
        ("n2n", "small", 6.0, "mae"),
        ("v2v", "small", 1.0, "auto"),
    ]
    assert read_yaml(tmp_path / "pairs.yaml")["teachers"] == read_yaml(base)["teachers"]
    words[2] = str(teacher_folders["other"])
    assert "has several teachers, and none of them is" in refused([*words, "--overwrite"], capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["distill.terms=[{kind: forces, agree: -1}]"], "agree"),
        (["distill.terms=[{kind: hessian, rows: 0}]"], "rows"),
        (["distill.terms=[{kind: hessian, difference_step: 0}]"], "difference_step"),
        (["distill.terms=[{kind: n2n, teacher: nobody}]"], "nobody"),
        (["distill.terms=[{kind: n2n}]"], "have no mean"),
        (["distill.terms=[{kind: forces}]", "teachers.0.cache_dtype=float8"], "cache_dtype"),
        (["distill.terms=[{kind: forces}]", "teachers.0.cache=disk", "teachers.0.cache_dtype={edge_sum: float16}"], "no term asks"),
        (["distill.terms=[{kind: forces}]", "teachers.0.cache_preload=-1"], "cache_preload"),
        (["distill.terms=[{kind: forces}]", "augment.kind=rattle", "augment.sigma=0"], "moves nothing"),
        (["distill.terms=[{kind: hessian}]", "augment.kind=adversarial"], "too dear"),
        (
            ["distill.terms=[{kind: n2n, teacher: big, loss: cka}]", "augment.synthetic=SYNTHETIC", "augment.synthetic_weight=0.5"],
            "weights single",
        ),
        (["distill.terms=[{kind: forces, weight_rule: gradient_ratio}]"], "gradient_every"),
        (["distill.terms=[{kind: forces}]", "distill.gradient_average=1"], "gradient_average"),
        (["distill.terms=[{kind: forces, when_passed: never}]"], "when_passed"),
    ],
)
def test_mistakes_end_with_exit_2(
    options: list[str],
    words: str,
    config_file: Path,
    tmp_path: Path,
    teacher_folders: dict[str, Path],
    synthetic_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [option.replace("SYNTHETIC", str(synthetic_file)) for option in options]
    teachers = pair_of(teacher_folders, more=f", cache_path: '{tmp_path / 'kept'}'")
    message = refused(["train", str(config_file), teachers, *given], capsys)
    assert words in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "options",
    [
        ("PAIR none disk", "distill.terms=[{kind: n2n, teacher: big}, {kind: forces, agree: 0.5}]", "ablate.losses=[mae]"),
        ("PAIR none none", "augment.kind=rattle", "distill.terms=[{kind: forces}, {kind: hessian}]", "ablate.weight_factors=[2]"),
        (
            "PAIR memory auto",
            "augment.synthetic=SYNTHETIC",
            "data.unlabelled=4",
            "distill.gradient_every=1",
            "distill.terms=[{kind: hessian, teacher: big, when_passed: stop}, {kind: lkm}]",
            "ablate.vary={distill.terms.0.rows: [2], augment.kind: [rattle]}",
        ),
    ],
    ids=["teachers", "rattled", "synthetic"],
)
def test_an_ablation_of_what_meets(
    options: tuple[str, ...], config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path], synthetic_file: Path
) -> None:
    words = [*filled(options, teacher_folders, synthetic_file, tmp_path / "kept"), "train.steps=2", "train.evaluate_every=2"]
    assert main(["ablate", str(config_file), *words, "ablate.overhead_steps=3"]) == 0
    table = (tmp_path / "run" / "ablation.md").read_text()
    assert "student alone" in table
    assert "as configured" in table
    config = read_yaml(tmp_path / "run" / "rung0" / "alone" / "seed0" / "config.yaml")
    assert config["distill"]["terms"] == []
    assert (config["augment"]["kind"], config["augment"]["synthetic"]) == ("none", "")
