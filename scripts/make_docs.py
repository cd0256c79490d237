"""Write the generated pages of the docs, and check that every relative link of every page leads somewhere.

Generated: ``docs/options.md`` (every option with type, default and description) and ``docs/config.schema.json`` (for editors), both from
the typed schema. ``--check`` writes nothing and exits 1 if a page is stale or a link is broken.

    python scripts/make_docs.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from fastkd.config import Config, Section

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def options(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted path and field of every leaf option; items of lists are shown as ``name.0.key``."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        inner = next((arg for arg in get_args(field.annotation) if isinstance(arg, type) and issubclass(arg, Section)), None)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from options(field.annotation, f"{path}.")
        else:
            yield path, field
            if inner is not None:
                yield from options(inner, f"{path}.0.")


def type_name(annotation: Any) -> str:
    """A short name: allowed values of a Literal, else the type's own name."""
    if get_origin(annotation) is None:
        return getattr(annotation, "__name__", str(annotation))
    if str(annotation).startswith("typing.Literal"):
        return ", ".join(map(str, get_args(annotation)))
    return " or ".join(type_name(arg) for arg in get_args(annotation) if not hasattr(arg, "gt")) or str(annotation)


def options_page() -> str:
    rows = ["# Options", "", "Generated from the schema by `make docs`; `python -m fastkd.train --help` prints the same.", ""]
    rows += ["| option | values | default | meaning |", "|---|---|---|---|"]
    for path, field in options(Config):
        default = "required" if field.is_required() else f"`{json.dumps(field.default, default=str)}`"
        rows.append(f"| `{path}` | {type_name(field.annotation)} | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def pages() -> dict[Path, str]:
    schema = json.dumps(Config.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
    return {ROOT / "docs/options.md": options_page(), ROOT / "docs/config.schema.json": schema}


def broken_links() -> list[str]:
    broken = []
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("kernels/**/*.md"), *ROOT.glob("bench/**/*.md")]
    for file in files:
        for target in LINK.findall(file.read_text(encoding="utf-8")):
            if "://" not in target and not (file.parent / target).exists():
                broken.append(f"{file.relative_to(ROOT)}: {target}")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    args = parser.parse_args()
    problems = []
    for path, text in pages().items():
        if not args.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            problems.append(f"{path.relative_to(ROOT)} is stale: run `make docs`")
    problems += [f"broken link in {link}" for link in broken_links()]
    print("\n".join(problems) or "docs: generated pages are current, links lead somewhere")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
