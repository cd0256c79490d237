"""``fastkd fit-scales``: scale factors of a GemNet-OC from data, as a file that a training config, ``convert checkpoint`` and OCP read."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fastkd.config_loading import load_config
from fastkd.data.dataset import StructureDataset
from fastkd.data.select import elements, open_data_file
from fastkd.engine.datasets import refuse_unknown_elements
from fastkd.engine.devices import choose_device
from fastkd.engine.evaluate_command import chosen
from fastkd.errors import ConfigError
from fastkd.models import GemNetOC, Potential, build_model, load_model
from fastkd.models.gemnet_oc.scales import FittedScale, fit_scales, scale_file_suffix, write_scales

#: How a config file is told from a model.
_CONFIG_SUFFIXES = (".yaml", ".yml")


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd fit-scales``."""
    parser.add_argument(
        "model", metavar="MODEL|CONFIG", help="a GemNet-OC: folder with model.safetensors, .safetensors file, or a training config (.yaml)"
    )
    parser.add_argument("data", metavar="DATA", help="HDF5 file (format v1), or 'embedded'")
    parser.add_argument("options", nargs="*", metavar="a.b=c", help="options of the config, as in `fastkd train`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="scale file to write, .json or .pt")
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument("--systems", nargs="+", default=[], help="only these systems of the file")
    parser.add_argument("--batches", type=int, default=16, help="how many batches, drawn at random (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="structures per batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of structures (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def run_fit(args: argparse.Namespace) -> int:
    """Fit, write the file, and say what was fitted.

    Raises:
        UserError: for a model, data, a number or a file that does not serve.
    """
    for name in ("batches", "batch_size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    scale_file_suffix(args.out)
    if args.out.exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists; choose another file, or add --overwrite")
    device = choose_device(args.device, "--device")
    model = _model(args.model, args.options).to(device)
    with open_data_file(args.data) as file:
        indices = chosen(file, args.split, args.systems)
        count = min(len(indices), args.batches * args.batch_size)
        drawn = np.sort(np.random.default_rng(args.seed).choice(indices, count, replace=False))
        refuse_unknown_elements(sorted(elements(file, drawn)), model.known_element, f"the model {args.model}")
        dataset = StructureDataset(file, [model.cutoff], dtype=next(model.parameters()).dtype)
        batches = [batch.to(device) for batch in dataset.batches(drawn.tolist(), max_structures=args.batch_size)]
        fitted = fit_scales(model, batches)
    write_scales(model, args.out)
    console = Console(highlight=False)
    console.print(_table(fitted, f"{len(fitted)} scale factors from {count} structures of {args.data}, split {args.split}"))
    print(f"{args.out}: use it with model.scale_file={args.out}")
    return 0


def _model(name: str, options: list[str]) -> GemNetOC:
    """The model of a checkpoint, or the one that a training with this config starts from, in both cases as it is before factors are set."""
    model: Potential
    if Path(name).suffix in _CONFIG_SUFFIXES:
        config = load_config(name, options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            # the file may be the one that is about to be made
            model = build_model(config.model.model_copy(update={"scale_file": ""}))
    elif options:
        raise ConfigError(f"{options[0]!r}: a checkpoint has no options; only a config (.yaml) does")
    else:
        model = load_model(name)
    if not isinstance(model, GemNetOC):
        raise ConfigError(f"{name}: only GemNet-OC has scale factors to fit, this is a {type(model).__name__}")
    return model


def _table(fitted: list[FittedScale], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("factor of", "σ in", "σ out", "factor"):
        table.add_column(name, justify="left" if name == "factor of" else "right")
    for item in fitted:
        sigmas = math.sqrt(item.variance_in), math.sqrt(item.variance_out)
        table.add_row(item.name, *(f"{value:.4g}" for value in (*sigmas, item.factor)))
    return table
