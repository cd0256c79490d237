"""Frozen models to learn from: ours, any torch module, any ASE calculator; live, or computed once and kept."""

from .base import BaseTeacher, TeacherCost
from .cache import CachedTeacher
from .committee import Committee, Council
from .hooks import Feature
from .loading import load_teacher
from .output import Need, Offer, TeacherOutput
from .teacher import LiveTeacher, Teacher, state_hash
from .torch_module import Call, ForeignModule, ModuleTeacher, Outputs

__all__ = [
    "BaseTeacher",
    "CachedTeacher",
    "Call",
    "Committee",
    "Council",
    "Feature",
    "ForeignModule",
    "LiveTeacher",
    "ModuleTeacher",
    "Need",
    "Offer",
    "Outputs",
    "Teacher",
    "TeacherCost",
    "TeacherOutput",
    "load_teacher",
    "state_hash",
]
