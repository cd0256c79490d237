"""What a structure costs the teacher and the student: from positions to energy and forces, neighbours included, the two taking turns.

    python -m examples.speed runs/so3lr/students/student.safetensors so3lr runs/so3lr/labelled.h5

On a CPU the time is that of the processor, of one thread, which does not depend on what else a machine is busy with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastkd.data import Pieces, Structure, collate, open_data_file
from fastkd.engine.evaluate_command import chosen
from fastkd.engine.threads import thread_count
from fastkd.errors import ConfigError, UserError
from fastkd.teachers import BaseTeacher, load_teacher


@dataclass(frozen=True)
class Cost:
    """Milliseconds per structure: the median of some passes, and the middle half of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ms ({self.low:.2f} to {self.high:.2f})"


def evaluate(model: BaseTeacher, structures: Sequence[Structure], batch_size: int) -> None:
    """Energies and forces, from positions."""
    cutoffs = () if model.cutoff is None else (model.cutoff,)
    for first in range(0, len(structures), batch_size):
        pieces = [Pieces.of(s, k, cutoffs, labelled=False) for k, s in enumerate(structures[first : first + batch_size])]
        model(collate(pieces, torch.float32 if model.dtype == torch.float32 else torch.float64), frozenset({"energy", "forces"}))


def compare(models: Sequence[BaseTeacher], structures: Sequence[Structure], batch_size: int, repeats: int) -> list[Cost]:
    """Cost of each model on the CPU, the models taking turns; the first pass of each is not counted.

    Args:
        models: anything that `load_teacher` gives, a student too.
        structures: to evaluate in each pass.
        batch_size: structures asked for at once; 1 is molecular dynamics.
        repeats: passes.

    Raises:
        ConfigError: if there is no structure, or nothing to repeat.
    """
    if not structures or repeats < 1 or batch_size < 1:
        raise ConfigError("speed needs at least one structure, one repeat and a batch of one")
    seconds = np.empty((repeats, len(models)))
    for repeat in range(-1, repeats):
        for k, model in enumerate(models):
            started = time.process_time()
            evaluate(model, structures, batch_size)
            if repeat >= 0:
                seconds[repeat, k] = time.process_time() - started
    low, median, high = 1e3 * np.percentile(seconds, (25, 50, 75), axis=0) / len(structures)
    return [Cost(*map(float, values)) for values in zip(median, low, high, strict=True)]


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and print a line for each size of batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path, help="its folder or .safetensors file")
    parser.add_argument("teacher", help="as teacher.path")
    parser.add_argument("data", help="HDF5 file")
    parser.add_argument("--split", default="test", help="structures of this split (default: %(default)s)")
    parser.add_argument("--structures", type=int, default=16, help="how many, evenly spaced (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each model (default: %(default)s)")
    args = parser.parse_args(arguments)
    try:
        with open_data_file(args.data) as data, thread_count(1):
            indices = chosen(data, args.split, [])
            thinned = indices[np.unique(np.linspace(0, len(indices) - 1, args.structures).round().astype(int))]
            structures = data.read(thinned.tolist())
            models = [load_teacher(args.teacher), load_teacher(str(args.student))]
            for model in models:
                cutoffs = () if model.cutoff is None else (model.cutoff,)
                model.start(collate([Pieces.of(structures[0], 0, cutoffs)], torch.float64))
            for batch_size in (1, len(structures)):
                teacher, student = compare(models, structures, batch_size, args.repeats)
                print(
                    f"{batch_size} at once: teacher {teacher}, student {student} per structure, {teacher.median / student.median:.1f} times",
                    flush=True,
                )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
