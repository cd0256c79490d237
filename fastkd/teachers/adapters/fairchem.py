"""fairchem-core: predictors of 2.x (UMA, eSEN, …) and checkpoints of 1.x, through the package's own ASE calculators; labels only."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from fastkd.teachers.ase import AseTeacher


def make(*, checkpoint: str, task: str = "", device: str = "cpu", licence: str = "") -> AseTeacher:
    """A fairchem model from its checkpoint.

    Args:
        checkpoint: file; the package does not ship any.
        task: of a model with several, 2.x only: omol, omat, oc20, odac or omc.
        device: cpu or cuda.
        licence: of these weights, which the file does not state.

    Returns:
        A teacher of energies and forces; one structure at a time.
    """
    if importlib.util.find_spec("fairchem") and importlib.util.find_spec("fairchem.core.calculate"):
        predictor = importlib.import_module("fairchem.core.units.mlip_unit").load_predict_unit(checkpoint, device=device)
        calculator_class = importlib.import_module("fairchem.core").FAIRChemCalculator

        def renew() -> Any:
            return calculator_class(predictor, task_name=task or None)
    else:
        old = importlib.import_module("fairchem.core.common.relaxation.ase_utils")
        calculator = old.OCPCalculator(checkpoint_path=checkpoint, cpu=device == "cpu")

        def renew() -> Any:
            return calculator

    # one calculator of 2.x does not bear structures of different sizes
    return AseTeacher(renew(), f"fairchem:{checkpoint}", licence, {"task": task}, renew)
