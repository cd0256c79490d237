"""The folder of a run: what lies in it, who may use it, and how it is gone on with.

config.yaml        the resolved config          environment.json   versions, commit, command
metrics.csv        one row per evaluation       checkpoints/       last and best, for resuming
model.safetensors  the best average weights     model.json         their config and units
predictions.npz    on the test split            summary.json       errors on the test split; there when the run is done
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from fastkd.config import Config
from fastkd.config_loading import differences, read_yaml, to_yaml, validate
from fastkd.engine.environment import describe_environment
from fastkd.engine.state import has_checkpoint
from fastkd.errors import CheckpointError
from fastkd.files import cannot_write, write_json, write_text

CONFIG, ENVIRONMENT, METRICS, SUMMARY = "config.yaml", "environment.json", "metrics.csv", "summary.json"
_OURS = (CONFIG, METRICS, SUMMARY, "checkpoints", "model.safetensors", "student.safetensors", "report.html")
#: May differ between a run and its continuation: where and how long, not what is computed.
_MAY_CHANGE = {
    "run.dir",
    "run.resume",
    "run.report",
    "run.inference_repeats",
    "train.steps",
    "train.checkpoint_every",
    "run.threads",
    "ablate.seconds",
    # where a cache of the teacher is, and how it is read, changes no bit
    "teacher.cache_path",
    "teacher.cache_preload",
}


def open_folder(config: Config) -> bool:
    """Claim the folder of a run, or join the run in it.

    Returns:
        Whether there is a checkpoint to go on from.

    Raises:
        CheckpointError: if it holds a run and ``run.resume`` is not set, holds none or another one and it is set, or cannot be written.
    """
    folder = config.run.dir
    try:
        found = [name for name in _OURS if (folder / name).exists()]
    except OSError as error:
        raise CheckpointError(cannot_write(folder, error)) from error
    if found and not config.run.resume:
        raise CheckpointError(
            f"{folder} already holds a run ({found[0]}); go on with it by run.resume=true, or choose another folder with run.dir=…"
        )
    if not found and config.run.resume:
        raise CheckpointError(f"{folder} holds no run to resume; leave run.resume away to start one there")
    _require_writable(folder)
    if found:
        require_same(config)
        return has_checkpoint(folder)
    write_text(folder / CONFIG, to_yaml(config))
    write_json(folder / ENVIRONMENT, describe_environment())
    return False


def release_folder(folder: Path) -> None:
    """Give up the claim of a run that failed before it made anything, so that the mended command can use the folder."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if any(path.name not in (CONFIG, ENVIRONMENT) for path in files):
        return
    with contextlib.suppress(OSError):
        for path in files:
            path.unlink()
        # deepest first, so that a folder is empty when its turn comes
        for path in sorted((path for path in folder.rglob("*")), key=lambda path: len(path.parts), reverse=True):
            path.rmdir()
        folder.rmdir()


def require_same(config: Config) -> None:
    """Make sure that the run in the folder is the run that the config describes.

    Raises:
        CheckpointError: naming every key that differs in what is computed.
    """
    path = config.run.dir / CONFIG
    if not path.exists():
        raise CheckpointError(f"{path} is missing, so it is unknown what run this is; start anew in another run.dir")
    stored = validate(read_yaml(path), str(path))
    changed = {key: values for key, values in differences(stored, config).items() if key not in _MAY_CHANGE}
    if changed:
        lines = "".join(f"\n  {key}: {old!r} in the run, {new!r} now" for key, (old, new) in changed.items())
        raise CheckpointError(
            f"the run in {config.run.dir} was started with another config:{lines}\nset them back, or choose another run.dir"
        )
    if stored.train.steps > config.train.steps:
        raise CheckpointError(
            f"train.steps: the run in {config.run.dir} was started for {stored.train.steps} steps, {config.train.steps} now; it can be extended, "
            "not cut"
        )


def is_finished(folder: Path, steps: int = 0) -> bool:
    """Whether the run in a folder is done; with ``steps``, whether it was configured for as many."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not steps or int(summary.get("extra", {}).get("steps", 0)) >= steps


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        # some bytes, not none: an empty file can be made on a full disk
        probe.write_bytes(b"fastkd" * 1000)
        probe.unlink()
    except OSError as error:
        raise CheckpointError(cannot_write(folder, error)) from error
