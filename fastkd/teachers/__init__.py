"""Frozen models to learn from: live, or computed once and kept."""

from .cache import CachedTeacher
from .output import Need, Offer, TeacherOutput
from .teacher import LiveTeacher, Teacher, TeacherCost, load_teacher, state_hash

__all__ = ["CachedTeacher", "LiveTeacher", "Need", "Offer", "Teacher", "TeacherCost", "TeacherOutput", "load_teacher", "state_hash"]
