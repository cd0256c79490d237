"""Models: a base class, SchNet, PaiNN, DimeNet++, GemNet-OC, MXMNet, PAMNet, and the way they are built, saved and loaded."""

from .base import Features, Potential, Prediction, Readout
from .dimenet_pp import DimeNetPP, DimeNetPPOptions
from .factory import build_model, load_model, model_config_dict, save_model
from .gemnet_oc import GemNetOC, GemNetOCOptions
from .mxmnet import MXMNet, MXMNetOptions
from .painn import PaiNN, PaiNNOptions
from .pamnet import PAMNet, PAMNetOptions
from .schnet import SchNet, SchNetOptions

__all__ = [
    "DimeNetPP",
    "DimeNetPPOptions",
    "Features",
    "GemNetOC",
    "GemNetOCOptions",
    "MXMNet",
    "MXMNetOptions",
    "PAMNet",
    "PAMNetOptions",
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
