"""``fastkd cka STUDENT TEACHER DATA``: which layers of two models say the same, before and after distillation."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastkd.analysis.cka import Similarity
from fastkd.analysis.cka_report import BEFORE, STUDENT, TEACHER, Pair, at, heat_maps, most_alike, sentences, to_csv
from fastkd.config import Config
from fastkd.config_loading import load_config, validate
from fastkd.data.dataset import StructureDataset
from fastkd.data.reader import DataFile
from fastkd.data.select import elements, open_data_file
from fastkd.engine.cka import CKASettings, Comparison, compare_layers
from fastkd.engine.datasets import evenly, refuse_unknown_elements
from fastkd.engine.devices import DTYPES, choose_device
from fastkd.engine.environment import describe_environment
from fastkd.engine.evaluate_command import chosen
from fastkd.engine.students import initial_student
from fastkd.engine.teacher_commands import parse_options, progress_bar
from fastkd.errors import CheckpointError, ConfigError, UserError
from fastkd.files import cannot_write, write_bytes, write_json, write_text
from fastkd.models.factory import read_header
from fastkd.teachers import BaseTeacher, Teacher, load_teacher
from fastkd.teachers.layers import EDGE_SUM, EDGE_VECTOR_SUM, FINAL, KINDS, LayerReader
from fastkd.teachers.loading import EMBEDDED, is_foreign
from fastkd.teachers.torch_module import ModuleTeacher

#: In place of a path for --before: the weights that the run of the student began with.
INITIAL = "initial"
CSV, JSON = "cka.csv", "cka.json"


@dataclass(eq=False)
class Models:
    """Who is compared, and what the student's run distilled."""

    readers: dict[str, LayerReader]
    config: Config | None  #: of the student's run; None if its file does not say
    taught_by: dict[str, str] = field(default_factory=dict)  #: several teachers of that run, name → hash


def add_cka_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd cka``."""
    add_comparison_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for cka.csv, cka.json and a heat map for each kind of feature")
    parser.add_argument(
        "--before",
        nargs="?",
        const=INITIAL,
        metavar="MODEL",
        help="an earlier checkpoint of the student; without MODEL, the weights its run began with, made again from its config and seed",
    )
    parser.add_argument(
        "--estimator",
        nargs="+",
        choices=("full", "minibatch"),
        default=["full", "minibatch"],
        help="full: all atoms at once; minibatch: unbiased, after Nguyen et al. 2021. The first is drawn (default: both)",
    )


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that choose models, structures and estimates."""
    parser.add_argument(
        "student", metavar="STUDENT", help="run folder, .safetensors file, config.yaml (as its run would begin), or whatever TEACHER can be"
    )
    parser.add_argument("teacher", metavar="TEACHER", help="as teacher.path: folder, file, embedded, module:…:function, or an adapter")
    parser.add_argument("data", metavar="DATA", help="HDF5 file (format v1), or 'embedded'; labels are not needed")
    parser.add_argument("--split", default="test", help="name of the split (default: %(default)s)")
    parser.add_argument("--systems", nargs="*", default=[], help="only these systems of the file")
    parser.add_argument(
        "--max-structures", type=int, default=512, metavar="N", help="at most so many, evenly spaced; 0 for all (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="structures per batch (default: %(default)s)")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=[], help="kinds of feature to compare (default: all there are)")
    parser.add_argument(
        "--by-element",
        action="store_true",
        help="take means element by element, so that telling elements apart, which every layer does, does not count as being alike",
    )
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples of the 95 %% interval; 0 for none (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of structures and of the bootstrap (default: %(default)s)")
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="KEY=VALUE", help="of the teacher's function or adapter, values in YAML"
    )
    parser.add_argument(
        "--capture",
        nargs="+",
        default=[],
        metavar="MODULE:KIND",
        help="modules of a foreign teacher, each MODULE:KIND[:OUTPUT[:LAYOUT]], or 'all' (default: what it declares)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", choices=("own", *DTYPES), default="own", help="of all weights (default: %(default)s)")


def run_cka(args: argparse.Namespace) -> int:
    """Compare, write, and say what is most alike.

    Raises:
        UserError: for models, data, options or a folder that do not serve.
    """
    if (args.out / JSON).exists():
        raise CheckpointError(f"{args.out} already holds results; choose another folder with --out")
    models, comparison, source = compare(args, before=args.before, estimators=tuple(dict.fromkeys(args.estimator)))
    pairs = distilled_pairs(models, comparison)
    lines = sentences(comparison.similarities, pairs)
    drawn = {item.kind: item for item in reversed(comparison.similarities)}
    try:
        write_text(args.out / CSV, to_csv(comparison.similarities))
        for kind, similarity in drawn.items():
            write_bytes(args.out / f"cka_{kind}.png", heat_maps(similarity, pairs))
        write_json(args.out / JSON, {**provenance(args, models, comparison, source), "result": _results(comparison, pairs)})
    except OSError as error:
        raise CheckpointError(cannot_write(args.out, error)) from error
    for line in (*comparison.notes, *lines):
        print(line)
    print(f"{comparison.structures:,} structures, {comparison.atoms:,} atoms; everything is in {args.out}")
    return 0


def compare(args: argparse.Namespace, *, before: str | None, estimators: tuple[Any, ...]) -> tuple[Models, Comparison, dict[str, Any]]:
    """Models, their similarities, and where the structures came from.

    Raises:
        UserError: as `run_cka`.
    """
    for name, value, least in (
        ("--batch", args.batch, 1),
        ("--max-structures", args.max_structures, 0),
        ("--bootstrap", args.bootstrap, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    models = _models(args, before)
    with open_data_file(args.data) as file:
        indices = evenly(chosen(file, args.split, args.systems), args.max_structures)
        for reader in models.readers.values():
            refuse_unknown_elements(sorted(elements(file, indices)), reader.teacher.known_element, f"the model {reader.teacher.source}")
        cutoffs = [reader.teacher.cutoff for reader in models.readers.values() if reader.teacher.cutoff is not None]
        # labels are not looked at, so that structures without are welcome
        dataset = StructureDataset(file, cutoffs, dtype=torch.float64, unlabelled=indices.tolist())
        settings = CKASettings(estimators, args.batch, args.bootstrap, args.seed, tuple(args.kind), args.by_element)
        with progress_bar("comparing layers") as progress:
            comparison = compare_layers(
                models.readers, dataset, indices.tolist(), settings, choose_device(args.device, "--device"), progress
            )
        return models, comparison, _source(file, args)


def _models(args: argparse.Namespace, before: str | None) -> Models:
    device = choose_device(args.device, "--device")
    dtype = None if args.dtype == "own" else DTYPES[args.dtype]
    untrained = Path(args.student).suffix in (".yaml", ".yml")
    if not (untrained or args.student == EMBEDDED or is_foreign(args.student) or Path(args.student).exists()):
        raise ConfigError(
            f"there is no student at {args.student}: name a run folder, a model file, or the config.yaml of one to be trained"
        )
    student: BaseTeacher = _student(args.student).to(device, dtype) if untrained else load_teacher(args.student, device=device, dtype=dtype)
    config = run_config(args.student) if isinstance(student, Teacher) else None
    readers: dict[str, LayerReader] = {}
    if before == INITIAL:
        readers[BEFORE] = LayerReader(_initial(args.student, student, config).to(device, dtype or student.dtype), sums=False)
    elif before is not None:
        readers[BEFORE] = LayerReader(load_teacher(before, device=device, dtype=dtype), sums=False)
    readers[STUDENT] = LayerReader(student, sums=False)
    teacher = load_teacher(args.teacher, options=parse_options(args.options), device=device, dtype=dtype)
    readers[TEACHER] = LayerReader(teacher, args.capture)
    return Models(readers, config, _taught_by(args.student) if config is not None else {})


def _student(path: str) -> Teacher:
    """The student of a config that has not been trained yet."""
    return Teacher(initial_student(load_config(path, [])), path)


def run_config(path: str) -> Config | None:
    """The config that a model of ours was trained with, if its file holds one that this version understands."""
    if is_foreign(path) or not Path(path).exists() or Path(path).suffix in (".yaml", ".yml"):
        return None
    tree = read_header(path).get("provenance", {}).get("config")
    if not isinstance(tree, dict):
        return None
    try:
        return validate(tree, path)
    except UserError:
        return None


def _taught_by(path: str) -> dict[str, str]:
    cards = read_header(path).get("provenance", {}).get("teachers", {})
    return {str(name): str(card.get("sha256", "")) for name, card in cards.items()}


def _initial(path: str, student: BaseTeacher, config: Config | None) -> Teacher:
    """The student as its run began.

    Raises:
        ConfigError: if the file does not say how it was trained.
    """
    if config is None or not isinstance(student, Teacher):
        raise ConfigError(
            f"{path} does not say how it was trained, so its first weights cannot be made again; name a checkpoint: --before MODEL"
        )
    potential = initial_student(config)
    if potential.options != student.potential.options:
        raise ConfigError(f"{path} is not what its config makes (another version of fastkd?); name a checkpoint: --before MODEL")
    potential.known_element.copy_(student.potential.known_element.cpu())
    return Teacher(potential, f"{path} as its run began")


def distilled_pairs(models: Models, comparison: Comparison) -> list[Pair]:
    """The pairs of layers that the terms of the student's run bring together, as far as both are here."""
    pairs: list[Pair] = []
    for term in models.config.distill.terms if models.config is not None else ():
        if term.kind not in ("n2n", "e2n", "v2v", "v2v_geometric"):
            continue
        if term.teacher and models.taught_by.get(term.teacher) != models.readers[TEACHER].teacher.hash:
            # from another of several teachers
            continue
        kind = "vector" if term.kind in ("v2v", "v2v_geometric") else "node"
        similarity = next((item for item in comparison.similarities if item.kind == kind), None)
        if similarity is None:
            continue
        students = [f"regular_{layer}" for layer in term.student_layers] or [last_layer(similarity.names(STUDENT))]
        teachers = _targets(models, term.kind, term.teacher_layer, similarity)
        pairs += [Pair(kind, student, teacher, term.kind) for student in students for teacher in teachers]
    return pairs


def _targets(models: Models, strategy: str, layer: str, similarity: Similarity) -> list[str]:
    names = similarity.names(TEACHER)
    teacher = models.readers[TEACHER].teacher
    if strategy == "e2n":
        # the sum here is that of the final feature
        return [EDGE_SUM] if EDGE_SUM in names and layer == FINAL else []
    if isinstance(teacher, ModuleTeacher):
        # features of one kind are concatenated for a term: each is part of the target
        return [name for name in names if name not in (EDGE_SUM, EDGE_VECTOR_SUM)]
    if layer != FINAL:
        return [layer] if layer in names else []
    found = last_layer(names)
    return [found] if found else []


def last_layer(names: tuple[str, ...]) -> str:
    """What a term takes by default: what the model offers as its feature, or the last block's; '' if there is none."""
    if FINAL in names:
        return FINAL
    regular = [name for name in names if name.startswith("regular_")]
    return regular[-1] if regular else EDGE_VECTOR_SUM if EDGE_VECTOR_SUM in names else ""


def _source(file: DataFile, args: argparse.Namespace) -> dict[str, Any]:
    return {"file": file.path.name, "data_hash": file.content_hash, "split": args.split, "systems": args.systems}


def provenance(args: argparse.Namespace, models: Models, comparison: Comparison, source: dict[str, Any]) -> dict[str, Any]:
    """What was compared, and with what; ready for JSON."""
    return {
        "models": {name: _card(reader.teacher) for name, reader in models.readers.items()},
        "data": {**source, "structures": comparison.structures, "atoms": comparison.atoms},
        "settings": {
            "batch": args.batch,
            "bootstrap": args.bootstrap,
            "seed": args.seed,
            "by_element": args.by_element,
            "capture": args.capture,
        },
        "notes": list(comparison.notes),
        "environment": describe_environment(),
    }


def _card(model: BaseTeacher) -> dict[str, str]:
    # every model here was loaded as a teacher; who is one is said by its key
    return model.card() | {"model": model.offer.name.partition("(")[2].rstrip(")")}


def _results(comparison: Comparison, pairs: list[Pair]) -> list[dict[str, Any]]:
    found = []
    for item in comparison.similarities:
        best = most_alike(item)
        found.append(
            {
                "kind": item.kind,
                "estimator": item.estimator,
                "rows": item.rows,
                "resampled_units": item.units,
                "most_alike": None if best is None else {"student": best[0].name, "teacher": best[1].name, **_interval(best[2:])},
                "distilled": [
                    {"term": pair.term, "student": pair.student, "teacher": pair.teacher}
                    | {model: _interval(at(item, model, pair)) for model in (BEFORE, STUDENT) if item.names(model)}
                    for pair in pairs
                    if pair.kind == item.kind
                ],
            }
        )
    return found


def _interval(numbers: tuple[float, float, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(number) else number for name, number in zip(("cka", "low", "high"), numbers, strict=True)}
