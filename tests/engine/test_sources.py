"""What the runs of a comparison share of their teachers: who is counted, who gets what, and who must not share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fastkd.cli import main
from fastkd.config import ArmConfig, Config
from fastkd.config_checks import check_seeds
from fastkd.config_loading import arm_config, load_config
from fastkd.engine import run as run_module
from fastkd.engine import sources as module
from fastkd.engine.loop import Job
from fastkd.engine.setup import Workbench, build_cache_of, prepare
from fastkd.engine.teacher_cache import Verdict
from fastkd.errors import ConfigError
from fastkd.teachers import CachedTeacher, Council, LiveTeacher, TeacherOutput
from fastkd.teachers.cache_file import open_cache

V2V, N2N, FORCES = ({"distill.terms": [{"kind": kind}]} for kind in ("v2v", "n2n", "forces"))


@pytest.fixture
def words(config_file: Path, tmp_path: Path, teacher_folder: Path) -> list[str]:
    return [
        str(config_file),
        f"teacher.path={teacher_folder}",
        f"teacher.cache_path={tmp_path / 'kept'}",
        "teacher.cache=memory",
        "data.labelled=0",
    ]


def bench_of(words: list[str], *changes: dict[str, Any], seeds: tuple[int, ...] = (0,)) -> Workbench:
    """Ready for a comparison of arms that make these changes; ``planned`` holds the arms of the first seed, then those of the next."""
    config = load_config(words[0], words[1:])
    arms = [ArmConfig(name=f"arm{number}", set=change) for number, change in enumerate(changes)]
    planned = (arm_config(config, arm, seed, config.run.dir / arm.name / str(seed)) for seed in seeds for arm in arms)
    return Workbench(lambda message: None, planned=tuple(planned))


def jobs_of(bench: Workbench) -> list[Job]:
    return [prepare(config, "x", bench, resume=False)[0] for config in bench.planned]


def cache_of(job: Job) -> CachedTeacher:
    assert isinstance(job.trainee.teacher, CachedTeacher)
    return job.trainee.teacher


def no_live_teacher(*_: object, **__: object) -> TeacherOutput:
    raise AssertionError("asked live")


def test_an_arm_counts_although_a_later_one_has_its_terms_and_other_batches(words: list[str]) -> None:
    bench = bench_of(words, V2V, N2N, {"data.batch_size": 8, **N2N})
    first, _, last = bench.planned
    assert bench.sources.needs_to_come(first) == {"vector", "node"}
    assert bench.sources.needs_to_come(last) == {"node"}


def test_one_file_serves_all_that_share_it(words: list[str], tmp_path: Path) -> None:
    # the second arm would be refused a file that was made for the first alone
    bench = bench_of([*words, "teacher.cache=disk", f"teacher.cache_path={tmp_path / 'one.h5'}"], V2V, N2N, {"data.batch_size": 8, **N2N})
    assert len({id(cache_of(job).store) for job in jobs_of(bench)}) == 1
    with open_cache(tmp_path / "one.h5") as file:
        assert file.key.needs == {"vector", "node"}


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_arms_of_another_dtype_do_not_share(words: list[str], monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    # the teacher itself is the same: its dtype is given
    common = [*words, "teacher.dtype=float32", f"teacher.cache={cache}", "teacher.cache_preload=0"]
    jobs = jobs_of(bench_of(common, FORCES, {"run.dtype": "float64", **FORCES}, FORCES))
    stores = [cache_of(job).store for job in jobs]
    assert stores[0] is stores[2] is not stores[1]
    # positions of float32 are not those of float64: each structure would look as if it had moved, and be asked live
    monkeypatch.setattr(LiveTeacher, "ask", no_live_teacher)
    for job in jobs:
        assert cache_of(job)(next(job.batches)).forces is not None


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_an_arm_gets_what_it_needs_of_a_wider_cache(words: list[str], cache: str) -> None:
    both = {"distill.terms": [{"kind": "v2v"}, {"kind": "n2n"}, {"kind": "e2n"}]}
    jobs = jobs_of(bench_of([*words, f"teacher.cache={cache}"], FORCES, both, N2N))
    needs: list[set[str]] = [{"forces"}, {"vector", "node", "edge_sum"}, {"node"}]
    assert len({id(cache_of(job).store) for job in jobs}) == 1
    for job, wanted in zip(jobs, needs, strict=True):
        assert cache_of(job).needs == wanted
        said = cache_of(job)(next(job.batches))
        assert {name for name in ("forces", "vector", "node", "edge_sum") if getattr(said, name) is not None} == wanted


@pytest.mark.parametrize("way", ["train", "cache build"])
def test_an_ensemble_has_one_cache_dtype_and_a_term_of_one_member(
    words: list[str], tmp_path: Path, teacher_folders: dict[str, Path], way: str
) -> None:
    more = [f"teacher.members=['{teacher_folders['other']}']", "teacher.cache=disk", "teacher.cache_dtype={node: float16}"]
    config = load_config(words[0], [*words[1:], *more, "distill.terms=[{kind: forces}, {kind: n2n, teacher: member_1}]"])
    bench = Workbench(lambda message: None)
    if way == "train":
        source = prepare(config, "x", bench, resume=False)[0].trainee.teacher
        assert isinstance(source, Council)
        assert {name: one.needs for name, one in source.sources.items()} == {"member_1": {"forces", "node"}, "member_2": {"forces"}}
    else:
        assert build_cache_of(config, bench)
    kept = []
    for path in (tmp_path / "kept").glob("*.h5"):
        with open_cache(path) as file:
            kept.append(dict(file.key.dtypes))
    assert sorted(kept, key=len) == [{"forces": "own"}, {"forces": "own", "node": "float16"}]


def test_a_dtype_that_no_member_can_use_is_a_mistake(words: list[str], teacher_folders: dict[str, Path]) -> None:
    more = [f"teacher.members=['{teacher_folders['other']}']", "teacher.cache=disk", "teacher.cache_dtype={vector: float16}"]
    config = load_config(words[0], [*words[1:], *more, "distill.terms=[{kind: forces}]"])
    with pytest.raises(ConfigError, match="names 'vector', which no term asks"):
        prepare(config, "x", Workbench(), resume=False)


@pytest.mark.parametrize("key", ["compare", "ablate"])
@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_one_file_cannot_be_that_of_several_choices(words: list[str], tmp_path: Path, key: str, cache: str) -> None:
    file = [f"teacher.cache={cache}", f"teacher.cache_path={tmp_path / 'one.h5'}", "distill.terms=[{kind: n2n}]"]
    several = [f"{key}.seeds=[0, 1]"]

    def look(*options: str) -> None:
        if key == "compare":
            load_config(words[0], [*words[1:], *options, "compare.arms=[{name: a}]"])
        else:
            config = load_config(words[0], [*words[1:], *options])
            check_seeds(config, "ablate.seeds", config.ablate.seeds)

    for choice in ("data.labelled=8", "data.unlabelled=8"):
        with pytest.raises(ConfigError, match=rf"{key}\.seeds lists 2 seeds.*name a folder"):
            look(*file, *several, choice)
    look(*file, *several)
    look(*file, f"{key}.seeds=[3]", "data.labelled=8")
    look(*file, *several, f"teacher.cache_path={tmp_path / 'folder'}", "data.labelled=8")
    look(*file, *several, "teacher.cache=memory", "data.labelled=8")


def test_an_arm_that_chooses_structures_itself_needs_a_file_for_each_seed(words: list[str], tmp_path: Path) -> None:
    options = ["teacher.cache=disk", f"teacher.cache_path={tmp_path / 'one.h5'}", "distill.terms=[{kind: n2n}]", "compare.seeds=[0, 1]"]
    with pytest.raises(ConfigError, match=r"compare\.arms\.1 \(few\): compare\.seeds lists 2 seeds"):
        load_config(words[0], [*words[1:], *options, "compare.arms=[{name: all}, {name: few, set: {data.labelled: 8}}]"])


def test_a_built_cache_serves_every_seed(words: list[str], tmp_path: Path) -> None:
    """The command plans as the runs do: what it builds is what they look for."""
    arms = "compare.arms=[{name: a, set: {distill.terms: [{kind: n2n}]}}, {name: b, set: {distill.terms: [{kind: v2v}]}}]"
    given = [*words, "teacher.cache=disk", "data.labelled=8", arms, "compare.seeds=[0, 1]", "train.steps=2"]
    assert main(["cache", "build", *given]) == 0
    built = sorted((tmp_path / "kept").glob("*.h5"))
    assert len(built) == 2  # each seed chooses its own structures
    assert main(["train", *given]) == 0
    assert sorted((tmp_path / "kept").glob("*.h5")) == built


@pytest.fixture
def judgements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many runs each judgement was; all are for a live teacher."""
    found: list[int] = []

    def judged(*_: object, runs: int) -> Verdict:
        found.append(runs)
        return Verdict(1.0, 2.0, 0, 0, exists=False)

    monkeypatch.setattr(module, "judge", judged)
    return found


@pytest.mark.parametrize(("labelled", "wanted"), [(0, [6]), (8, [2, 2, 2])])
def test_auto_is_judged_once_for_all_runs_that_would_share(
    words: list[str], judgements: list[int], labelled: int, wanted: list[int]
) -> None:
    # a choice of structures by the seed is shared by its arms alone
    bench = bench_of([*words, "teacher.cache=auto", f"data.labelled={labelled}"], N2N, V2V, seeds=(0, 1, 2))
    assert all(isinstance(job.trainee.teacher, LiveTeacher) for job in jobs_of(bench))
    assert judgements == wanted


def test_a_comparison_plans_all_arms_of_all_seeds(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[tuple[str, int]] = []

    class Enough(Exception):  # noqa: N818
        pass

    def first_run(config: Config, arm: ArmConfig, seed: int, folder: Path, bench: Workbench, *_: object, **__: object) -> Config:
        planned.extend((str(run.distill.terms[0].kind), run.run.seed) for run in bench.planned)
        raise Enough

    monkeypatch.setattr(run_module, "run_arm", first_run)
    arms = "compare.arms=[{name: a, set: {distill.terms: [{kind: n2n}]}}, {name: b, set: {distill.terms: [{kind: v2v}]}}]"
    with pytest.raises(Enough):
        run_module.run(load_config(words[0], [*words[1:], arms, "compare.seeds=[0, 5]"]), Console(file=io.StringIO()))
    assert planned == [("n2n", 0), ("v2v", 0), ("n2n", 5), ("v2v", 5)]
