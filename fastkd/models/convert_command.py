"""``fastkd convert checkpoint``: a model that another package trained becomes a checkpoint of ours.

Example:
    >>> convert_checkpoint(Path("checkpoint.pt"), Request()).model  # doctest: +SKIP
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from torch import Tensor

from fastkd.data.units import ENERGY_UNITS, LENGTH_UNITS
from fastkd.errors import CheckpointError, ConfigError

from . import ocp_checkpoint, schnetpack
from .factory import DEFAULT_NAME, SUFFIX, UNITS, model_config_dict, save_model, symbols
from .foreign_file import read_file
from .ocp_checkpoint import Converted

_SHORT = 12  #: elements that are listed one by one
_COLUMN = 13


@dataclass(frozen=True)
class Request:
    """What the user says of a file, because the file does not."""

    energy_unit: str = ""  #: SchNetPack: that it was trained in
    length_unit: str = "Å"  #: SchNetPack
    elements: tuple[str, ...] = ()  #: symbols; SchNetPack: those it was trained on
    extensive_mean: bool = True  #: SchNetPack: the mean is per atom
    use_ema: bool = True  #: OCP: take moving averages where the reference would
    scale_file: Path | None = None  #: OCP
    look_only: bool = False  #: nothing is written, so that what only a conversion needs may be left out


def convert_checkpoint(path: Path, request: Request) -> Converted:
    """Read a foreign checkpoint of any kind we know.

    Raises:
        CheckpointError: if it cannot be read, lacks something, or is of a kind we do not know.
        ConfigError: if the file leaves something open that the request does not say.
        DataError: for an unknown unit.
    """
    contents = read_file(path)
    state = _schnetpack_state(contents)
    if state is None:
        if path.suffix == ".npz":
            raise CheckpointError(f"{path}: its arrays are no state dict we know; an npz must be that of a SchNetPack PaiNN")
        if request.energy_unit or request.elements or not request.extensive_mean:
            raise ConfigError("--energy-unit, --elements and --mean-per-structure are for SchNetPack; this file says all that itself")
        converted = _named(path, lambda: ocp_checkpoint.load_checkpoint(contents, use_ema=request.use_ema, scale_file=request.scale_file))
    else:
        converted = _from_schnetpack(path, state, request)
    with path.open("rb") as handle:
        digest = file_digest(handle, "sha256").hexdigest()
    return Converted(converted.model, {"converted_from": path.name, "sha256": digest, **converted.provenance}, converted.notes)


def _schnetpack_state(contents: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The state dict of a SchNetPack model: the whole file, or in what its trainer writes."""
    inner = contents.get("state_dict")
    for candidate in (contents, inner if isinstance(inner, Mapping) else {}):
        if schnetpack.is_painn(candidate):
            wanted = ("representation.", "output_modules.", "postprocessors.")
            return {name: v for name, v in candidate.items() if isinstance(v, Tensor) and name.removeprefix("model.").startswith(wanted)}
    return None


def _from_schnetpack(path: Path, state: dict[str, Tensor], request: Request) -> Converted:
    if not request.use_ema or request.scale_file:
        raise ConfigError("--no-ema and --scale-file are for checkpoints of OCP; SchNetPack has neither")
    if not request.energy_unit and not request.look_only:
        raise ConfigError(
            f"{path} is a SchNetPack model, which does not say in which unit it was trained: give --energy-unit, one of {', '.join(ENERGY_UNITS)}"
        )
    foreign = _named(
        path,
        lambda: schnetpack.load_painn(
            state,
            energy_unit=request.energy_unit or "eV",
            length_unit=request.length_unit,
            elements=request.elements,
            extensive_mean=request.extensive_mean,
        ),
    )
    units = {"energy": request.energy_unit, "length": request.length_unit}
    notes = foreign.notes
    if not request.energy_unit:
        notes = (
            "the file does not say in which unit it was trained: energies are shown as if in eV; a conversion needs --energy-unit",
            *notes[1:],
        )
    return Converted(foreign.model, {"package": "SchNetPack 2", "trained_in": units}, notes)


def _named(path: Path, load: Any) -> Any:
    """The loader's result; its errors name the file."""
    try:
        return load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def describe(converted: Converted) -> dict[str, Any]:
    """What was found, ready for JSON."""
    model = converted.model
    options = model_config_dict(model)
    energies = {"scale": float(model.energy_scale), "offset": float(model.energy_offset)}
    references = {s: float(model.reference_energy[z]) for z, s in symbols(model).items() if model.reference_energy[z] != 0}
    return {
        **options,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "forces": model.force_mode,
        "features": dict(model.feature_widths),
        "units": UNITS,
        "energy": energies,
        "reference_energy": references,
        "elements": list(symbols(model).values()),
        "provenance": converted.provenance,
        "notes": list(converted.notes),
    }


def text(found: Mapping[str, Any]) -> str:
    """`describe` for people."""
    energy, references = found["energy"], found["reference_energy"]
    said = f"E = {energy['scale']:.6g} eV · network"
    if energy["offset"]:
        said += f" {'+' if energy['offset'] > 0 else '−'} {abs(energy['offset']):.6g} eV per structure"
    if references:
        shown = ", ".join(f"{symbol} {value:.6g}" for symbol, value in list(references.items())[:4])
        said += f" + references of {len(references)} elements ({shown}{', …' if len(references) > 4 else ''} eV)"
    elements = found["elements"]
    listed = " ".join(elements) if len(elements) <= _SHORT else f"{len(elements)}, {elements[0]} to {elements[-1]}"
    rows = {
        "found": f"{found['provenance'].get('package', '')}, weights: {found['provenance'].get('weights', 'as stored')}",
        "architecture": found["architecture"],
        "options": ", ".join(f"{name}={value}" for name, value in found["options"].items()),
        "parameters": f"{found['parameters']:,} ({found['dtype']})",
        "forces": "direct head" if found["forces"] == "direct" else "−dE/dx",
        "features": ", ".join(f"{kind} [{width}]" for kind, width in found["features"].items()),
        "units": f"{found['units']['length']}, {found['units']['energy']}, {found['units']['forces']}; {said}",
        "elements": listed,
    }
    lines = [f"{name:<{_COLUMN}} {value}" for name, value in rows.items()]
    return "\n".join([*lines, *(f"{'note':<{_COLUMN}} {note}" for note in found["notes"])])


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd convert checkpoint``."""
    parser.add_argument("what", choices=("checkpoint",), metavar="checkpoint", help="a model that another package trained")
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="checkpoint of OCP or fairchem-core 1.x (.pt), or a SchNetPack PaiNN's state dict (.pt, .ckpt, .npz)",
    )
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help=f"folder for {DEFAULT_NAME}, or a {SUFFIX} file")
    parser.add_argument("--inspect", action="store_true", help="say what the file holds, and write nothing")
    parser.add_argument("--json", action="store_true", help="say it as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--no-ema", action="store_true", help="OCP: the weights of the last step, where the reference would take moving averages"
    )
    parser.add_argument(
        "--scale-file", type=Path, metavar="FILE", help="OCP: fitted scale factors (.json or .pt), if the checkpoint lacks them"
    )
    parser.add_argument("--energy-unit", default="", metavar="UNIT", help=f"SchNetPack: that it was trained in: {', '.join(ENERGY_UNITS)}")
    parser.add_argument("--length-unit", default="Å", metavar="UNIT", help=f"SchNetPack: {', '.join(LENGTH_UNITS)} (default: %(default)s)")
    parser.add_argument(
        "--elements", nargs="+", default=[], metavar="SYMBOL", help="SchNetPack: those it was trained on (default: all of its table)"
    )
    parser.add_argument("--mean-per-structure", action="store_true", help="SchNetPack: the mean it adds is per structure, not per atom")


def run_convert_checkpoint(args: argparse.Namespace) -> int:
    """Convert, say what was found, and write it.

    Raises:
        ConfigError: if arguments contradict each other, or one is missing.
        CheckpointError: if the file is not as it should be, or OUT exists or cannot be written.
    """
    if (args.out is None) != args.inspect:
        raise ConfigError("give OUT to write a checkpoint, or --inspect to write none" + (", not both" if args.inspect else ""))
    if args.out is not None:
        target = args.out if args.out.suffix == SUFFIX else args.out / DEFAULT_NAME
        if target.exists() and not args.overwrite:
            raise CheckpointError(f"{target} exists; give another OUT, or --overwrite")
    request = Request(
        energy_unit=args.energy_unit,
        length_unit=args.length_unit,
        elements=tuple(args.elements),
        extensive_mean=not args.mean_per_structure,
        use_ema=not args.no_ema,
        scale_file=args.scale_file,
        look_only=args.inspect,
    )
    converted = convert_checkpoint(args.file, request)
    found = describe(converted)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else text(found))
    if args.out is not None:
        file = save_model(converted.model, args.out, {**converted.provenance, "notes": list(converted.notes)})
        if not args.json:
            print(f"{'wrote':<{_COLUMN}} {file}, {file.stat().st_size:,} bytes")
    return 0


def inspect_checkpoint(file: str) -> str:
    """What `fastkd inspect` says of a foreign checkpoint, as JSON.

    Raises:
        CheckpointError, ConfigError: as `convert_checkpoint`.
    """
    return json.dumps(describe(convert_checkpoint(Path(file), Request(look_only=True))), indent=2, ensure_ascii=False)
