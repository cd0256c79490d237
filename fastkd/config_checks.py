"""Combinations of options that the schema allows and a run cannot use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastkd.config import Config
from fastkd.errors import ConfigError

#: A ``teacher.cache_path`` with such an ending is a file, any other a folder.
CACHE_FILES = (".h5", ".hdf5")


def check_sense(config: Config) -> None:
    """Combinations that the schema allows and a run cannot use.

    Raises:
        ConfigError: naming both keys of the first one found.
    """
    _check_teachers(config)
    if not config.named_teachers:
        if any(term.kind != "lkm" for term in config.distill.terms):
            raise ConfigError("distill.terms need a teacher (but for lkm): set teacher.path (a folder, or 'embedded'), or drop them")
        if config.data.unlabelled:
            raise ConfigError("data.unlabelled needs a teacher to learn from: set teacher.path (a folder, or 'embedded') and distill.terms")
    elif config.data.unlabelled and not any(term.kind != "lkm" for term in config.distill.terms):
        raise ConfigError("data.unlabelled structures teach nothing without distill.terms: add terms, or set data.unlabelled=0")
    if (
        config.loss.energy_weight == 0
        and config.loss.forces_weight == 0
        and not any(term.weight or term.weight_start for term in config.distill.terms)
    ):
        raise ConfigError("every weight is zero (loss.energy_weight, loss.forces_weight, distill.terms): there is nothing to learn")
    if not (config.loss.energy_weight or config.loss.forces_weight) and any(
        term.weight_rule == "gradient_ratio" for term in config.distill.terms
    ):
        raise ConfigError(
            "weight_rule=gradient_ratio holds a ratio to the gradient of the labels, which have no weight: set loss.energy_weight or "
            "loss.forces_weight, or weight_rule=fixed"
        )
    _check_augment(config)
    if config.model.kind not in ("painn", "gemnet_oc") and config.model.forces == "direct":
        raise ConfigError(
            f"model.forces=direct is PaiNN's and GemNet-OC's; forces of {config.model.kind} are −dE/dx: set model.forces=conservative"
        )


#: Keys of ``augment`` that belong to some kinds only.
_AUGMENT_KEYS = {
    "length": ("rattle", "noise"),
    **dict.fromkeys(("along_force", "force_scale"), ("rattle",)),
    **dict.fromkeys(
        ("ascent", "ascent_steps", "ascent_rate", "ascent_length", "ascent_rule", "force_penalty", "teacher_gradient"), ("adversarial",)
    ),
}


#: Of ``augment.kind=adversarial``: keys that belong to some ``ascent`` only.
_ASCENT_KEYS = {
    "ascent_rule": ("orthogonal",),
    "ascent_length": ("sphere", "ball", "orthogonal"),
    "ascent_rate": ("adam", "ball", "orthogonal"),
}


def _check_augment(config: Config) -> None:
    augment = config.augment
    usual = type(augment)().model_dump()
    for key, ascents in _ASCENT_KEYS.items():
        if augment.kind == "adversarial" and augment.ascent not in ascents and getattr(augment, key) != usual[key]:
            raise ConfigError(f"augment.{key} belongs to augment.ascent={' and '.join(ascents)}, not {augment.ascent}; leave it away")
    if augment.kind == "adversarial" and augment.ascent == "orthogonal":
        unread = "ascent_rate" if augment.ascent_rule == "fixed" else "ascent_length"
        if getattr(augment, unread) != usual[unread]:
            raise ConfigError(f"augment.{unread} does nothing with augment.ascent_rule={augment.ascent_rule}; leave it away")
    if augment.kind == "rattle" and augment.along_force != "around" and augment.force_scale != usual["force_scale"]:
        raise ConfigError("augment.force_scale belongs to augment.along_force=around; leave it away")
    for key, kinds in _AUGMENT_KEYS.items():
        if augment.kind not in ("none", *kinds) and getattr(augment, key) != usual[key]:
            raise ConfigError(f"augment.{key} belongs to augment.kind={' and '.join(kinds)}, not {augment.kind}; leave it away")
    taught = any(term.kind != "lkm" for term in config.distill.terms)
    if augment.kind in ("rattle", "adversarial") and not taught:
        raise ConfigError(
            f"augment.kind={augment.kind} moves what is distilled, and there are no distill.terms with a teacher: add some, or set "
            "augment.kind=noise, which keeps the labels, or none"
        )
    if augment.kind == "noise" and taught:
        raise ConfigError("augment.kind=noise is the baseline without a teacher: drop distill.terms, or set augment.kind=rattle")
    if augment.kind in ("rattle", "noise") and augment.sigma == 0 and (augment.along_force != "around" or augment.kind == "noise"):
        raise ConfigError(f"augment.kind={augment.kind} with augment.sigma=0 moves nothing: set augment.sigma, or augment.kind=none")
    if augment.kind == "adversarial" and augment.force_penalty and not augment.teacher_gradient:
        raise ConfigError(
            "augment.force_penalty is a penalty through the teacher's gradient: set augment.teacher_gradient=true, or it to 0"
        )
    if augment.ascent == "orthogonal" and augment.ascent_rule == "inv_prop" and not augment.limit:
        raise ConfigError("augment.ascent_rule=inv_prop sends atoms without force away: set augment.limit")


def _check_teachers(config: Config) -> None:
    if config.teachers and config.teacher.path:
        raise ConfigError("teacher.path and teachers are both set: name all teachers in teachers, or leave that away")
    if config.teacher.members and not config.teacher.path:
        raise ConfigError("teacher.members are more teachers like teacher.path, which is not set: put the first one there")
    for number, item in enumerate(config.teachers):
        if not item.path:
            raise ConfigError(f"teachers[{number}] ({item.name}) needs a path: a folder, or as teacher.path")
    names = [item.name for item in config.teachers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"teachers: {', '.join(twice)} is given twice; terms name teachers")
    if len(names) == 1:
        raise ConfigError("teachers holds one teacher only: put it into teacher, or name more")
    check_cache_files(config)


def check_seeds(config: Config, key: str, seeds: Sequence[int]) -> None:
    """A cache of its own for each seed, where the seed chooses the structures.

    Args:
        config: of a run.
        key: that lists the seeds.
        seeds: more than one may need more than one file.

    Raises:
        ConfigError: if one file is named for all.
    """
    if len(seeds) < 2 or not config.distill.terms or not (config.data.labelled or config.data.unlabelled):
        return
    for teacher in config.named_teachers.values():
        if teacher.cache in ("disk", "auto") and teacher.cache_path.suffix in CACHE_FILES:
            raise ConfigError(
                f"{key} lists {len(seeds)} seeds, each of which chooses other structures (data.labelled, data.unlabelled), and "
                f"teacher.cache_path = {teacher.cache_path} is the file of one choice; name a folder, in which each gets a file"
            )


def check_cache_files(config: Config) -> None:
    """Teachers that keep what they say on disk need a file each.

    Raises:
        ConfigError: if two of them name the same one.
    """
    files: dict[Path, str] = {}
    for name, teacher in config.named_teachers.items():
        if teacher.cache not in ("disk", "auto") or teacher.cache_path.suffix not in CACHE_FILES:
            continue
        if teacher.cache_path in files:
            key = "teacher.cache_path" if config.teacher.members else f"cache_path of teachers {files[teacher.cache_path]} and {name}"
            raise ConfigError(
                f"{key} = {teacher.cache_path} is one file, and a cache holds what one teacher says; name a folder, in which each gets a file"
            )
        files[teacher.cache_path] = name
