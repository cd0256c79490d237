"""``fastkd cache build`` and ``fastkd cache inspect``: arguments, and what they print."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from fastkd.config import Config
from fastkd.config_checks import check_cache_files
from fastkd.config_loading import arm_config, load_config
from fastkd.engine.setup import Workbench, build_cache_of
from fastkd.engine.sources import MOVING
from fastkd.engine.teacher_commands import progress_bar
from fastkd.errors import ConfigError
from fastkd.teachers.cache_file import CacheFile, open_cache


def add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd cache``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="build the cache file of a run, or of all runs of a comparison; goes on with what is there")
    build.add_argument("config", metavar="CONFIG", help="a YAML file, as of `fastkd train`")
    build.add_argument("options", nargs="*", metavar="a.b=c", help="options of the config")
    build.add_argument("--rank", type=int, default=0, help="of this process, from 0 (default: %(default)s)")
    build.add_argument("--world", type=int, default=1, help="processes that share the work (default: %(default)s)")
    build.set_defaults(handler=run_build)
    inspect = actions.add_parser("inspect", help="say what a cache file holds, and whether it is whole")
    inspect.add_argument("file", type=Path, metavar="FILE", help="a cache file (.h5)")
    inspect.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="read everything (default: yes)")
    inspect.add_argument("--json", action="store_true", help="print as JSON")
    inspect.set_defaults(handler=run_inspect_cache)


def run_build(args: argparse.Namespace) -> int:
    """Build what the runs of a config would read.

    Raises:
        UserError: for everything that may be wrong; ConfigError if no term asks a teacher for anything.
    """
    if args.world < 1 or not 0 <= args.rank < args.world:
        raise ConfigError(f"--rank {args.rank} --world {args.world}: ranks count from 0 to world − 1")
    config = load_config(args.config, args.options)
    seeds = config.compare.seeds or [config.run.seed]
    runs = [arm_config(config, arm, seed, config.run.dir / arm.name) for seed in seeds for arm in config.compare.arms] or [config]
    runs = [_on_disk(run) for run in runs if run.named_teachers and run.distill.terms]
    if not runs:
        raise ConfigError(f"{args.config}: no run has a teacher and terms; set teacher.path (or teachers) and distill.terms")
    moving = [run for run in runs if run.augment.kind in MOVING]
    if len(moving) == len(runs):
        raise ConfigError(
            f"augment.kind={moving[0].augment.kind} moves atoms, so a run cannot use a cache of its teacher; drop one of them"
        )
    for run in runs:
        check_cache_files(run)
    bench = Workbench(planned=tuple(runs))
    built = 0
    for run in runs:
        if run.augment.kind in MOVING:
            continue
        with progress_bar(Path(run.data.path).name) as progress:
            built += build_cache_of(run, bench, rank=args.rank, world=args.world, progress=progress)
    if not built:
        raise ConfigError(f"{args.config}: no term asks the teacher for anything, so there is nothing to keep")
    return 0


def _on_disk(config: Config) -> Config:
    kept = {"cache": "disk"}
    teachers = [item.model_copy(update=kept) for item in config.teachers]
    return config.model_copy(update={"teacher": config.teacher.model_copy(update=kept), "teachers": teachers})


def run_inspect_cache(args: argparse.Namespace) -> int:
    """Print what a file holds.

    Raises:
        DataError: if it is damaged, or no cache.
    """
    with open_cache(args.file) as file:
        if args.check:
            file.check()
        print(json.dumps(_facts(file), indent=1, ensure_ascii=False) if args.json else _text(file, checked=args.check))
    return 0


def _facts(file: CacheFile) -> dict[str, object]:
    return {
        "key": asdict(file.key),
        "structures": file.cost.structures,
        "atoms": file.cost.atoms,
        "edges": None if file.layout.edge_start is None else int(file.layout.edge_start[-1]),
        "bytes": file.num_bytes,
        "teacher_seconds": file.cost.seconds,
        "shards": [[path.name, size] for path, size in file.shards],
        "arrays": {name: {key: _plain(value) for key, value in facts.items()} for name, facts in sorted(file.arrays.items())},
        "told": file.told,
    }


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [int(item) for item in value]
    return value if isinstance(value, str) else float(value)  # type: ignore[arg-type]


def _text(file: CacheFile, *, checked: bool) -> str:
    key = file.key
    cutoff = "its own" if key.cutoff is None else f"{key.cutoff:g} Å"
    lines = [
        f"{file.path}: {file.cost.structures} structures, {file.cost.atoms} atoms, {1e-6 * file.num_bytes:.1f} MB in {len(file.shards)} shards",
        f"teacher     {key.teacher[:12]} in {key.teacher_dtype}, neighbours: {cutoff} {key.neighbours}".rstrip(),
        f"data        {key.data[:12]}, positions in {key.data_dtype}",
        f"the teacher took {file.cost.seconds:.1f} s on {file.told.get('device', 'an unknown device')}",
    ]
    for name, facts in sorted(file.arrays.items()):
        line = f"  {name:24s} per {facts['per']:9s} {list(facts['shape'])!s:20s} {facts['dtype']}"
        if facts.get("relative_error"):
            line += f"  relative error {facts['relative_error']:.2g}, largest {facts['largest_error']:.2g}"
        lines.append(line)
    for name, error in file.told.get("loss_error", {}).items():
        lines.append(f"  loss {name} at the start of training: relative error {error:.2g}")
    lines.append("every checksum is right" if checked else "not read in full (--check)")
    return "\n".join(lines)
