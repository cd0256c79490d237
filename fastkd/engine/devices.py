"""Devices and dtypes by the names that configs and options give them."""

from __future__ import annotations

import torch

from fastkd.errors import ConfigError

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def choose_device(name: str, key: str = "run.device") -> torch.device:
    """The device that a config names under ``key``; auto takes CUDA where there is one.

    Raises:
        ConfigError: if the name is no device, or there is none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{key} = {name!r}: must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key} = {name!r}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"{key} = {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; set {key}=auto")
    return device
