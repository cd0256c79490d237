"""What an ablation tries: the base config, the student alone, and the base with one thing changed (or several), as arms of a comparison.

Example:
    >>> config = load_config("base.yaml", ["ablate.losses=[mse, mae]", "ablate.weight_factors=[0.1, 1, 10]"])
    >>> [arm.name for arm in make_trials(config, print)]
    ['alone', 'base', 'n2n-loss-mae', 'n2n-weight-0p1', 'n2n-weight-10']
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastkd.config import ArmConfig, Config, TermConfig
from fastkd.config_checks import check_sense
from fastkd.config_loading import arm_config, to_tree
from fastkd.distill.checks import OUTPUT_KINDS, check_options
from fastkd.distill.term import AUTO_LOSS
from fastkd.errors import ConfigError

ALONE, BASE = "alone", "base"
#: What is tried where the config names nothing.
DEFAULTS: dict[str, list[Any]] = {
    "losses": ["mse", "mae", "huber"],
    "projections": ["linear", "identity", "mlp"],
    "weight_factors": [0.1, 1.0, 10.0],
}
#: List of `AblateConfig` → key of a term on features.
_TERM_KEYS = {"losses": "loss", "projections": "projection", "teacher_layers": "teacher_layer", "student_layers": "student_layers"}
_LONGEST = 60
#: What all trials are judged by, or what the ablation sets itself: the same for all.
_SHARED = (
    *(f"data.{name}" for name in ("path", "systems", "val_split", "val_size", "test_split", "test_size")),
    *("loss.energy_weight", "loss.forces_weight", "loss.per_atom_energy", "train.eval_on_free_atoms", "train.steps"),
)


@dataclass(frozen=True)
class _Option:
    """One value of one axis."""

    slug: str
    title: str
    set: dict[str, Any]


def make_trials(config: Config, say: Callable[[str], None]) -> list[ArmConfig]:
    """Every trial, ``alone`` and ``base`` first; those that equal an earlier one are left out.

    Args:
        config: with terms, and without arms.
        say: told of every trial that its options rule out.

    Raises:
        ConfigError: if there is nothing to vary, or more trials than ``ablate.most``.
    """
    if config.compare.arms:
        raise ConfigError("this is a comparison of several runs; name one by its options, with compare.arms=[]")
    if not config.distill.terms:
        raise ConfigError("fastkd ablate varies distill.terms, and there are none; name a config with terms")
    if not (config.loss.energy_weight or config.loss.forces_weight):
        raise ConfigError("the student alone learns from labels, whose weights are 0: set loss.energy_weight or loss.forces_weight")
    for key in config.ablate.vary:
        shared = [name for name in _SHARED if name == key or name.startswith(f"{key}.")]
        if shared:
            raise ConfigError(
                f"ablate.vary: {key} changes what trials are judged by ({', '.join(shared)}), so that they could not be compared"
            )
    axes = list(_axes(config))
    wanted = _chosen(axes, config.ablate.method)
    trials = [_alone(config), ArmConfig(name=BASE, title="as configured")]
    known = {_canonical(_built(config, trial)) for trial in trials}
    taken = {ALONE, BASE}
    for options in wanted:
        name = _name([option.slug for option in options], taken)
        arm = ArmConfig(name=name, title="; ".join(option.title for option in options), set=_merged(options))
        try:
            one = _built(config, arm)
            for number, term in enumerate(one.distill.terms):
                check_options(term, f"distill.terms[{number}] ({term.kind})")
        except ConfigError as error:
            say(f"left out, {arm.title}: {error}")
            continue
        key = _canonical(one)
        if key in known:
            continue
        known.add(key)
        taken.add(name)
        trials.append(arm)
        if len(trials) > config.ablate.most:
            break
    if len(trials) > config.ablate.most:
        raise ConfigError(
            f"at least {len(trials)} trials are more than ablate.most = {config.ablate.most}; shorten the lists, set ablate.method=each, or raise it"
        )
    if len(trials) == 2:
        raise ConfigError("nothing is left to vary: every value is that of the config, or not possible; add values under ablate")
    return trials


def _alone(config: Config) -> ArmConfig:
    changes: dict[str, object] = {
        "distill.terms": [],
        "distill.watch_cka": 0,
        "distill.gradient_every": 0,
        "data.unlabelled": 0,
        "data.labelled_fraction": 0.0,
        # in synthetic structures the teacher speaks too
        "augment.synthetic": "",
    }
    if config.augment.kind != "noise":
        # noise needs no teacher: with it, too, terms are all that differs
        changes["augment.kind"] = "none"
    return ArmConfig(name=ALONE, title="student alone", set=changes)


def _axes(config: Config) -> Iterator[list[_Option]]:
    asked = config.ablate
    lists: dict[str, list[Any]] = {name: getattr(asked, name) for name in (*_TERM_KEYS, "weight_factors")}
    if not asked.vary and not any(lists.values()):
        lists = lists | DEFAULTS
    counts: dict[str, int] = {}
    for number, term in enumerate(config.distill.terms):
        counts[term.kind] = counts.get(term.kind, 0) + 1
        name = term.kind if counts[term.kind] == 1 else f"{term.kind}_{counts[term.kind]}"
        path = f"distill.terms.{number}"
        on_features = term.kind not in (*OUTPUT_KINDS, "lkm", "hessian")
        for what, key in _TERM_KEYS.items():
            if on_features and lists[what] and not (key == "loss" and term.kind == "v2v_geometric"):
                yield [_Option(f"{name}-{key}-{_slug(v)}", f"{name}: {key} {_text(v)}", {f"{path}.{key}": v}) for v in lists[what]]
        if lists["weight_factors"]:
            yield [_scaled(name, path, term, factor) for factor in lists["weight_factors"]]
    for key, values in asked.vary.items():
        # of a key, which may be an option of somebody else's, what a folder may be called
        name = re.sub("[^a-z0-9_]+", "-", key.rsplit(".", 1)[-1].lower()).strip("-") or "key"
        yield [_Option(f"{name}-{_slug(v)}", f"{key} = {_text(v)}", {key: v}) for v in values]


def _scaled(name: str, path: str, term: TermConfig, factor: float) -> _Option:
    changes = {f"{path}.weight": term.weight * factor}
    if term.weight_start:
        changes[f"{path}.weight_start"] = term.weight_start * factor
    return _Option(f"{name}-weight-{_slug(factor)}", f"{name}: λ × {factor:g}", changes)


def _chosen(axes: Sequence[list[_Option]], method: str) -> Iterator[tuple[_Option, ...]]:
    if method == "each":
        yield from ((option,) for axis in axes for option in axis)
        return
    yield from itertools.product(*axes)


def _merged(options: Sequence[_Option]) -> dict[str, object]:
    merged: dict[str, object] = {}
    # a whole list of terms first, then keys of its items
    for option in sorted(options, key=lambda option: min(path.count(".") for path in option.set)):
        merged |= option.set
    return merged


def _built(config: Config, arm: ArmConfig) -> Config:
    one = arm_config(config, arm, config.run.seed, config.run.dir / arm.name)
    check_sense(one)
    return one


def _canonical(config: Config) -> str:
    """Text that is the same for configs that compute the same."""
    tree = to_tree(config)
    tree["run"] = {"dtype": tree["run"]["dtype"]}
    for term in tree["distill"]["terms"]:
        if term["loss"] == "auto":
            term["loss"] = AUTO_LOSS[term["kind"]]
    return json.dumps(tree, sort_keys=True)


def _name(slugs: Sequence[str], taken: set[str]) -> str:
    name = "_".join(slugs)
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    base, number = name, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def _slug(value: Any) -> str:
    """A value as part of a folder's name; different numbers stay different."""
    text = f"{value:g}" if isinstance(value, float) else _text(value)
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace(".", "p").replace("e-0", "em").replace("+", "")).strip("-") or "none"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and all(isinstance(item, dict) and "kind" in item for item in value):
        return " + ".join(_term(item) for item in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else str(value)


def _term(item: dict[str, Any]) -> str:
    """A term by its kind and whatever else is said of it."""
    rest = ", ".join(f"{key} {_text(value)}" for key, value in item.items() if key != "kind")
    return f"{item['kind']} ({rest})" if rest else str(item["kind"])
