"""A student as a run finds it before its first step."""

from __future__ import annotations

import torch

from fastkd.config import Config
from fastkd.engine.datasets import RunData
from fastkd.engine.devices import DTYPES
from fastkd.models import Potential, build_model
from fastkd.teachers import BaseTeacher


def new_student(config: Config, data: RunData, device: torch.device, teacher: BaseTeacher | None = None) -> Potential:
    """A student with weights from ``run.seed`` alone, reference energies and energy scale from the labelled training structures."""
    student = initial_student(config)
    data.apply_references(student, teacher)
    return student.to(device).train()


def initial_student(config: Config) -> Potential:
    """The weights that a run starts from, which follow from its config alone; energies of elements and their scale are not set."""
    # only the CPU's generator is forked and seeded: weights are drawn there, and no caller's random numbers change
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        student = build_model(config.model)
    return cast_model(student, DTYPES[config.run.dtype])


def cast_model(model: Potential, dtype: torch.dtype) -> Potential:
    """The same model with weights of another dtype; reference energies and scale stay in float64."""
    kept = {name: getattr(model, name).clone() for name in ("reference_energy", "energy_scale")}
    model.to(dtype)
    for name, value in kept.items():
        setattr(model, name, value)
    return model
