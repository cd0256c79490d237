"""Checkpoints: everything needed to go on bit for bit, in safetensors and JSON, written so that a kill at any moment loses nothing.

A checkpoint ``last`` is two files. ``last.json`` holds numbers and text and names the file of the tensors,
``last-<step>-<hash>.safetensors``, whose name depends on its content. The tensors are written first, under a new name; replacing the JSON is the one atomic act that makes the checkpoint valid; only then
is the tensor file of the checkpoint before removed. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastkd.errors import CheckpointError
from fastkd.files import write_bytes, write_json

SCHEMA_VERSION = 1
FOLDER = "checkpoints"
_TENSOR = "$tensor"
_ATTEMPTS = 5


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: ``tree`` is what was saved, with tensors on the CPU."""

    path: Path
    step: int
    tree: dict[str, Any]


def save_checkpoint(run_dir: Path, name: str, step: int, tree: dict[str, Any]) -> Path:
    """Write a checkpoint, replacing the one of the same name.

    Args:
        run_dir: folder of the run.
        name: ``last`` or ``best``.
        step: optimiser steps done.
        tree: nested dicts and lists of tensors, numbers, text, None.

    Returns:
        The JSON file.

    Raises:
        CheckpointError: if it cannot be written; the earlier one is untouched.
    """
    folder = run_dir / FOLDER
    tensors: dict[str, Tensor] = {}
    packed = _pack(tree, "", tensors)
    data = safetensors.torch.save(tensors, {"fastkd": "checkpoint", "schema_version": str(SCHEMA_VERSION)})
    digest = hashlib.sha256(data).hexdigest()
    tensor_file = folder / f"{name}-{step:09d}-{digest[:8]}.safetensors"
    write_bytes(tensor_file, data)
    json_file = folder / f"{name}.json"
    record = {"schema_version": SCHEMA_VERSION, "step": step, "tensors": tensor_file.name, "sha256": digest, "state": packed}
    write_json(json_file, record)
    for stale in folder.glob(f"{name}-*.safetensors"):
        if stale != tensor_file:
            stale.unlink(missing_ok=True)
    return json_file


def has_checkpoint(run_dir: Path, name: str = "last") -> bool:
    return (run_dir / FOLDER / f"{name}.json").exists()


def load_checkpoint(run_dir: Path, name: str = "last") -> Checkpoint:
    """Read a checkpoint and check that it is whole.

    Raises:
        CheckpointError: if there is none, it is damaged, or a newer fastkd wrote it.
    """
    path = run_dir / FOLDER / f"{name}.json"
    for attempt in range(_ATTEMPTS):
        try:
            return _load(path)
        except _ReplacedError:
            # the run is alive and has just written its next checkpoint
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


class _ReplacedError(CheckpointError):
    """The JSON names a file of tensors that is not there."""


def _load(path: Path) -> Checkpoint:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, step = record["schema_version"], record["step"]
        tensor_file = path.parent / record["tensors"]
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {path}; start the run anew without run.resume") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint ({error}); start anew in another run.dir") from None
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"{path} has schema version {version}, this fastkd reads up to {SCHEMA_VERSION}; upgrade fastkd")
    try:
        data = tensor_file.read_bytes()
    except FileNotFoundError:
        raise _ReplacedError(f"{tensor_file}, which {path.name} names, is missing; start anew in another run.dir") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {tensor_file}, which {path.name} names: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise CheckpointError(f"{tensor_file} is damaged: its content does not match the hash in {path.name}")
    tensors = safetensors.torch.load(data)
    return Checkpoint(path, step, _unpack(record["state"], tensors))


def _pack(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        # a copy: safetensors refuses tensors that share memory
        tensors[path] = node.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: path}
    if isinstance(node, dict):
        return {str(key): _pack(value, f"{path}/{key}" if path else str(key), tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_pack(value, f"{path}/{number}", tensors) for number, value in enumerate(node)]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"{path}: a {type(node).__name__} cannot be part of a checkpoint")


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if set(node) == {_TENSOR}:
            return tensors[node[_TENSOR]]
        return {key: _unpack(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_unpack(value, tensors) for value in node]
    return node


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of every parameter, by its number; rates and options are the config's and not saved."""
    state: dict[str, Any] = {str(number): dict(entry) for number, entry in optimizer.state_dict()["state"].items()}
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `optimizer_state`."""
    whole = optimizer.state_dict()
    whole["state"] = {int(number): entry for number, entry in state.items()}
    optimizer.load_state_dict(whole)
