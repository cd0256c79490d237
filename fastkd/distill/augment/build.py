"""From the ``augment`` section to a perturbation, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastkd.config import AugmentConfig, Config
from fastkd.distill.augment.adversarial import Adversarial
from fastkd.distill.augment.base import Perturbation
from fastkd.distill.augment.rattle import Rattle
from fastkd.distill.terms import Terms
from fastkd.errors import ConfigError
from fastkd.teachers import BaseTeacher


def build_perturbation(
    config: AugmentConfig, seed: int, cutoffs: Iterable[float], scale: Callable[[str], float] | None = None
) -> Perturbation | None:
    """The perturbation of a config; None for ``kind: none``.

    Args:
        config: the section.
        seed: of the run.
        cutoffs: Å, of the graphs that student and teacher want.
        scale: what the λ of a term, by name, is multiplied with at present, see `Balance.scale`; None: 1.
    """
    if config.kind == "none":
        return None
    if config.kind == "adversarial":
        adversarial = Adversarial(
            seed=seed,
            cutoffs=cutoffs,
            sigma=config.sigma,
            ascent=config.ascent,
            steps=config.ascent_steps,
            rate=config.ascent_rate,
            length=config.ascent_length,
            rule=config.ascent_rule,
            force_penalty=config.force_penalty,
            teacher_gradient=config.teacher_gradient,
            limit=config.limit,
        )
        adversarial.scale = scale or adversarial.scale
        return adversarial
    noise = config.kind == "noise"
    return Rattle(
        seed=seed,
        cutoffs=cutoffs,
        sigma=config.sigma,
        length=config.length,
        along_force="any" if noise else config.along_force,
        force_scale=config.force_scale,
        limit=config.limit,
        for_labels=noise,
    )


def check_augment(config: Config, teacher: BaseTeacher | None, terms: Terms | None, *, unlabelled: bool) -> None:
    """Make sure that the section fits teacher and terms, which `fastkd.config_checks.check_sense` does not know.

    Args:
        config: of the run.
        teacher: of the run.
        terms: of the run.
        unlabelled: whether some training structures have no labelled forces.

    Raises:
        ConfigError: if the teacher lacks what is needed, or a term cannot be weighted.
    """
    augment = config.augment
    if augment.synthetic and augment.synthetic_weight != 1.0:
        for term in terms or ():
            if term.loss in ("cka", "lsp", "gsp", "geometric"):
                raise ConfigError(
                    f"augment.synthetic_weight weights single structures, which loss {term.loss} of term {term.name} compares as a whole; "
                    "set augment.synthetic_weight=1, or choose loss mse, mae or huber"
                )
    if augment.kind not in ("rattle", "adversarial") or teacher is None:
        return
    if augment.kind == "adversarial" and any(term.kind == "hessian" for term in terms or ()):
        raise ConfigError(
            "augment.kind=adversarial climbs the terms, and a term on Hessians is too dear to climb; drop the term, or rattle"
        )
    if augment.kind == "adversarial" and augment.teacher_gradient and not teacher.differentiable:
        raise ConfigError(f"{teacher.offer.name} cannot be differentiated by positions; set augment.teacher_gradient=false")
    forces = "forces" in teacher.offer.outputs
    if augment.force_penalty and augment.kind == "adversarial" and not forces:
        raise ConfigError(f"augment.force_penalty needs forces, which {teacher.offer.name} does not predict; set it to 0")
    along = augment.along_force != "any" if augment.kind == "rattle" else augment.ascent == "orthogonal"
    if along and unlabelled and not forces:
        key = "along_force=any" if augment.kind == "rattle" else "ascent=sphere"
        raise ConfigError(
            f"augment looks at forces, but some training structures have no labelled forces and {teacher.offer.name} predicts no forces; "
            f"set augment.{key}, or train on structures with forces (data.unlabelled=0)"
        )
