"""Any set of runs as one comparison: grouped by what their configs compute, with one baseline and one teacher.

Runs of one group differ in ``run.seed`` (and in where and how they ran) and in nothing else. What tells groups apart is read from their
``config.yaml``; runs without one are grouped by folder and name.

Example:
    >>> runs, differences = gather([Path("runs/alone"), Path("runs/kd")], baseline="alone")
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkd.analysis.runs import CONFIG, Run, find_runs
from fastkd.config import TermConfig
from fastkd.config_loading import read_yaml, validate
from fastkd.errors import ConfigError, DataError

#: Of the section ``run``, what changes numbers.
_COMPUTED = {"dtype"}
_SKIPPED = ("compare", "ablate")


@dataclass(eq=False)
class _Group:
    """Runs of one config, one per seed."""

    tree: dict[str, Any] | None  #: what its config computes; None if it has none
    runs: list[Run] = field(default_factory=list)

    @property
    def distils(self) -> bool:
        """Whether there are terms; unknown counts as yes."""
        return self.tree is None or bool(self.tree.get("distill", {}).get("terms"))

    @property
    def title(self) -> str:
        """As its summary says, or its folder if that says nothing."""
        summary, folder = self.runs[0].summary, self.runs[0].folder.resolve()
        given = summary.title or summary.name
        return given if given != "run" else folder.parent.name if folder.name.startswith("seed") else folder.name

    def called(self, name: str) -> bool:
        """Whether a name or a path means this group."""
        path = Path(name).resolve()
        folders = [run.folder.resolve() for run in self.runs]
        names = {self.title, self.runs[0].summary.name, self.runs[0].summary.title}
        return name in names or any(path == folder or path in folder.parents for folder in folders)


def gather(folders: Sequence[Path], *, baseline: str = "", teacher: str = "") -> tuple[list[Run], tuple[tuple[str, str], ...]]:
    """Every run in some folders, named so that reports can tell them apart: the teacher, the baseline, then the others as they come.

    Args:
        folders: of runs or comparisons, at any place.
        baseline: title, name or folder of the student that gaps are measured from; empty takes the first that was not distilled.
        teacher: title, name, file or folder of the teacher; a folder of another finished run means that run, of one of ``folders`` its
            teacher. Empty takes the only one there is.

    Returns:
        Runs, and what each group of students differs in from the baseline (title, keys with values).

    Raises:
        CheckpointError: if a folder holds no finished run.
        ConfigError: if the baseline or the teacher is not there, or not told which of several.
        DataError: if two runs were tested on different structures or labels, or one config and seed has given different models.
    """
    runs = _distinct(run for folder in folders for run in find_runs(folder))
    # the path that a run's own config calls its teacher by is a name here, although it may be the folder of a model
    known = any(run.summary.role == "teacher" and _called(run, teacher) for run in runs)
    extra = Path(teacher) if teacher and not known and Path(teacher).is_dir() else None
    given = {run.folder.resolve() for run in runs}
    if extra is not None:
        runs = _distinct([*runs, *find_runs(extra)])
    for run in runs[1:]:
        _require_comparable(runs[0], run)
    taught, students = _split(runs, teacher, extra, given)
    groups = _groups(students)
    if not groups:
        raise ConfigError(f"{', '.join(map(str, folders))} hold no student, only a teacher")
    first = _baseline(groups, baseline)
    ordered = [first, *(group for group in groups if group is not first)]
    titles = _titles(ordered)
    named = [replace(run, summary=replace(run.summary, name="teacher", role="teacher", order=-1)) for run in taught]
    for order, (group, title) in enumerate(zip(ordered, titles, strict=True)):
        for run in sorted(group.runs, key=lambda run: run.summary.seed):
            named.append(replace(run, summary=replace(run.summary, name=f"{order}: {title}", title=title, role="student", order=order)))
    changes = tuple((title, "; ".join(_changes(first, group))) for group, title in zip(ordered[1:], titles[1:], strict=True))
    return named, tuple(change for change in changes if change[1])


def _distinct(runs: Iterator[Run] | Sequence[Run]) -> list[Run]:
    found: dict[Path, Run] = {}
    for run in runs:
        found.setdefault(run.folder.resolve(), run)
    return list(found.values())


def _require_comparable(first: Run, other: Run) -> None:
    one, two = first.predictions, other.predictions
    where = f"{first.folder} and {other.folder}"
    if not np.array_equal(one.structure_index, two.structure_index) or not np.array_equal(one.natoms, two.natoms):
        shared = len(np.intersect1d(one.structure_index, two.structure_index))
        raise DataError(
            f"{where} were tested on different structures ({len(one.natoms)} and {len(two.natoms)}, {shared} numbers in common), so they "
            "cannot be compared; evaluate them on the same split of the same file (data.test_split, data.systems, data.test_size)"
        )
    # labels are stored in float32 for forces, and come from one file
    if (one.forces is None) != (two.forces is None):
        raise DataError(f"of {where} one was tested on energies alone, the other on forces too; evaluate them on one file")
    if not np.allclose(one.energy, two.energy, rtol=0, atol=1e-6) or not _same(one.forces, two.forces, 1e-5):
        raise DataError(
            f"{where} have the same structure numbers and other labels: they were tested on different data files; evaluate them on one"
        )
    free, other_free = (np.ones(int(p.natoms.sum()), dtype=bool) if p.free is None else p.free for p in (one, two))
    if not np.array_equal(free, other_free):
        raise DataError(f"{where} count forces of different atoms; evaluate them with the same train.eval_on_free_atoms")


def _same(one: NDArray[Any] | None, two: NDArray[Any] | None, tolerance: float) -> bool:
    return one is two if one is None or two is None else bool(np.allclose(one, two, rtol=0, atol=tolerance))


def _split(runs: Sequence[Run], name: str, folder: Path | None, given: Set[Path]) -> tuple[list[Run], list[Run]]:
    """Runs of the teacher, and of the students; a ``folder`` names the run in it, or the teacher of one of those ``given`` to compare."""
    if folder is not None:
        inside = [run for run in runs if folder.resolve() in (run.folder.resolve(), *run.folder.resolve().parents)]
        # another run that was distilled itself holds its own teacher, which is not the one that is named
        itself = [run for run in inside if run.folder.resolve() == folder.resolve() and folder.resolve() not in given]
        chosen = itself or _means([run for run in inside if run.summary.role == "teacher"]) or inside
        if len({_who(run) for run in chosen}) > 1:
            raise ConfigError(f"--teacher {name} holds {len(chosen)} runs; name the folder of one")
        return chosen[:1], [run for run in runs if run.summary.role == "student" and run not in chosen]
    teachers = [run for run in runs if run.summary.role == "teacher"]
    students = [run for run in runs if run.summary.role == "student"]
    if name:
        found = [run for run in teachers if _called(run, name)]
        if not found and (group := next((group for group in _groups(students) if group.called(name)), None)):
            return group.runs, [run for run in students if run not in group.runs]
        if not found:
            have = ", ".join(str(run.summary.extra.get("path") or run.folder) for run in teachers) or "none"
            raise ConfigError(f"no teacher is called {name!r} (--teacher); there is {have}, or name the folder of a finished run")
        teachers = found
    else:
        teachers = _means(teachers)
    if len({_who(run) for run in teachers}) > 1:
        which = ", ".join(sorted({str(run.summary.extra.get("path") or run.folder) for run in teachers}))
        raise ConfigError(f"there are several teachers ({which}); name the one that gaps are measured to by --teacher")
    return teachers[:1], students


def _called(run: Run, name: str) -> bool:
    return name in (run.summary.title, run.summary.name, run.summary.extra.get("path"), _who(run))


def _means(teachers: list[Run]) -> list[Run]:
    """Of several teachers of one run, their mean, to which gaps are measured; a single one is called as the mean is."""
    return [run for run in teachers if run.summary.name == "teacher"] or teachers


def _who(run: Run) -> str:
    """What tells one teacher from another."""
    return str(run.summary.extra.get("sha256") or run.folder.resolve())


def _groups(runs: Sequence[Run]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for run in runs:
        tree = _computed(run.folder / CONFIG)
        key = json.dumps(tree, sort_keys=True) if tree is not None else f"{run.folder.resolve().parent} {run.summary.name}"
        group = groups.setdefault(key, _Group(tree))
        twin = next((other for other in group.runs if other.summary.seed == run.summary.seed), None)
        if twin is None:
            group.runs.append(run)
        elif not all(
            _same(getattr(twin.predictions, name), getattr(run.predictions, name), 0.0) for name in ("energy_pred", "forces_pred")
        ):
            raise DataError(
                f"{twin.folder} and {run.folder} have the same config and seed, and different predictions: versions or machines differ; leave "
                "one of them out"
            )
    return list(groups.values())


def _computed(path: Path) -> dict[str, Any] | None:
    """What of a config decides about numbers; None if there is none."""
    if not path.is_file():
        return None
    # defaults that a later version has added are filled in
    tree: dict[str, Any] = validate(read_yaml(path), str(path)).model_dump(mode="json")
    run = {key: value for key, value in tree["run"].items() if key in _COMPUTED}
    return {section: values for section, values in tree.items() if section not in _SKIPPED} | {"run": run}


def _baseline(groups: Sequence[_Group], name: str) -> _Group:
    if not name:
        return next((group for group in groups if not group.distils), groups[0])
    found = [group for group in groups if group.called(name)]
    if len(found) == 1:
        return found[0]
    have = ", ".join(repr(group.title) for group in groups)
    if not found:
        raise ConfigError(f"no student is called {name!r} (--baseline); there are {have}")
    raise ConfigError(f"--baseline {name!r} means {len(found)} different configs; name the folder of one run")


def _titles(groups: Sequence[_Group]) -> list[str]:
    """A title for each; where several are called alike, with what tells them apart."""
    titles = [group.title for group in groups]
    clashing = {title for title in titles if titles.count(title) > 1}
    for number, group in enumerate(groups):
        if titles[number] in clashing and number:
            changes = _changes(groups[0], group)
            titles[number] = f"{group.title} ({'; '.join(changes)})" if changes else f"{group.title} ({group.runs[0].folder})"
    for number, title in enumerate(titles):
        if titles.count(title) > 1:
            titles[number] = f"{title} [{number + 1}]"
    return titles


def _changes(first: _Group, other: _Group) -> list[str]:
    """Keys in which a config differs from another, with values."""
    if first.tree is None or other.tree is None:
        return []
    one, two = dict(_leaves(first.tree, "")), dict(_leaves(other.tree, ""))
    keys = dict.fromkeys([*one, *two])
    return [f"{key} = {_text(two.get(key))}" for key in keys if one.get(key) != two.get(key)]


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict) or not node:
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _text(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, dict) and "kind" in item for item in value):
        return " + ".join(_term(item) for item in value)
    return str(value) if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _term(item: dict[str, Any]) -> str:
    """A term by its kind, its λ, and whatever else is not as it is by default."""
    usual = TermConfig(kind=item["kind"]).model_dump(mode="json")
    rest = [f"{key} {_text(value)}" for key, value in item.items() if key not in ("kind", "weight") and value != usual.get(key)]
    inside = ", ".join([f"λ {item.get('weight', 1.0):g}", *rest])
    return f"{item['kind']} ({inside})"
