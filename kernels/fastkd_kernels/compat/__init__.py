"""Fused kernels under the names, and inside the models, of other packages.

`patch` and `unpatch` put kernels into models of torch_geometric, schnetpack and fairchem-core 1.x; `compat.torch_scatter`, imported only when
it is asked for, stands in for pytorch_scatter. None of these packages is needed, nor imported, here.
"""

from .patches import PatchError, Report, patch, unpatch

__all__ = ["PatchError", "Report", "patch", "unpatch"]
