"""The code in the pages for people who embed the kernels runs, and their table of functions is complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fastkd_kernels
import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("kernels/README.md", "docs/embedding.md")


def python_blocks(page: str) -> list[tuple[int, str]]:
    """(line of the first statement, source) of each block fenced as python."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start(1)), match.group(1))
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_code_runs_as_printed(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = python_blocks(page)
    assert blocks, f"{page} has no python block"
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for line, source in blocks:
        # leading newlines make a traceback point into the page
        exec(compile("\n" * line + source, str(ROOT / page), "exec"), namespace)
        for printed in re.findall(r"^\s*print\(.*\)  # (.*)$", source, re.MULTILINE):
            assert printed in capsys.readouterr().out


def test_table_of_functions_is_complete() -> None:
    text = (ROOT / "kernels/README.md").read_text(encoding="utf-8")
    named = {name.split(".")[0] for name in re.findall(r"^\| `([\w.]+)\(", text, re.MULTILINE)}
    assert named == set(fastkd_kernels.__all__)


@pytest.mark.parametrize("page", [*PAGES, "docs/kernels.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
