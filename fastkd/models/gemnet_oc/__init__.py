"""GemNet-OC: edge, triplet and quadruplet messages with fitted scale factors (Gasteiger et al. 2022)."""

from .load import load_gemnet_oc
from .model import GemNetOC
from .options import GemNetOCOptions
from .scales import FittedScale, fit_scales, load_scales, read_scales, write_scales

__all__ = ["FittedScale", "GemNetOC", "GemNetOCOptions", "fit_scales", "load_gemnet_oc", "load_scales", "read_scales", "write_scales"]
