"""The calls that are timed, and the check that has to pass before.

A call is a whole step of `fastkd.engine.step.train_step`: teacher, student, losses, backward, clipping, AdamW, moving average. Its rate of learning is 0, so that
every call of a run sees the same weights and does the same work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.step.cases import Terms
from bench.step.measure import Call
from bench.step.plain import SUMS, plain_teacher, reduced
from bench.step.setup import Workbench
from fastkd.data.batch import Batch
from fastkd.distill import Terms as TermModules
from fastkd.engine.step import Trainee, train_step
from fastkd.models.base import Prediction
from fastkd.teachers import LiveTeacher, TeacherOutput
from fastkd.teachers.teacher import edges_to_atoms

#: ‖ours − plain‖ / ‖plain‖ of every raw loss and of the gradient of every weight that a term reaches. In float64 both are the same function. In
#: float32 both round; where only that is too far, ours has to be within the limit of float64.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3}
#: This far the two may be apart in float32 where ours is near to float64.
ILL_CONDITIONED = 0.1

#: What can be asked of the teacher alone.
OUTPUTS = frozenset({"energy", "forces"})


@dataclass(frozen=True, eq=False)
class Calls:
    """Everything that is timed for some terms."""

    ours: TermModules
    fast: dict[str, Call]  #: where the teacher has spoken before: ``own``, ``given``, ``cached``, ``plain``
    slow: dict[str, Call]  #: where it speaks now: ``own``, ``teacher``, ``live``, ``plain_live``
    parts: dict[
        str, Call
    ]  #: ``gather`` from the cache, ``terms`` and ``plain_terms`` forward and backward to the student's features, alone
    sums: dict[str, Call]  #: the teacher with both sums over edges, ``ours`` and ``plain``; empty where terms do not need both


def make_calls(bench: Workbench, chosen: Terms, seed: int) -> Calls:
    """Steps of one student with and without terms."""
    ours, plain = bench.terms(chosen, seed)
    needs = ours.needs
    output, cache = bench.said, bench.cache(needs)
    alone, with_ours = bench.trainee(None), bench.trainee(ours)
    with_plain = replace(with_ours, terms=plain)
    live, plain_live = LiveTeacher(bench.teacher, needs), plain_teacher(bench.teacher, needs)
    own = _step(bench, alone)
    fast = {
        "own": own,
        "given": _step(bench, replace(with_ours, teacher=lambda _: output)),
        "cached": _step(bench, replace(with_ours, teacher=cache)),
        "plain": _step(bench, replace(with_plain, teacher=cache)),
    }
    slow: dict[str, Call] = {
        "own": own,
        "teacher": lambda batch: bench.teacher(batch, OUTPUTS),
        "live": _step(bench, replace(with_ours, teacher=live)),
        "plain_live": _step(bench, replace(with_plain, teacher=plain_live)),
    }
    summed: dict[str, Call] = {"ours": live, "plain": plain_live} if needs >= SUMS else {}
    shown = _leaves(bench, ours)
    parts: dict[str, Call] = {
        "gather": cache,
        "terms": lambda batch: _alone(ours, shown, output, batch),
        "plain_terms": lambda batch: _alone(plain, shown, output, batch),
    }
    return Calls(ours, fast, slow, parts, summed)


def _leaves(bench: Workbench, terms: TermModules) -> Prediction:
    """What the student says of the batch, as leaves: a backward pass ends there."""
    bench.student.kept_layers = terms.student_keeps
    said = bench.student(bench.fresh())
    features = said.features

    def leaf(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().clone().requires_grad_()

    edge = leaf(features.edge) if "edge" in terms.needs else None
    features = replace(features, node=leaf(features.node), vector=leaf(features.vector), compute_edge=lambda: edge)
    return Prediction(leaf(said.energy), leaf(said.forces), leaf(said.atom_energy), features)  # type: ignore[arg-type]


def _alone(terms: TermModules, shown: Prediction, output: TeacherOutput, batch: Batch) -> None:
    values = terms(shown, output, batch)
    total: Tensor = sum(value.weighted.double() for value in values.values())  # type: ignore[assignment]
    total.backward()  # type: ignore[no-untyped-call]


def _step(bench: Workbench, trainee: Trainee) -> Call:
    keeps = frozenset() if trainee.terms is None else trainee.terms.student_keeps

    def step(batch: Batch) -> None:
        bench.student.kept_layers = keeps
        train_step(trainee, batch, 0.0, 0)

    return step


@dataclass(frozen=True)
class Verdict:
    """The largest relative error, of what, and why no time may be printed; empty if one may."""

    error: float
    what: str
    reason: str = ""


def check(bench: Workbench, chosen: Terms, seed: int) -> Verdict:
    """Compare losses and gradients of our terms with those of the plain ones, on what teacher, cache and plain teacher say."""
    ours, plain = bench.terms(chosen, seed)
    own = _evaluated(bench, ours, bench.cache(ours.needs)(bench.fresh()))
    error, what = 0.0, "nothing"
    for name, said in (("plain", bench.said), ("plain, live", bench.plainly_said)):
        found = _evaluated(bench, plain, said)
        if forgotten := own.keys() ^ found.keys():
            return Verdict(math.inf, min(forgotten), f"only one of the two reaches {min(forgotten)}")
        worst, where = _largest_error(own, found)
        if worst > error:
            error, what = worst, f"{where} ({name})"
    dtype = bench.batch.positions.dtype
    if error <= LIMITS[dtype]:
        return Verdict(error, what)
    if dtype == torch.float32 and error <= ILL_CONDITIONED:
        exact = bench.double()
        rounded = _evaluated(exact, exact.terms(chosen, seed)[0], bench.said)
        if own.keys() == rounded.keys() and _largest_error(own, rounded)[0] <= LIMITS[dtype]:
            return Verdict(error, what)
    name = str(dtype).removeprefix("torch.")
    return Verdict(error, what, f"{what} differs by {error:.1e} in {name}, more than {LIMITS[dtype]:.0e}")


def _evaluated(bench: Workbench, terms: TermModules, said: TeacherOutput) -> dict[str, Tensor]:
    """Raw losses by ``loss …``, and gradients of the sum of λ times them by weights of the student and of projections."""
    bench.student.kept_layers = terms.student_keeps
    batch = bench.fresh()
    values = terms(bench.student(batch, forces="forces" in terms.needs), said, batch)
    # both sides hold the same projections, in the same order
    named = [*bench.student.named_parameters(), *((f"projection {n}", p) for n, p in enumerate(terms.parameters()))]
    total = torch.stack([value.weighted.double() for value in values.values()]).sum()
    gradients = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
    found = {f"loss {name}": value.raw.detach() for name, value in values.items()}
    return found | {name: gradient for (name, _), gradient in zip(named, gradients, strict=True) if gradient is not None}


def _largest_error(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> tuple[float, str]:
    """‖got − want‖ / ‖want‖, and of what.

    A gradient that is a thousand times smaller than the largest is measured by that thousandth: that of a bias under CKA is nothing but rounding.
    """
    sizes = {name: float(value.double().norm()) for name, value in want.items()}
    floor = 1e-3 * max((size for name, size in sizes.items() if not name.startswith("loss ")), default=0.0)
    errors = {}
    for name, value in want.items():
        apart = float((got[name].double() - value.double()).norm())
        error = apart / max(sizes[name], 0.0 if name.startswith("loss ") else floor, 1e-300)
        errors[name] = math.inf if math.isnan(error) else error
    where = max(errors, key=errors.__getitem__)
    return errors[where], where


def sums_alone(bench: Workbench) -> dict[str, Call]:
    """The sums over edges without the teacher before them, on edge features that it left."""
    output = bench.teacher(bench.fresh(), frozenset({"edge"}))
    edge, graph, direction = output.edge, output.graph, output.edge_direction
    assert edge is not None
    assert graph is not None
    assert direction is not None
    return {
        "ours": lambda _: edges_to_atoms(edge, graph, direction, SUMS),
        "plain": lambda batch: reduced(output, SUMS, batch.num_atoms),
    }
