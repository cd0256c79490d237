"""``fastkd pair STUDENT TEACHER DATA``: which layers to distil into which, from CKA, written as terms of a config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fastkd.analysis.cka import Similarity
from fastkd.analysis.cka_report import STUDENT, TEACHER, number
from fastkd.analysis.pairing import Proposal, best_pairs
from fastkd.config import Config, TermConfig
from fastkd.config_loading import load_config, read_yaml
from fastkd.engine.cka import Comparison
from fastkd.engine.cka_command import Models, add_comparison_arguments, compare, last_layer
from fastkd.errors import ConfigError
from fastkd.files import write_text
from fastkd.teachers.layers import EDGE_SUM, EDGE_VECTOR_SUM
from fastkd.teachers.torch_module import ModuleTeacher

STRATEGIES = ("n2n", "e2n", "v2v")
#: Validation structures on which a written config measures the CKA of its pairs again while it trains.
WATCHED = 64


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd pair``."""
    add_comparison_arguments(parser)
    parser.set_defaults(split="train", kind=[])
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PAIRS.yaml", help="YAML file to write: terms to copy, or a whole config"
    )
    parser.add_argument("--config", type=Path, metavar="BASE.yaml", help="write this config with the pairs in it, instead of terms alone")
    parser.add_argument(
        "--strategy", nargs="+", choices=STRATEGIES, default=[], help="strategies to find pairs for (default: all that the models allow)"
    )
    parser.add_argument("--pairs", type=int, default=1, metavar="N", help="pairs for each strategy (default: %(default)s)")
    parser.add_argument(
        "--rule",
        choices=("last", "alike"),
        default="last",
        help="last: the student's last block and the layer of the teacher most like it, then the block before …; alike: the pairs with the largest "
        "sum of CKA, whichever blocks these are (default: %(default)s)",
    )
    parser.add_argument("--monotone", action=argparse.BooleanOptionalAction, default=True, help="deeper layers go with deeper layers")
    parser.add_argument(
        "--all-atoms",
        action="store_true",
        help="compare atoms of all elements with each other; by default within elements, since every layer tells those apart",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def run_pair(args: argparse.Namespace) -> int:
    """Find pairs, print them, and write them.

    Raises:
        UserError: for models, data, options or a file that do not serve, and if a strategy that was asked for is not possible.
    """
    if args.pairs < 1:
        raise ConfigError(f"--pairs must be at least 1, got {args.pairs}")
    if args.out.exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists already; choose another file, or add --overwrite")
    # a broken config is refused before anything is computed
    name = teacher_name(load_config(str(args.config), []), args.teacher, str(args.config)) if args.config is not None else ""
    args.by_element = args.by_element or not args.all_atoms
    models, comparison, source = compare(args, before=None, estimators=("full",))
    proposals = propose(comparison, args.strategy, count=args.pairs, rule=args.rule, monotone=args.monotone)
    foreign = isinstance(models.readers[TEACHER].teacher, ModuleTeacher)
    if foreign and args.pairs > 1:
        raise ConfigError(
            "features of one kind of a foreign teacher are concatenated into one target, so there is one pair; leave out --pairs"
        )
    terms = [term_of(proposal, comparison) for proposal in proposals]
    header = _header(args, comparison, source, proposals)
    tree: dict[str, Any] = read_yaml(args.config) if args.config is not None else {}
    tree = with_terms(tree, terms, name)
    if foreign and tree.get("teachers"):
        (item,) = (item for item in tree["teachers"] if item["name"] == name)
        item["features"] = _features(models, proposals)
    elif (foreign or (args.config is not None and not name)) and not tree.get("teachers") and not (tree.get("teacher") or {}).get("path"):
        tree["teacher"] = {**(tree.get("teacher") or {}), "path": args.teacher}
    if foreign and not tree.get("teachers"):
        tree["teacher"]["features"] = _features(models, proposals)
    write_text(args.out, header + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120))
    for line in (*comparison.notes, *(_sentence(proposal) for proposal in proposals)):
        print(line)
    print(
        f"{args.out}: {len(terms)} terms from {comparison.structures:,} structures; weights (λ) are yours to choose (docs/distillation.md)"
    )
    return 0


def propose(comparison: Comparison, strategies: list[str], *, count: int, rule: str, monotone: bool) -> list[Proposal]:
    """Pairs for each strategy that the models allow.

    Args:
        comparison: with estimator ``full``, between a student and a teacher.
        strategies: wanted; empty: all that are possible.
        count: pairs for each.
        rule: ``last`` takes the student's last ``count`` blocks, ``alike`` any blocks.
        monotone: see `best_pairs`.

    Raises:
        ConfigError: if a strategy that was asked for is not possible, or none is.
    """
    proposals: list[Proposal] = []
    for strategy in strategies or STRATEGIES:
        similarity = comparison.of("vector" if strategy == "v2v" else "node", "full")
        found = _pairs(strategy, similarity, count, rule, monotone) if similarity is not None else []
        if strategies and not found:
            kinds = {"n2n": "atom", "e2n": "edge", "v2v": "vector"}[strategy]
            raise ConfigError(
                f"there is no pair for {strategy}: it needs {kinds} features of the teacher that vary, and a student with blocks to match"
            )
        proposals += found
    if not proposals:
        raise ConfigError("student and teacher have no layers that could be paired")
    return proposals


def _pairs(strategy: str, similarity: Similarity, count: int, rule: str, monotone: bool) -> list[Proposal]:
    part = similarity.between(STUDENT, TEACHER)
    if part is None:
        return []
    # blocks are numbered from 1; an embedding has seen no neighbours
    rows = [i for i, name in enumerate(part.names(STUDENT)) if block_of(name) > 0]
    columns = [j for j, name in enumerate(part.names(TEACHER)) if _is_target(strategy, name, part.names(TEACHER))]
    if rule == "last":
        rows = rows[-count:]
    if not rows or not columns:
        return []
    cut = np.ix_(rows, columns)
    value, low, high = part.value[cut], part.low[cut], part.high[cut]
    proposals = []
    for i, j in best_pairs(value, count, monotone=monotone):
        others = [k for k in np.argsort(-np.nan_to_num(value[i], nan=-1.0)).tolist() if k != j and not np.isnan(value[i, k])]
        second = others[0] if others else None
        proposals.append(
            Proposal(
                strategy,
                part.names(STUDENT)[rows[i]],
                part.names(TEACHER)[columns[j]],
                (float(value[i, j]), float(low[i, j]), float(high[i, j])),
                part.names(TEACHER)[columns[second]] if second is not None else "",
                (float(value[i, second]), float(low[i, second]), float(high[i, second])) if second is not None else (np.nan,) * 3,
            )
        )
    return proposals


def _is_target(strategy: str, name: str, names: tuple[str, ...]) -> bool:
    if strategy == "e2n":
        return name == EDGE_SUM
    if strategy == "v2v" and name == EDGE_VECTOR_SUM:
        # what a term takes of a teacher that has no vectors of its own
        return len(names) == 1
    return name not in (EDGE_SUM, EDGE_VECTOR_SUM)


def block_of(name: str) -> int:
    """The block that ``regular_k`` follows; −1 for any other layer."""
    prefix, _, digits = name.partition("regular_")
    return int(digits) if not prefix and digits.isdigit() else -1


def term_of(proposal: Proposal, comparison: Comparison) -> dict[str, Any]:
    """A proposal as an item of ``distill.terms``; the teacher's layer is left out where it is what a term takes by default."""
    term: dict[str, Any] = {"kind": proposal.term, "student_layers": [block_of(proposal.student)]}
    similarity = comparison.of("vector" if proposal.term == "v2v" else "node", "full")
    assert similarity is not None
    sums = (EDGE_SUM, EDGE_VECTOR_SUM)
    if proposal.teacher not in (*sums, last_layer(similarity.names(TEACHER))) and block_of(proposal.teacher) >= 0:
        term["teacher_layer"] = proposal.teacher
    return term


def teacher_name(config: Config, path: str, where: str) -> str:
    """How a config calls the teacher at a path; empty if it has one only, whichever that is.

    Raises:
        ConfigError: if it has several, and not this one.
    """
    named = config.named_teachers
    if len(named) < 2:
        return ""
    found = [name for name, item in named.items() if item.path == path or Path(item.path).resolve() == Path(path).resolve()]
    if not found:
        have = ", ".join(f"{name} ({item.path})" for name, item in named.items())
        raise ConfigError(f"{where} has several teachers, and none of them is {path}: pair with one of {have}")
    return found[0]


def with_terms(tree: dict[str, Any], terms: list[dict[str, Any]], teacher: str = "") -> dict[str, Any]:
    """A config with its feature terms replaced; of each kind, weights and losses of the first one it had are kept.

    Args:
        tree: the config.
        terms: that come in.
        teacher: name of one of several teachers: its terms are replaced, those of the others stay.
    """
    distill = dict(tree.get("distill") or {})
    old = list(distill.get("terms") or [])
    replaced = [term for term in old if term.get("kind") in STRATEGIES and (term.get("teacher") or "") == teacher]
    kept = [term for term in old if term not in replaced]
    keys = set(TermConfig.model_fields) - {"kind", "teacher", "student_layers", "teacher_layer"}
    first: dict[str, dict[str, Any]] = {}
    for term in replaced:
        first.setdefault(term.get("kind"), {key: value for key, value in term.items() if key in keys})
    whose = {"teacher": teacher} if teacher else {}
    distill["terms"] = [*kept, *({**term, **whose, **first.get(term["kind"], {"weight": 1.0})} for term in terms)]
    distill.setdefault("watch_cka", WATCHED)
    return {**tree, "distill": distill}


def _features(models: Models, proposals: list[Proposal]) -> list[dict[str, Any]]:
    """The modules of a foreign teacher that the pairs name, as ``teacher.features``."""
    chosen = {proposal.teacher for proposal in proposals} - {EDGE_SUM, EDGE_VECTOR_SUM}
    features = models.readers[TEACHER].features
    found = []
    for feature in features:
        name = f"{feature.module}.{feature.output}" if feature.output else feature.module
        if name in chosen:
            item = {"module": feature.module, "kind": feature.kind, "output": feature.output, "layout": feature.layout}
            found.append({key: value for key, value in item.items() if value not in ("", "auto")})
    return found


def _header(args: argparse.Namespace, comparison: Comparison, source: dict[str, Any], proposals: list[Proposal]) -> str:
    how = "within elements" if args.by_element else "over all atoms"
    lines = [
        f"fastkd pair {args.student} {args.teacher} {args.data} --rule {args.rule} --pairs {args.pairs}{'' if args.monotone else ' --no-monotone'}",
        f"linear CKA {how}, {comparison.structures} structures of split {source['split']} of {source['file']} ({source['data_hash'][:12]})",
        *(_sentence(proposal) for proposal in proposals),
        "weights are not proposed: choose λ so that λ · L_KD is about the label loss in the middle of training",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _sentence(proposal: Proposal) -> str:
    text = f"{proposal.term}: student {proposal.student} – teacher {proposal.teacher}, CKA {number(*proposal.cka)}"
    if not proposal.runner_up:
        return text
    verdict = "" if proposal.clear or np.isnan(proposal.cka[1]) else ", not told apart from it"
    return f"{text}; next for this layer: {proposal.runner_up} {number(*proposal.runner_up_cka)}{verdict}"
