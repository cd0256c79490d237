"""Real processes, really signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastkd.engine.state import has_checkpoint, load_checkpoint

ROOT = Path(__file__).parents[2]
LONG = ("train.steps=1000000", "train.checkpoint_every=3", "train.evaluate_every=7")


@contextmanager
def training(config_file: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fastkd.train", str(config_file), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str], step: int = 1) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if has_checkpoint(folder) and load_checkpoint(folder).step >= step:
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"no checkpoint: {process.communicate()}")


def interrupt(process: subprocess.Popen[str], number: int, config_file: Path, folder: Path) -> None:
    """Signal a run that has a checkpoint, and check what it does and says."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = load_checkpoint(folder).step
    assert f"stopped at step {step}; checkpoint in {folder}" in errors
    assert f"go on with: fastkd train {config_file} " in errors
    assert errors.strip().endswith("run.resume=true")
    assert "Traceback" not in errors


def test_ctrl_c_keeps_the_step_and_says_how_to_go_on(config_file: Path, tmp_path: Path) -> None:
    with training(config_file, *LONG) as process:
        wait_for_checkpoint(tmp_path / "run", process)
        interrupt(process, signal.SIGINT, config_file, tmp_path / "run")


def test_kill_at_any_time_leaves_a_whole_checkpoint_and_sigterm_stops_its_continuation(config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("train.steps=1000000", "train.checkpoint_every=1", "train.evaluate_every=2")
    with training(config_file, *options) as process:
        wait_for_checkpoint(folder, process, step=6)
        process.kill()
        process.wait()
    for name in ("last", "best"):
        checkpoint = load_checkpoint(folder, name)
        assert all(bool(torch.isfinite(value).all()) for value in checkpoint.tree["weights"].values())
    step = load_checkpoint(folder).step
    with training(config_file, *options, "run.resume=true") as process:
        wait_for_checkpoint(folder, process, step + 1)
        interrupt(process, signal.SIGTERM, config_file, folder)
    assert load_checkpoint(folder).step > step


def test_a_second_signal_stops_at_once() -> None:
    program = (
        "import time\n"
        "from fastkd.engine.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.received: time.sleep(0.01)\n"
        "    print('first', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "first\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM
