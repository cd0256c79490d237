"""From a YAML file and ``a.b=c`` options to a checked `Config`, with error messages that say what, where and how to mend it.

Precedence, weakest first: the defaults of the schema, the file (or, if none is named, the quickstart that ships with fastkd), the
command line from left to right. YAML is data: it is read with the safe loader, in the spelling of YAML 1.2 (``1e-3`` is a number,
``no`` is text), and a key given twice is an error.

Example:
    >>> load_config(None, ["train.steps=10"]).train.steps
    10
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fastkd.config import ArmConfig, Config
from fastkd.config_checks import check_seeds, check_sense
from fastkd.config_schema import allowed, field_at, nearest, section_of
from fastkd.errors import ConfigError

QUICKSTART = Path(__file__).parent / "assets" / "quickstart.yaml"


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read, override and check a configuration.

    Args:
        path: YAML file; None means the quickstart that ships with fastkd.
        overrides: ``"dotted.key=value"``, values in YAML, applied from left to right; numbers index lists (``distill.terms.0.weight=2``).

    Raises:
        ConfigError: for an unreadable file, YAML that does not parse, unknown keys and values that are not allowed; all at once.
    """
    source = Path(path) if path is not None else QUICKSTART
    tree = read_yaml(source)
    for override in overrides:
        apply_override(tree, override)
    config = validate(tree, str(source) if path is not None else "the quickstart config")
    named = {
        "compare.arms": [arm.name for arm in config.compare.arms],
        "compare.seeds": [str(seed) for seed in config.compare.seeds],
        "ablate.seeds": [str(seed) for seed in config.ablate.seeds],
    }
    for name, values in named.items():
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ConfigError(f"{name}: {', '.join(twice)} is given twice; each run needs a folder of its own")
    if not config.compare.arms:
        check_sense(config)
    for number, arm in enumerate(config.compare.arms):
        try:
            one = arm_config(config, arm, config.run.seed, config.run.dir)
            check_sense(one)
            check_seeds(one, "compare.seeds", config.compare.seeds)
        except ConfigError as error:
            raise ConfigError(f"compare.arms.{number} ({arm.name}): {error}") from None
    return config


def validate(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Check a nested mapping against the schema.

    Raises:
        ConfigError: with every mistake found, each with its full path.
    """
    problems = list(_unknown_keys(Config, tree, "")) + list(_unfit_numbers(tree, ""))
    if not problems:
        try:
            # strict JSON mode: "3" is no integer and true is no number, but text may be a path
            return Config.model_validate_json(json.dumps(tree, default=str), strict=True)
        except ValidationError as error:
            problems = list(dict.fromkeys(_explain(item, tree) for item in error.errors()))
    if len(problems) == 1:
        raise ConfigError(f"{problems[0]}\n  in {source}")
    numbered = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
    raise ConfigError(f"{len(problems)} mistakes in {source}:\n{numbered}")


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value`` in a nested mapping, in place; the index just past the end of a list appends.

    Raises:
        ConfigError: if it has no ``=``, names no option, or its value is not YAML.
    """
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(f"{override!r} is no option; write dotted.key=value, for example train.steps=500")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {path} is not YAML: {text!r} ({_reason(error)})") from None
    set_path(tree, path, value)


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in a nested mapping, in place.

    Raises:
        ConfigError: if the path names no option, or indexes past the end of a list.
    """
    if field_at(path) is None and not _is_section(path):
        raise ConfigError(_unknown(path))
    *parents, last = path.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        if isinstance(node, list):
            index = _index(node, part, path)
            if index == len(node):
                node.append({})
            node = node[index]
        else:
            fresh: Any = [] if parents[depth + 1 :][:1] and parents[depth + 1].isdigit() else {}
            fresh = [] if depth + 1 == len(parents) and last.isdigit() and _is_list(".".join(parents)) else fresh
            if not isinstance(node.get(part), dict | list):
                node[part] = fresh
            node = node[part]
    if isinstance(node, list):
        index = _index(node, last, path)
        node[index : index + 1] = [value]
    else:
        node[last] = value


def arm_config(config: Config, arm: ArmConfig, seed: int, folder: Path) -> Config:
    """The config of one run of a comparison: the common one with the arm's changes, its seed and its folder; no arms of its own.

    Raises:
        ConfigError: if a changed key is unknown, not allowed here, or its value is wrong.
    """
    tree = to_tree(config)
    tree["compare"], tree["ablate"] = {}, {}
    if "model.preset" in arm.set:
        # what the common model says is no contradiction: the arm has another one
        tree["model"] = {"filters": config.model.filters}
    for path, value in arm.set.items():
        if path.split(".")[0] in ("compare", "ablate") or path in ("run.dir", "run.seed", "run.resume", "run.threads", "run.device"):
            raise ConfigError(f"set: {path} belongs to the whole comparison, not to one arm; set it outside compare.arms")
        set_path(tree, path, copy.deepcopy(value))
    tree["run"] |= {"seed": seed, "dir": str(folder)}
    return validate(tree, f"arm {arm.name!r}")


def to_tree(config: BaseModel) -> dict[str, Any]:
    """A config as nested plain values, paths as text; `validate` of it gives the config back."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    return tree


def to_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that `load_config` reads back to the same."""
    text: str = yaml.dump(to_tree(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)
    return text


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted paths whose values differ, with both values; a list counts as one value."""
    return {
        path: (old_value, new_value) for path, old_value, new_value in _leaves(to_tree(old), to_tree(new), "") if old_value != new_value
    }


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping (an empty file is an empty one).

    Raises:
        ConfigError: with file and line, if it cannot be read, does not parse, or names a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8; a config is a YAML file") from None
    except OSError as error:
        hint = "; write options as dotted.key=value" if not path.suffix else ""
        raise ConfigError(f"cannot read the config {path}: {error.strerror}{hint}") from None
    try:
        tree = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {_reason(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_reason(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of sections such as 'train:', got a {type(tree).__name__}")
    return tree


def _leaves(old: Any, new: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [(prefix, old, new)]
    keys = list(dict.fromkeys([*old, *new]))
    return [leaf for key in keys for leaf in _leaves(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)]


def _unknown(path: str) -> str:
    guess = nearest(path)
    hint = f"; did you mean {guess}?" if guess else "; --help lists every option"
    parts = path.split(".")
    # the first part that leads nowhere is the misspelt one
    wrong = next((n for n in range(1, len(parts)) if field_at(".".join(parts[:n])) is None), len(parts))
    return f"unknown key {parts[wrong - 1]!r} in {path}{hint}"


def _unknown_keys(model: type[BaseModel], tree: Any, prefix: str) -> list[str]:
    if not isinstance(tree, Mapping):
        return []  # a wrong type, reported by the validation of values
    problems = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        field = model.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            problems.append(_unknown(path))
            continue
        section, is_list = section_of(field.annotation)
        if section is None:
            continue
        items = enumerate(value) if is_list and isinstance(value, list) else [(None, value)]
        for number, item in items:
            problems += _unknown_keys(section, item, f"{path}." if number is None else f"{path}.{number}.")
    return problems


def _unfit_numbers(tree: Any, prefix: str) -> list[str]:
    if isinstance(tree, float) and not math.isfinite(tree):
        return [f"{prefix} = {tree}: must be a finite number"]
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    return [problem for key, value in items for problem in _unfit_numbers(value, f"{prefix}.{key}" if prefix else str(key))]


def _explain(error: Any, tree: Any) -> str:
    path, value = [], tree
    for part in error["loc"]:
        # the validator names members of a union in its path; those are no keys of the file
        if not (isinstance(value, Mapping) and part in value) and not (isinstance(value, list) and isinstance(part, int)):
            if error["type"] == "missing":
                path.append(str(part))
            break
        path.append(str(part))
        value = value[part]
    dotted = ".".join(path)
    if error["type"] == "value_error":
        return f"{dotted}: {error['ctx']['error']}"
    field = field_at(dotted)
    if error["type"] == "missing":
        return f"{dotted} is missing: it must be given ({field.description if field else ''})"
    section, is_list = section_of(field.annotation) if field else (None, False)
    is_item = path[-1:] != [] and path[-1].isdigit()
    if field is None or (section is not None and (is_item or not is_list)):
        keys = f", with keys {', '.join(section.model_fields)}" if section else ""
        return f"{dotted or 'the config'} = {_short(value)}: must be a mapping{keys}"
    article = "an item of a " if is_item else "a " if is_list else ""
    return f"{dotted} = {_short(value)}: must be {article}{allowed(field)} ({field.description})"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_section(path: str) -> bool:
    return any(path == name for name in Config.model_fields)


def _is_list(path: str) -> bool:
    field = field_at(path)
    return field is not None and allowed(field).startswith("list of")


def _index(items: list[Any], part: str, path: str) -> int:
    if not part.isdigit() or int(part) > len(items):
        raise ConfigError(f"{path}: {part!r} is no index of a list of {len(items)}; use 0 to {len(items)}, the last one appends")
    return int(part)


def _reason(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None)
    context = getattr(error, "context", None)
    return ", ".join(part for part in (context, problem) if part) or str(error)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars, and no key twice."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - as in the base class

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - as in the base class

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _resolve(tag: str, pattern: str, first: str) -> None:
    for target in (_Loader, _Dumper):
        target.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789")
_resolve(
    "float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+.0123456789"
)
_resolve("null", r"^(?:~|null|Null|NULL|)$", "~nN\0")
_resolve("merge", r"^(?:<<)$", "<")
for _target in (_Loader, _Dumper):
    _target.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
