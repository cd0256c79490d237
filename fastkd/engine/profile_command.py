"""``fastkd profile CONFIG``: what a training step is spent on, and the sentences that matter."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastkd.config_loading import load_config, to_tree
from fastkd.engine.environment import describe_environment
from fastkd.engine.profile import ALL, ALONE, Profile, profile
from fastkd.errors import ConfigError
from fastkd.files import write_json

_MEANING = {
    "data": "waiting for a batch",
    "teacher": "targets, live or from the cache",
    "student energy": "forward pass",
    "student forces": "first backward pass, for the forces",
    "labels": "loss on labels",
    "backward": "through the forces: double backward",
    "optimiser": "clipping, AdamW, moving average",
    "rest": "sums, checks",
}


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd profile``."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="config of a single run")
    parser.add_argument("options", nargs="*", metavar="a.b=c", help="options of the config to change")
    parser.add_argument("--steps", type=int, default=30, help="steps to measure (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before, which are not measured (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write everything that was measured")


def run_profile(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        UserError: for a config, data, teacher or file that does not serve.
    """
    if args.out is not None and args.out.exists():
        raise ConfigError(f"{args.out} exists already; choose another file with --out")
    config = load_config(args.config, args.options)
    console = Console(highlight=False, soft_wrap=True)
    found = profile(config, steps=args.steps, warmup=args.warmup, say=lambda message: console.print(message, markup=False))
    for table in tables(found):
        console.print(table)
    lines = sentences(found)
    for line in lines:
        console.print(line, markup=False)
    if args.out is not None:
        write_json(args.out, _json(found, lines, to_tree(config)))
    return 0


def tables(found: Profile) -> list[Table]:
    """Parts of a step, and what each term adds."""
    where = f"{found.device}, {found.threads} threads" if found.threads else found.device
    parts = Table(title=f"a step of {found.atoms:.0f} atoms, median of {found.steps} ({where})", title_justify="left")
    for name in ("part", "ms", "%", ""):
        parts.add_column(name, justify="right" if name in ("ms", "%") else "left")
    meanings = _MEANING if "student forces" in found.parts else _MEANING | {"backward": "of the energy: no forces are computed"}
    for name, ms in found.parts.items():
        meaning = meanings.get(name, "loss of this term, forward")
        parts.add_row(name, f"{ms:.3f}", f"{100 * ms / found.step:.1f}", meaning)
    parts.add_section()
    parts.add_row("step", f"{found.step:.3f}", "100.0", "medians need not add up")
    if not found.variants:
        return [parts]
    terms = Table(title="with and without terms, step against step", title_justify="left")
    for name in ("step", "ms", "× student alone"):
        terms.add_column(name, justify="left" if name == "step" else "right")
    for name, ms in found.variants.items():
        terms.add_row(name, f"{ms:.3f}", f"{ms / found.variants[ALONE]:.3f}")
    terms.add_section()
    for name, ms in found.overhead.items():
        terms.add_row(f"{name} adds", f"{ms:+.3f}", f"{ms / found.variants[ALONE]:+.3f}")
    return [parts, terms]


def sentences(found: Profile) -> list[str]:
    """What the numbers mean for the run."""
    lines = []
    cache = found.cache
    if cache is not None and found.mode == "none":
        share = 100 * found.parts["teacher"] / found.step
        verb = "saves" if cache.saved_s > 0 else "loses"
        lines.append(
            f"the teacher is {share:.0f} % of the step; caching {verb} {duration(abs(cache.saved_s))} of {duration(1e-3 * found.step * cache.steps)} "
            f"({cache.steps:,} steps) and costs {size(cache.bytes)} for {cache.structures:,} structures"
        )
    elif cache is not None:
        live = found.step - found.parts["teacher"] + cache.live_ms
        verb = "saves" if cache.saved_s > 0 else "loses"
        lines.append(
            f"the teacher's cache is {100 * found.parts['teacher'] / found.step:.1f} % of the step, live the teacher would be {100 * cache.live_ms / live:.0f} %; "
            f"the cache {verb} {duration(abs(cache.saved_s))} over {cache.steps:,} steps, takes {duration(cache.build_s)} to build, "
            f"and costs {size(cache.bytes)} for {cache.structures:,} structures"
        )
    if found.variants:
        ratio = found.variants[ALL] / found.variants[ALONE]
        terms = sum(ms for name, ms in found.parts.items() if name.startswith("kd "))
        most = max(found.overhead, key=lambda name: found.overhead[name])
        added = f"{most} adds most ({found.overhead[most]:+.2f} ms with its share of teacher and backward pass)"
        if found.overhead[most] <= 0:
            added = "what any of them adds is lost in the noise; take more --steps"
        lines.append(
            f"distillation makes a step {ratio:.2f} times as long as the student's own; the terms' losses are {100 * terms / found.step:.1f} % of it, "
            f"and {added}"
        )
    else:
        lines.append("there is no distillation in this config: the step is the student's own")
    lines.append(f"the clocks themselves took about {found.timer_us:.0f} µs of a step ({0.1 * found.timer_us / found.step:.2f} %)")
    return lines


def duration(seconds: float) -> str:
    """Like ``38 min``."""
    for limit, unit, width in ((120.0, "s", 1.0), (7200.0, "min", 60.0), (float("inf"), "h", 3600.0)):
        if seconds < limit:
            value = seconds / width
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    raise AssertionError("unreachable")


def size(count: int) -> str:
    """Like ``22 GB``."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if value < 10 and unit != "B" else f"{value:.0f} {unit}"


def _json(found: Profile, lines: list[str], config: dict[str, Any]) -> dict[str, Any]:
    return {
        **asdict(found),
        "units": {"parts": "ms", "step": "ms", "variants": "ms", "overhead": "ms", "spread": "ms (interquartile range)"},
        "percent": {name: 100 * ms / found.step for name, ms in found.parts.items()},
        "sentences": lines,
        "config": config,
        "environment": describe_environment(),
    }
