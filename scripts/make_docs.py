"""Write the generated pages of the docs, and check that every relative link of every page leads somewhere.

Generated from the typed schema: the table of options in ``docs/configuration.md``, and ``docs/config.schema.json`` for editors.
``--check`` writes nothing and exits 1 if a page is stale or a link is broken.

    python scripts/make_docs.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from fastkd.config import Config
from fastkd.config_schema import with_table

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def pages() -> dict[Path, str]:
    """Every generated page, as it should be now."""
    configuration = ROOT / "docs/configuration.md"
    schema = json.dumps(Config.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
    return {configuration: with_table(configuration.read_text(encoding="utf-8")), ROOT / "docs/config.schema.json": schema}


def broken_links() -> list[str]:
    """Relative links of Markdown pages that lead nowhere, as ``page: target``."""
    broken = []
    for folder in (".", "docs", "kernels", "bench"):
        for file in sorted((ROOT / folder).glob("*.md" if folder == "." else "**/*.md")):
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
