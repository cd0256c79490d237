"""``fastkd eval MODEL DATA``: errors of a model file on a split of a data file."""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fastkd.analysis import Metrics, Predictions, RunSummary
from fastkd.data.dataset import StructureDataset
from fastkd.data.reader import DataFile
from fastkd.data.select import elements, open_data_file
from fastkd.engine.datasets import refuse_unknown_elements
from fastkd.engine.devices import DTYPES, choose_device
from fastkd.engine.environment import describe_environment
from fastkd.engine.evaluate import inference_rate, predict
from fastkd.engine.students import cast_model
from fastkd.engine.threads import choose_threads, thread_count
from fastkd.errors import CheckpointError, ConfigError, DataError
from fastkd.files import cannot_write
from fastkd.models import load_model

_ROWS = (
    ("energy MAE", "energy_mae_per_atom", 1e3, "meV/atom"),
    ("energy RMSE", "energy_rmse_per_atom", 1e3, "meV/atom"),
    ("energy MAE per structure", "energy_mae", 1e3, "meV"),
    ("force MAE per component", "forces_mae", 1e3, "meV/Å"),
    ("force RMSE per component", "forces_rmse", 1e3, "meV/Å"),
    ("force cosine", "forces_cosine", 1.0, ""),
    ("energy and forces within 0.02 eV, 0.03 eV/Å", "efwt", 100.0, "%"),
)


def evaluate_command(args: argparse.Namespace, console: Console | None = None) -> None:
    """Print the errors, and keep predictions and summary in ``--out``.

    Raises:
        UserError: for a model, a file, a split or a folder that does not serve.
    """
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.out is not None and (args.out / "summary.json").exists():
        raise CheckpointError(f"{args.out} already holds results; choose another folder with --out")
    device, dtype = choose_device(args.device), DTYPES[args.dtype]
    model = cast_model(load_model(args.model), dtype).to(device).eval()
    file = open_data_file(args.data)
    indices = chosen(file, args.split, args.systems)
    refuse_unknown_elements(sorted(elements(file, indices)), model.known_element, f"the model {args.model}")
    dataset = StructureDataset(file, [model.cutoff], dtype=dtype)
    batches = [batch.to(device) for batch in dataset.batches(indices.tolist(), max_structures=args.batch_size)]
    threads = args.threads or (choose_threads(lambda: predict(model, batches[:1]))[0] if device.type == "cpu" else 0)
    with thread_count(threads):
        predictions = predict(model, batches, free_atoms=args.free_atoms)
        metrics, rate = predictions.metrics(), inference_rate(model, batches, 3)
        table = _table(metrics, predictions, rate, f"{args.model} on {args.split} of {file.path.name}")
    (console or Console(highlight=False)).print(table)
    if args.out is not None:
        summary = RunSummary(
            name=str(args.model.stem),
            title=str(args.model.name),
            role="student",
            seed=0,
            order=0,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            atoms_per_second=rate,
            test=metrics,
            versions=describe_environment()["versions"],
            extra={"data_hash": file.content_hash, "split": args.split},
        )
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            predictions.save(args.out)
            summary.save(args.out)
        except OSError as error:
            raise CheckpointError(cannot_write(args.out, error)) from error


def chosen(file: DataFile, split: str, systems: list[str]) -> np.ndarray:
    """Numbers of the structures of a split and, if any are named, of some systems.

    Raises:
        DataError: if there are none, saying what there is.
    """
    mask = file.splits == split
    if systems:
        mask &= np.isin(file.systems, systems)
    indices = np.flatnonzero(mask)
    if not len(indices):
        have = ", ".join(sorted(set(file.splits.tolist()))), ", ".join(sorted(set(file.systems.tolist())))
        asked = f"split {split!r}" + (f" of systems {', '.join(systems)}" if systems else "")
        raise DataError(f"{file.path} has no structures in {asked}; it has splits {have[0]} and systems {have[1]}")
    return indices


def _table(metrics: Metrics, predictions: Predictions, rate: float, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("error", "value", "unit"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for name, key, factor, unit in _ROWS:
        value = getattr(metrics, key)
        if not math.isnan(value):
            table.add_row(name, f"{factor * value:.4g}", unit)
    table.add_section()
    table.add_row("structures", f"{len(predictions.natoms):,}", "")
    table.add_row("atoms", f"{int(predictions.natoms.sum()):,}", "")
    if predictions.free is not None:
        table.add_row("free atoms, of the force errors", f"{int(predictions.free.sum()):,}", "")
    table.add_row("inference", f"{rate:,.0f}", f"atoms/s ({torch.get_num_threads()} threads)")
    return table
