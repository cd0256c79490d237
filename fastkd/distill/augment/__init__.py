"""Moved copies of training batches: random rattling, adversarial displacements, and noise as a baseline without a teacher.

Outcome in the papers: no significant gain. Sources: F. Ekström Kelvinius et al., NeurIPS 2023 (arXiv:2306.14818), and the authors' code.
"""

from .adversarial import Adversarial
from .base import Perturbation, random_numbers
from .build import build_perturbation, check_augment
from .rattle import Rattle, component

__all__ = ["Adversarial", "Perturbation", "Rattle", "build_perturbation", "check_augment", "component", "random_numbers"]
