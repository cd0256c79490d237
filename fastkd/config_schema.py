"""Walks the typed schema: which keys exist, what each allows, and how to say so. The ``--help`` and the docs are printed from here.

Example:
    >>> [option.path for option in options() if option.path.endswith("learning_rate")]
    ['train.learning_rate']
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fastkd.config import Config

#: Stands for any index of a list in the path of an option.
INDEX = "N"
_SCALARS = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path", object: "any value"}


@dataclass(frozen=True)
class Option:
    """One line of ``--help``."""

    path: str  #: dotted; ``N`` stands for an index of a list
    allowed: str  #: type and bounds in words
    default: str  #: as YAML, or 'required'
    description: str  #: without the unit
    unit: str  #: empty where there is none


def options(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[Option]:
    """Every option that can be set, depth first, in the order of the schema."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        section, is_list = section_of(field.annotation)
        if section is not None and not is_list:
            yield from options(section, f"{path}.")
            continue
        yield _option(path, field)
        if section is not None:
            yield from options(section, f"{path}.{INDEX}.")


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section a field holds (or None), and whether it holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        return section_of(item)[0], True
    return None, False


def field_at(path: str) -> FieldInfo | None:
    """The field that a dotted path names, with numbers for indices of lists; None if there is no such option.

    Keys inside a free mapping (``data.reference_energies.H``, ``compare.arms.0.set.…``) are the mapping's field.
    """
    section: type[BaseModel] | None = Config
    field: FieldInfo | None = None
    in_list = False
    for part in path.split("."):
        if in_list and part.lstrip("-").isdigit():
            in_list = False
            continue
        if section is not None and not in_list:
            field = section.model_fields.get(part)
            if field is None:
                return None
            section, in_list = section_of(field.annotation)
            in_list = in_list or get_origin(field.annotation) is list
        elif field is None or not _takes_mapping(field.annotation):
            return None
    return field


def nearest(path: str) -> str | None:
    """The valid path most like an unknown one: the same key in another section, then its siblings, then all options."""
    *parents, key = path.split(".")
    elsewhere = [known for known in _all_paths() if known.rsplit(".", 1)[-1] == key]
    if len(elsewhere) == 1 and elsewhere[0].count(".") <= 1:
        return elsewhere[0]
    siblings = _keys_below(".".join(parents))
    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    if close:
        return ".".join([*parents, close[0]])
    generic = ".".join(INDEX if part.isdigit() else part for part in path.split("."))
    close = difflib.get_close_matches(generic, _all_paths(), n=1, cutoff=0.6)
    if not close:
        # a key in the wrong section: compare last names only
        by_name = {known.rsplit(".", 1)[-1]: known for known in reversed(_all_paths())}
        close = [by_name[name] for name in difflib.get_close_matches(key, by_name, n=1, cutoff=0.7)]
    return close[0] if close else None


def allowed(field: FieldInfo) -> str:
    """What a field accepts, in words: ``integer > 0``, ``one of cosine, step``, ``list of text``."""
    return _words(field.annotation, field.metadata)


def options_text() -> str:
    """Every option on its own lines, as ``--help`` prints it; ``N`` in a path is an index counted from 0."""
    lines = ["options of a config (a.b=c on the command line, nested keys in YAML; N is an index from 0):"]
    section = ""
    for option in options():
        first = option.path.split(".")[0]
        if first != section:
            section = first
            lines += ["", f"{section}: {_section_title(section)}"]
        unit = f" [{option.unit}]" if option.unit else ""
        lines += [f"  {option.path} = {option.default}{unit}", f"      {option.description} ({option.allowed})"]
    return "\n".join(lines)


def options_markdown() -> str:
    """Every option as Markdown tables, one per section, for docs/configuration.md."""
    lines: list[str] = []
    section = ""
    for option in options():
        first = option.path.split(".")[0]
        if first != section:
            section = first
            lines += [
                "",
                f"### `{section}`: {_section_title(section)}",
                "",
                "| option | type | default | unit | meaning |",
                "|---|---|---|---|---|",
            ]
        cells = (f"`{option.path}`", option.allowed, f"`{option.default}`", option.unit, option.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).strip() + "\n"


def _section_title(name: str) -> str:
    model = section_of(Config.model_fields[name].annotation)[0]
    text = (model.__doc__ or "").strip().split("\n")[0] if model else ""
    return (text[:1].lower() + text[1:]).rstrip(".")


@cache
def _all_paths() -> tuple[str, ...]:
    leaves = [option.path for option in options()]
    sections = {leaf.rsplit(".", 1)[0] for leaf in leaves if not leaf.rsplit(".", 1)[0].endswith(f".{INDEX}")}
    return tuple(leaves + sorted(sections))


def _keys_below(parent: str) -> list[str]:
    if not parent:
        return list(Config.model_fields)
    section: type[BaseModel] | None = Config
    for part in parent.split("."):
        if part.isdigit():
            continue
        field = section.model_fields.get(part) if section is not None else None
        section = section_of(field.annotation)[0] if field is not None else None
    return list(section.model_fields) if section is not None else []


def _takes_mapping(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_takes_mapping(item) for item in get_args(annotation))
    return get_origin(annotation) is dict


def _option(path: str, field: FieldInfo) -> Option:
    text = field.description or ""
    unit = re.search(r"\s*\[([^\]]+)\]$", text)
    if unit:
        text = text[: unit.start()]
    if field.default is PydanticUndefined:
        default = "required"
    else:
        value = str(field.default) if isinstance(field.default, Path) else field.default
        default = json.dumps(value) if not isinstance(value, str) or not value else value
    return Option(path, allowed(field), default, text, unit.group(1) if unit else "")


def _words(annotation: Any, metadata: list[Any]) -> str:  # noqa: PLR0911 - one return per kind of type
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        return _words(inner, [*metadata, *extra])
    if origin is Literal:
        return "one of " + ", ".join(str(item) for item in get_args(annotation))
    if origin in (Union, types.UnionType):
        return ", or ".join(_words(item, []) for item in get_args(annotation))
    if origin is list:
        return "list of " + _words(get_args(annotation)[0], [])
    if origin is dict:
        key, value = get_args(annotation)
        return f"mapping of {_words(key, [])} to {_words(value, [])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mappings with " + ", ".join(annotation.model_fields)
    return _SCALARS.get(annotation, str(annotation)) + "".join(_bound(item) for item in metadata)


def _bound(constraint: Any) -> str:
    match constraint:
        case Gt(gt=limit):
            return f" > {limit}"
        case Ge(ge=limit):
            return f" ≥ {limit}"
        case Lt(lt=limit):
            return f" < {limit}"
        case Le(le=limit):
            return f" ≤ {limit}"
    pattern = getattr(constraint, "pattern", None)
    return f" matching {pattern}" if pattern else ""


def with_table(page: str) -> str:
    """The text of docs/configuration.md with its generated part made anew."""
    begin, end = "<!-- options: generated -->\n\n", "\n<!-- end of options -->"
    head, rest = page.split(begin)
    return head + begin + options_markdown() + end + rest.split(end)[1]
