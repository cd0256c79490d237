"""The functions as operators ``torch.ops.fastkd_scatter.*``, which TorchScript can call and save; everything else calls them directly.

They are composite: autograd, tracing and compilation look through them at what they are made of. Loading a saved script needs this module
imported before.
"""

from __future__ import annotations

import torch

from . import eager

#: True in compiled scripts, which keep only that branch.
is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]

_SCATTER = "Tensor src, Tensor index, int dim, Tensor(a!)? out, int? dim_size"
_COO = "Tensor src, Tensor index, Tensor(a!)? out, int? dim_size"
_CSR = "Tensor src, Tensor indptr, Tensor(a!)? out"
_ONE, _TWO = "Tensor", "(Tensor, Tensor)"

SCHEMAS: dict[str, str] = {
    "scatter_sum": f"({_SCATTER}) -> {_ONE}",
    "scatter_mul": f"({_SCATTER}) -> {_ONE}",
    "scatter_mean": f"({_SCATTER}) -> {_ONE}",
    "scatter_min": f"({_SCATTER}) -> {_TWO}",
    "scatter_max": f"({_SCATTER}) -> {_TWO}",
    "segment_sum_coo": f"({_COO}) -> {_ONE}",
    "segment_mean_coo": f"({_COO}) -> {_ONE}",
    "segment_min_coo": f"({_COO}) -> {_TWO}",
    "segment_max_coo": f"({_COO}) -> {_TWO}",
    "gather_coo": "(Tensor src, Tensor index, Tensor(a!)? out) -> Tensor",
    "segment_sum_csr": f"({_CSR}) -> {_ONE}",
    "segment_mean_csr": f"({_CSR}) -> {_ONE}",
    "segment_min_csr": f"({_CSR}) -> {_TWO}",
    "segment_max_csr": f"({_CSR}) -> {_TWO}",
    "gather_csr": f"({_CSR}) -> {_ONE}",
    "scatter_std": f"({_SCATTER}, bool unbiased) -> {_ONE}",
    "scatter_logsumexp": f"({_SCATTER}, float eps) -> {_ONE}",
    "scatter_softmax": "(Tensor src, Tensor index, int dim, int? dim_size) -> Tensor",
    "scatter_log_softmax": "(Tensor src, Tensor index, int dim, float eps, int? dim_size) -> Tensor",
}

LIBRARY = torch.library.Library("fastkd_scatter", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, _schema in SCHEMAS.items():
    if hasattr(torch.ops.fastkd_scatter, _name):
        continue  # another copy of this package in the process defined it; scripts name their operators, so copies share them
    LIBRARY.define(_name + _schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(_name, getattr(eager, _name), "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
