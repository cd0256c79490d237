"""One optimiser step: batch → teacher targets → student → loss terms → backward → clip → AdamW → moving average.

The loss is L = L_0 + Σ_k λ_k L_KD,k with L_0 = a_E · MAE(E) + a_F · mean_i ‖F_i − F_i^label‖₂ over labelled structures only, and
over their free atoms where the data tells them
(Ekström Kelvinius et al., NeurIPS 2023, arXiv:2306.14818, and the authors' code); distillation terms see every structure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fastkd.config import LossConfig, TrainConfig
from fastkd.data.batch import Batch
from fastkd.distill import Balance, Terms, TermValue
from fastkd.distill.augment import Perturbation
from fastkd.engine.ema import Average
from fastkd.engine.timing import OFF, StepTimer
from fastkd.errors import TrainingError
from fastkd.models.base import Potential, Prediction
from fastkd.teachers import LiveTeacher, TeacherOutput
from fastkd.teachers.committee import Council

#: Steps between looks at the loss on an accelerator, where every look waits for the device; on a CPU each step is looked at.
ACCELERATOR_LOOKS = 20


@dataclass(frozen=True, eq=False)
class StepResult:
    """What one step saw, before it moved the weights; detached scalars."""

    #: raw terms by name: energy [eV], forces [eV/Å] where they have a weight, then those of distillation; ``total`` is the weighted sum
    losses: dict[str, Tensor]
    gradient_norm: Tensor
    force_error: Tensor  #: eV/Å, mean ‖ΔF‖ over labelled (free) atoms; 0 where no forces were computed


@dataclass(frozen=True, eq=False)
class LabelLoss:
    """The loss on labels and its two parts, scalars that can be differentiated; 0 where a batch has no labels."""

    energy: Tensor  #: eV, mean |ΔE| over labelled structures (per atom if so configured)
    forces: Tensor  #: eV/Å, mean ‖ΔF‖₂ over labelled (free) atoms
    total: Tensor


def label_loss(prediction: Prediction, batch: Batch, config: LossConfig) -> LabelLoss:
    """L_0 = a_E · MAE(E) + a_F · mean ‖ΔF‖₂ over labelled structures.

    Args:
        prediction: ``energy`` [n_graphs] eV, ``forces`` [n_atoms, 3] eV/Å or None, which leaves their part out.
        batch: with energies where ``labelled`` says so, and forces where ``with_forces`` does.
        config: a_E, a_F, and whether forces of atoms that are held fixed count.

    Returns:
        Energy part (float64 differences: totals are large), force part and their weighted sum.
    """
    # masks instead of selections: shapes stay fixed, and an accelerator need not report back how many there are
    graphs = batch.labelled.to(prediction.energy.dtype)
    error = (prediction.energy - batch.energy).abs() * graphs
    if batch.weight is not None:
        error = error * batch.weight
    if config.per_atom_energy:
        error = error / batch.atom_ptr.diff()
    energy = error.sum() / graphs.sum().clamp(min=1.0)
    if prediction.forces is None:
        forces = energy.new_zeros(())
    else:
        counted = batch.with_forces[batch.graph_index]
        if config.train_on_free_atoms and batch.free is not None:
            counted = counted & batch.free
        atoms = counted.to(prediction.forces.dtype)
        norm = torch.linalg.vector_norm(prediction.forces - batch.forces, dim=-1)
        if batch.atom_weight is not None:
            norm = norm * batch.atom_weight
        forces = (norm * atoms).sum() / atoms.sum().clamp(min=1.0)
    return LabelLoss(energy, forces, config.energy_weight * energy + config.forces_weight * forces)


@dataclass(eq=False)
class Trainee:
    """Everything that a step reads and changes."""

    student: Potential
    terms: Terms | None
    teacher: Callable[[Batch], TeacherOutput | Mapping[str, TeacherOutput]] | None  #: of several teachers, what each says by name
    optimizer: torch.optim.Optimizer
    average: Average
    loss: LossConfig
    clip: float
    perturbation: Perturbation | None = None  #: moves atoms; with it and terms, ``teacher`` is live
    timer: StepTimer = OFF  #: measures the parts of a step, when asked to
    balance: Balance | None = None  #: weighs terms by their gradients, when asked to
    parameters: list[nn.Parameter] = field(init=False)

    @property
    def wants_forces(self) -> bool:
        """Whether a step computes the student's forces: for their labels, or for a term. Without, there is no second derivative either."""
        return self.loss.forces_weight > 0 or (self.terms is not None and self.terms.wants_forces)

    def __post_init__(self) -> None:
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def trainable(student: Potential, terms: Terms | None) -> dict[str, nn.Parameter]:
    """Parameters of the student and of the projections, named as in checkpoints, in a fixed order."""
    named = {f"student.{name}": parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    if terms is not None:
        named |= {f"terms.{name}": parameter for name, parameter in terms.named_parameters()}
    return named


def make_optimizer(parameters: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all of them, fused: one call per step instead of a dozen per parameter."""
    return torch.optim.AdamW(
        list(parameters.values()), lr=config.learning_rate, weight_decay=config.weight_decay, amsgrad=config.amsgrad, fused=True
    )


def train_step(trainee: Trainee, batch: Batch, rate: float, step: int) -> StepResult:
    """Do one step at the learning rate ``rate``.

    Raises:
        TrainingError: if the loss or the gradient is not finite; the weights then are those of before the step (on an
            accelerator they may be a few steps further, the checkpoint is not).
    """
    losses, total, force_error = batch_loss(trainee, batch, step)
    for parameter in trainee.parameters:
        parameter.grad = None
    with trainee.timer.part("backward"):
        # where a term differentiates forces, positions are leaves too, and their gradient is nobody's
        leaves = trainee.parameters if trainee.terms is not None and trainee.terms.differentiates_forces else None
        total.backward(inputs=leaves)  # type: ignore[no-untyped-call]
    # 0 means no clipping, but the norm is wanted anyway: it shows trouble first
    limit = trainee.clip or math.inf
    with trainee.timer.part("optimiser"):
        norm = nn.utils.clip_grad_norm_(trainee.parameters, limit, foreach=True)
    if batch.positions.device.type == "cpu" or step % ACCELERATOR_LOOKS == 0:
        require_finite(losses, norm, step)
    for group in trainee.optimizer.param_groups:
        group["lr"] = rate
    with trainee.timer.part("optimiser"):
        trainee.optimizer.step()
        trainee.average.update()
    return StepResult(losses, norm.detach(), force_error)


def batch_loss(trainee: Trainee, batch: Batch, step: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Raw losses by name (detached), the total weighted for a step to differentiate, and the force error on labels.

    Where atoms are moved, the loss on labels and terms without a teacher see the batch, terms with one its moved copy.
    """
    batch = batch if trainee.terms is None else trainee.terms.teacher_batch(batch, step)
    if trainee.perturbation is not None:
        return _moved_loss(trainee, trainee.perturbation, batch, step)
    with trainee.timer.part("teacher"):
        targets = trainee.teacher(batch) if trainee.teacher is not None else None
    seen = batch if trainee.terms is None or targets is None else trainee.terms.student_batch(batch, targets)
    with trainee.timer.part("student"):
        prediction = trainee.student(seen, forces=trainee.wants_forces)
    with trainee.timer.part("labels"):
        labels = label_loss(prediction, batch, trainee.loss)
    values = trainee.terms(prediction, targets, replace(batch, positions=seen.positions), step) if trainee.terms is not None else {}
    return _summed(trainee, labels, values, step)


def _summed(trainee: Trainee, labels: LabelLoss, values: dict[str, TermValue], step: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    losses = {"energy": labels.energy.detach()}
    if trainee.loss.forces_weight > 0:
        losses["forces"] = labels.forces.detach()
    total = labels.total.double()
    if trainee.balance is not None:
        values = trainee.balance.weigh(values, total, step)
    for name, term in values.items():
        losses[f"kd_{name}"] = term.raw.detach()
        if term.share is not None:
            losses[f"kd_{name}_agreed"] = term.share
        total = total + term.weighted
    losses["total"] = total.detach()
    return losses, total, labels.forces.detach()


def _moved_loss(trainee: Trainee, perturbation: Perturbation, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """`batch_loss` with moved atoms."""
    student, terms, timer = trainee.student, trainee.terms, trainee.timer
    source = trainee.teacher if isinstance(trainee.teacher, LiveTeacher | Council) else None
    with timer.part("teacher"):
        moved = perturbation(batch, student, source, terms, step)
        targets = source(moved) if source is not None and terms is not None else None
    seen = moved if perturbation.for_labels else batch
    with timer.part("student"):
        # terms that look at forces are taught, and see the moved copy
        prediction = student(seen, forces=trainee.loss.forces_weight > 0)
    with timer.part("labels"):
        labels = label_loss(prediction, batch, trainee.loss)
    values: dict[str, TermValue] = {}
    if terms is not None and targets is not None:
        shown = terms.student_batch(moved, targets)
        with timer.part("student"):
            on_moved = student(shown, forces=terms.wants_forces)
        values |= terms(on_moved, targets, replace(moved, positions=shown.positions), step, "taught")
    if terms is not None:
        values |= terms(prediction, None, seen, step, "own")
    return _summed(trainee, labels, values, step)


def require_finite(losses: dict[str, Tensor], norm: Tensor, step: int) -> None:
    """Stop before a NaN reaches the weights.

    Raises:
        TrainingError: naming the terms that are not finite.
    """
    if math.isfinite(float(losses["total"])) and math.isfinite(float(norm)):
        return
    bad = [name for name, value in losses.items() if name != "total" and not math.isfinite(float(value))]
    what = f"the loss ({', '.join(bad)}) is" if bad else "the gradient is" if math.isfinite(float(losses["total"])) else "the loss is"
    raise TrainingError(
        f"{what} not finite at step {step + 1}; the last checkpoint is kept. Lower train.learning_rate or train.clip, lengthen "
        "train.warmup, or look for absurd labels with the data card"
    )
