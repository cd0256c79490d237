"""The interface of pytorch_scatter on our operators: deterministic on every device, differentiable to every order.

Names, signatures and conventions are those of https://github.com/rusty1s/pytorch_scatter 2.1.2 (MIT licence), of which no code is used; the README says
where results differ. Import from here, or let code that says ``import torch_scatter`` find it:

Example:
    >>> from fastkd_kernels.compat import torch_scatter
    >>> torch_scatter.install()
    >>> from torch_scatter import scatter
    >>> scatter(torch.ones(3), torch.tensor([0, 0, 2]), dim_size=3)
    tensor([2., 0., 1.])
"""

from .composite import scatter_log_softmax, scatter_logsumexp, scatter_softmax, scatter_std
from .scatter import scatter, scatter_add, scatter_max, scatter_mean, scatter_min, scatter_mul, scatter_sum
from .segment_coo import (
    gather_coo,
    segment_add_coo,
    segment_coo,
    segment_max_coo,
    segment_mean_coo,
    segment_min_coo,
    segment_sum_coo,
)
from .segment_csr import (
    gather_csr,
    segment_add_csr,
    segment_csr,
    segment_max_csr,
    segment_mean_csr,
    segment_min_csr,
    segment_sum_csr,
)
from .shim import VERSION, install, installed, uninstall

__all__ = [
    "gather_coo",
    "gather_csr",
    "install",
    "installed",
    "scatter",
    "scatter_add",
    "scatter_log_softmax",
    "scatter_logsumexp",
    "scatter_max",
    "scatter_mean",
    "scatter_min",
    "scatter_mul",
    "scatter_softmax",
    "scatter_std",
    "scatter_sum",
    "segment_add_coo",
    "segment_add_csr",
    "segment_coo",
    "segment_csr",
    "segment_max_coo",
    "segment_max_csr",
    "segment_mean_coo",
    "segment_mean_csr",
    "segment_min_coo",
    "segment_min_csr",
    "segment_sum_coo",
    "segment_sum_csr",
    "uninstall",
]
__version__ = VERSION
#: What upstream exports.
FUNCTIONS: tuple[str, ...] = tuple(name for name in __all__ if "install" not in name)
