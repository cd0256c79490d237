"""Models: a base class, SchNet, PaiNN, and the way they are built, saved and loaded."""

from .base import Features, Potential, Prediction, Readout
from .factory import build_model, load_model, model_config_dict, save_model
from .painn import PaiNN, PaiNNOptions
from .schnet import SchNet, SchNetOptions

__all__ = [
    "Features",
    "PaiNN",
    "PaiNNOptions",
    "Potential",
    "Prediction",
    "Readout",
    "SchNet",
    "SchNetOptions",
    "build_model",
    "load_model",
    "model_config_dict",
    "save_model",
]
