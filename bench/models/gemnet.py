"""GemNet-OC from fairchem-core 1.x and ours with its weights and scale factors.

Both get the edges of the largest graph, and both cut their other graphs, triplets and quadruplets out of it in every step, as both do when
they are trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.models.packages import by_name, fairchem_data, give_graph, target_of
from bench.models.shapes import Structures
from bench.training_step import Pair
from fastkd.models.gemnet_oc import load_gemnet_oc
from fastkd.models.gemnet_oc.load import parameter_name
from tests.kernels import peer_packages
from tests.kernels.peer_models import default_dtype

#: The released base model of OC20 but for its widths and depth
COMMON: dict[str, Any] = {
    **dict.fromkeys(("quad_interaction", "atom_edge_interaction", "edge_atom_interaction", "atom_interaction"), True),
    **dict.fromkeys(("emb_size_trip_in", "emb_size_trip_out", "emb_size_aint_in", "emb_size_aint_out"), 64),
    **dict.fromkeys(("emb_size_quad_in", "emb_size_quad_out", "emb_size_sbf"), 32),
    **dict.fromkeys(("emb_size_rbf", "emb_size_cbf"), 16),
    "num_spherical": 7,
    "num_radial": 128,
    "num_before_skip": 2,
    "num_after_skip": 2,
    "num_concat": 1,
    "num_atom": 3,
    "num_output_afteratom": 3,
    "num_atom_emb_layers": 2,
    "num_global_out_layers": 2,
    "otf_graph": True,
    "cutoff": 12.0,
    "max_neighbors": 30,
    "max_neighbors_qint": 8,
    "max_neighbors_aeaint": 20,
    "max_neighbors_aint": 1000,
    "sbf": {"name": "legendre_outer"},
    "qint_tags": [1, 2],
}
#: name → what differs
SIZES: dict[str, dict[str, Any]] = {
    # the small student of OC20: 8.75 million parameters
    "published": {"num_blocks": 3, "emb_size_atom": 128, "emb_size_edge": 256},
    # half as wide, two blocks, 6 Å: what a CPU takes for the molecules
    "reduced": {"num_blocks": 2, "emb_size_atom": 64, "emb_size_edge": 128, "cutoff": 6.0},
    "small": {
        **dict.fromkeys(("emb_size_trip_in", "emb_size_trip_out", "emb_size_aint_in", "emb_size_aint_out"), 6),
        **dict.fromkeys(("emb_size_quad_in", "emb_size_quad_out", "emb_size_sbf", "emb_size_rbf", "emb_size_cbf"), 4),
        **{"num_blocks": 1, "emb_size_atom": 10, "emb_size_edge": 12, "num_radial": 8, "num_spherical": 3, "cutoff": 5.0},
    },
}


def make_pair(
    structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool, size: str = "reduced", direct: bool = False
) -> Pair:
    """Both models of one of `SIZES`, with direct or gradient forces."""
    gemnet = peer_packages.fairchem("gemnet_oc.gemnet_oc")
    config = COMMON | SIZES["small" if small else size] | {"regress_forces": True, "direct_forces": direct}
    torch.manual_seed(seed)
    with default_dtype(dtype):
        # gradients are taken here, so that forces alone need not be differentiated again
        theirs = gemnet.GemNetOC(**{**config, "regress_forces": direct})
    for name, parameter in theirs.named_parameters():
        if name.endswith("scale_factor"):
            parameter.data.fill_(0.5 + torch.rand(()).item())
    theirs = theirs.to(device, dtype)
    foreign = load_gemnet_oc(config, theirs.state_dict())
    ours = foreign.model.to(device, dtype)
    batch = structures.batch(ours.cutoff, dtype, device, max_neighbors=foreign.max_neighbors)
    give_graph(theirs, batch, ours.cutoff)

    def outputs(positions: Tensor) -> dict[str, Tensor]:
        with default_dtype(dtype), _without_casts(dtype):
            found: dict[str, Tensor] = theirs(fairchem_data(batch, positions))
        return found

    def direct_outputs() -> tuple[Tensor, Tensor]:
        found = outputs(batch.positions)
        return found["energy"], found["forces"]

    return Pair(
        ours,
        theirs,
        lambda positions: outputs(positions)["energy"],
        by_name(parameter_name),
        batch,
        target_of(batch, seed),
        theirs_direct=direct_outputs if direct else None,
        own_graphs=True,
    )


@contextmanager
def _without_casts(dtype: torch.dtype) -> Iterator[None]:
    """Its last layers and some of its bases cast to float32; in float64 that would hide how far the two are from each other."""
    if dtype != torch.float64:
        yield
        return
    before = torch.Tensor.float
    torch.Tensor.float = lambda self: self  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.float = before  # type: ignore[method-assign]
