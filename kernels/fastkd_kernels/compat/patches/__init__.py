"""One line, reversible: the slow parts of other people's models replaced by fused kernels.

Example:
    >>> report = patch(model)  # torch_geometric's SchNet, SchNetPack's PaiNN, fairchem's GemNet-OC, …
    >>> print(report)
    >>> report.undo()
"""

from .engine import patch, unpatch
from .report import Left, PatchError, Replaced, Report

__all__ = ["Left", "PatchError", "Replaced", "Report", "patch", "unpatch"]
