"""The two steps that are timed, and the check that has to pass before."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.training_step import Pair, relative, training_step

MODES = ("forces", "training")
Step = Callable[[], tuple[Tensor, ...]]

#: ‖ours − theirs‖ / ‖theirs‖ of energies, forces and the gradient of every weight, at the size that is timed. In float64 both must be the
#: same function: what is left are sums in another order, differentiated twice. In float32 both round, and ill-conditioned bases of
#: either round more; a term that is missing would be an error of the order of 1.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3}
#: Where only float32 is over its limit, ours has to be within it of float64: then the other model is what rounds so much. This far it may.
ILL_CONDITIONED = 0.1


def ours_step(pair: Pair, mode: str) -> Step:
    """Energies and forces of our model: alone, with weights that need no gradient, or in a training step."""
    if mode == "training":
        return lambda: training_step(pair.ours_outputs, pair.target, pair.ours.parameters())

    def forces() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return pair.ours_outputs()

    return forces


def theirs_step(pair: Pair, mode: str) -> Step:
    """The same of the other model."""
    if mode == "training":
        return lambda: training_step(pair.theirs_outputs, pair.target, pair.theirs.parameters())

    def forces() -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(pair.theirs_direct is None):
            energy, forces = pair.theirs_outputs(create_graph=False)
        return energy.detach(), forces.detach()

    return forces


def prepare(pair: Pair, mode: str) -> None:
    """Both models as that step is run by its users: in training, or in evaluation with frozen weights."""
    training = mode == "training"
    for model in (pair.ours, pair.theirs):
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(training and not name.endswith(("scale_factor", ".factor")))


@dataclass(frozen=True)
class Verdict:
    """The largest relative error, of what, and why no speed may be printed; empty if one may."""

    error: float
    what: str
    reason: str = ""


def check(pair: Pair, modes: tuple[str, ...] = MODES) -> Verdict:
    """Compare energies, forces and the gradients of all weights of both models in every mode that is to be timed."""
    worst, what = 0.0, "nothing"
    for mode in modes:
        prepare(pair, mode)
        if mode == "training":
            errors = pair.errors()
            if forgotten := _unmatched(pair, set(errors)):
                return Verdict(math.inf, forgotten, f"the gradient of {forgotten} has no counterpart")
        else:
            got, want = ours_step(pair, mode)(), theirs_step(pair, mode)()
            errors = {name: relative(a, b) for name, a, b in zip(("energy", "forces"), got, want, strict=True)}
        for name, error in errors.items():
            if not error <= worst:
                worst, what = (math.inf if math.isnan(error) else error), f"{name} ({mode})"
    dtype = pair.batch.positions.dtype
    limit = LIMITS[dtype]
    if worst <= limit:
        return Verdict(worst, what)
    if dtype == torch.float32:
        own = rounding(pair, modes)
        if own <= limit and worst <= ILL_CONDITIONED:
            # theirs lost the digits: ours is that near to the same weights' results in float64
            return Verdict(worst, f"{what}, of which ours {own:.0e}")
    name = str(dtype).removeprefix("torch.")
    return Verdict(worst, what, f"{what} differs by {worst:.1e} in {name}, more than {limit:.0e}")


def rounding(pair: Pair, modes: tuple[str, ...]) -> float:
    """The largest relative error of our model in float32, against the same weights and positions in float64."""
    exact = replace(pair, ours=copy.deepcopy(pair.ours).double(), batch=pair.batch.to(dtype=torch.float64), target=pair.target.double())
    worst = 0.0
    for mode in modes:
        prepare(pair, mode)
        prepare(exact, mode)
        got, want = ours_step(pair, mode)(), ours_step(exact, mode)()
        errors = [relative(a, b) for a, b in zip(got, want, strict=True)]
        if mode == "training":
            pairs = zip(pair.ours.parameters(), exact.ours.parameters(), strict=True)
            errors += [relative(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
        worst = max([worst, *(math.inf if math.isnan(error) else error for error in errors)])
    return worst


def _unmatched(pair: Pair, compared: set[str]) -> str:
    """A weight of ours with a gradient that was compared with nothing; empty if there is none."""
    for name, parameter in pair.ours.named_parameters():
        if name not in compared and parameter.grad is not None and bool(parameter.grad.any()):
            return name
    return ""
