"""Models of other packages, each with a way to feed it: what `test_compat_patches` patches, small, and `bench.bench_patches` times, larger."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from . import peer_packages

CUTOFF = 5.0


@dataclass(frozen=True)
class Molecules:
    """A batch of small random molecules with all pairs closer than the cutoff, both directions, sorted by target."""

    numbers: Tensor
    positions: Tensor
    graph_index: Tensor
    edge_index: Tensor  #: (source, target)

    @classmethod
    def random(cls, sizes: tuple[int, ...] = (5, 7, 4), seed: int = 0, dtype: torch.dtype = torch.float64) -> Molecules:
        generator = torch.Generator().manual_seed(seed)
        index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        # a jittered grid, so that no two atoms are near
        places = [torch.stack([torch.arange(n) % 2, torch.arange(n) // 2 % 2, torch.arange(n) // 4], 1) for n in sizes]
        positions = torch.cat(places).double() * 1.4 + 0.3 * torch.randn(sum(sizes), 3, dtype=torch.float64, generator=generator)
        numbers = torch.tensor([1, 6, 7, 8])[torch.randint(4, (sum(sizes),), generator=generator)]
        near = (index[:, None] == index[None]) & (torch.cdist(positions, positions) < CUTOFF)
        target, source = near.fill_diagonal_(False).nonzero().unbind(1)
        return cls(numbers, positions.to(dtype), index, torch.stack([source, target]))

    @property
    def num_graphs(self) -> int:
        return int(self.graph_index[-1]) + 1 if self.graph_index.numel() else 0

    def total(self, per_atom: Tensor) -> Tensor:
        """Sum over each molecule."""
        return per_atom.new_zeros(self.num_graphs).index_add(0, self.graph_index, per_atom.reshape(-1))


@dataclass(frozen=True)
class Peer:
    """A model and how to get energies [n_graphs] from it."""

    build: Callable[[], nn.Module]
    energy: Callable[[nn.Module, Molecules, Tensor], Tensor]
    kernels: set[str]
    replaced: int  #: modules
    indices: int  #: sorted indices that one forward needs
    left: int = 0
    lone_atoms: bool = True  #: whether the model itself takes molecules without edges
    prepare: Callable[[pytest.MonkeyPatch], None] = field(default=lambda monkeypatch: None)


class GivenEdges(nn.Module):
    """PyG's ``interaction_graph``: edges that were found before."""

    edge_index: Tensor

    def forward(self, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        source, target = self.edge_index
        return self.edge_index, (positions[source] - positions[target]).norm(dim=-1)


def pyg_schnet(width: int = 12, filters: int = 10, layers: int = 3, gaussians: int = 8) -> nn.Module:
    from torch_geometric.nn.models import SchNet

    return SchNet(width, filters, layers, gaussians, CUTOFF, interaction_graph=GivenEdges())


def _pyg_schnet_energy(model: Any, molecules: Molecules, positions: Tensor) -> Tensor:
    model.interaction_graph.edge_index = molecules.edge_index
    return model(molecules.numbers, positions, molecules.graph_index).squeeze(-1)


_dimenet_edges: list[Tensor] = []


def _prepare_dimenet(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_geometric.nn.models import dimenet

    # both need compiled extensions
    monkeypatch.setattr(dimenet, "radius_graph", lambda *args, **kwargs: _dimenet_edges[-1])
    monkeypatch.setattr(dimenet, "SparseTensor", peer_packages.SparseTensor)


def _dimenet_energy(model: nn.Module, molecules: Molecules, positions: Tensor) -> Tensor:
    _dimenet_edges[:] = [molecules.edge_index]
    return model(molecules.numbers, positions, molecules.graph_index).squeeze(-1)


def _copied(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Build once; DimeNet derives its Bessel functions symbolically each time, which takes seconds."""
    first = functools.cache(build)
    return lambda: copy.deepcopy(first())


def dimenet(width: int = 10, bilinear: int = 3, spherical: int = 3, radial: int = 4) -> nn.Module:
    from torch_geometric.nn.models import DimeNet

    sizes = {"num_blocks": 2, "num_bilinear": bilinear, "num_spherical": spherical, "num_radial": radial}
    return DimeNet(width, 1, **sizes, cutoff=CUTOFF, output_initializer="glorot_orthogonal")


def dimenet_pp(width: int = 10, inner: int = 7, basis: int = 4, out: int = 12, spherical: int = 3, radial: int = 4) -> nn.Module:
    from torch_geometric.nn.models import DimeNetPlusPlus

    sizes = {"num_blocks": 2, "int_emb_size": inner, "basis_emb_size": basis, "out_emb_channels": out}
    return DimeNetPlusPlus(
        width, 1, **sizes, num_spherical=spherical, num_radial=radial, cutoff=CUTOFF, output_initializer="glorot_orthogonal"
    )


class _SchNetPackEnergy(nn.Module):
    def __init__(self, representation: nn.Module, width: int) -> None:
        super().__init__()
        self.representation = representation
        self.readout = nn.Linear(width, 1)


def schnetpack(name: str, width: int = 10, radial: int = 8) -> nn.Module:
    representation = peer_packages.schnetpack()
    import schnetpack.nn as snn

    common = {
        "n_atom_basis": width,
        "n_interactions": 3,
        "radial_basis": snn.GaussianRBF(radial, CUTOFF),
        "cutoff_fn": snn.CosineCutoff(CUTOFF),
    }
    return _SchNetPackEnergy(getattr(representation, name)(**common), width)


def _schnetpack_energy(model: Any, molecules: Molecules, positions: Tensor) -> Tensor:
    idx_j, idx_i = molecules.edge_index
    vector = positions[idx_j] - positions[idx_i]
    inputs = {"_atomic_numbers": molecules.numbers, "_Rij": vector, "_idx_i": idx_i, "_idx_j": idx_j}
    out = model.representation(inputs)
    vectors = out["vector_representation"].square().sum(1) if "vector_representation" in out else 0.0
    return molecules.total(model.readout(out["scalar_representation"] + vectors))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """For models that make tensors without saying of which dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fairchem_data(molecules: Molecules, positions: Tensor) -> Any:
    from torch_geometric.data import Data

    natoms = torch.bincount(molecules.graph_index)
    data = Data(
        atomic_numbers=molecules.numbers, pos=positions, edge_index=molecules.edge_index, batch=molecules.graph_index, natoms=natoms
    )
    data.cell = 30.0 * torch.eye(3, dtype=positions.dtype).expand(molecules.num_graphs, 3, 3)
    data.cell_offsets = torch.zeros(molecules.edge_index.shape[1], 3, dtype=torch.int64)
    data.neighbors = torch.bincount(molecules.graph_index[molecules.edge_index[1]], minlength=molecules.num_graphs)
    data.tags = torch.full_like(molecules.numbers, 2)
    return data


def ocp_painn(width: int = 12, radial: int = 8) -> nn.Module:
    painn = peer_packages.fairchem("painn.painn")
    return painn.PaiNN(hidden_channels=width, num_layers=3, num_rbf=radial, cutoff=CUTOFF, regress_forces=False, otf_graph=False)


def _ocp_energy(model: nn.Module, molecules: Molecules, positions: Tensor) -> Tensor:
    with default_dtype(positions.dtype):
        energy = model(fairchem_data(molecules, positions))
    return (energy["energy"] if isinstance(energy, dict) else energy).reshape(-1)


def _ocp_schnet() -> nn.Module:
    schnet = peer_packages.fairchem("schnet")
    widths = {"hidden_channels": 12, "num_filters": 10, "num_interactions": 2, "num_gaussians": 8}
    return schnet.SchNetWrap(**widths, cutoff=CUTOFF, regress_forces=False, otf_graph=False)


def _ocp_dimenet_pp() -> nn.Module:
    dimenet = peer_packages.fairchem("dimenet_plus_plus")
    widths = {"hidden_channels": 10, "int_emb_size": 7, "basis_emb_size": 4, "out_emb_channels": 12, "num_spherical": 3, "num_radial": 4}
    return dimenet.DimeNetPlusPlusWrap(**widths, num_blocks=2, cutoff=CUTOFF, regress_forces=False, otf_graph=False)


#: of GemNet-OC, all different
_GEMNET_WIDTHS = {
    "num_spherical": 3,
    "num_radial": 6,
    "emb_size_atom": 10,
    "emb_size_edge": 12,
    "emb_size_trip_in": 6,
    "emb_size_trip_out": 7,
    "emb_size_quad_in": 5,
    "emb_size_quad_out": 6,
    "emb_size_aint_in": 6,
    "emb_size_aint_out": 7,
    "emb_size_rbf": 4,
    "emb_size_cbf": 4,
    "emb_size_sbf": 5,
}


INTERACTIONS = ("quad_interaction", "atom_edge_interaction", "edge_atom_interaction", "atom_interaction")


def gemnet_oc(
    direct_forces: bool = False, cls: str = "GemNetOCBackbone", interactions: tuple[str, ...] = INTERACTIONS, **widths: int
) -> nn.Module:
    gemnet = peer_packages.fairchem("gemnet_oc.gemnet_oc")
    depths = {"num_before_skip": 1, "num_after_skip": 1, "num_concat": 1, "num_atom": 1, "num_output_afteratom": 1, "num_blocks": 2}
    chosen = {name: name in interactions for name in INTERACTIONS}
    graph = {"otf_graph": False, "cutoff": CUTOFF, "cutoff_qint": 3.0, "max_neighbors": 50}
    forces = {"regress_forces": direct_forces, "direct_forces": direct_forces}
    return getattr(gemnet, cls)(**_GEMNET_WIDTHS | widths, **depths, **chosen, **graph, **forces)


def _gemnet_energy(model: nn.Module, molecules: Molecules, positions: Tensor) -> Tensor:
    # the whole model casts to float32 at its end
    with default_dtype(positions.dtype):
        return molecules.total(sum(x.square().sum(1) for x in model(fairchem_data(molecules, positions))["xs_E"]))


PEERS = {
    "gemnet_oc": Peer(gemnet_oc, _gemnet_energy, {"triplet_reduce", "gated_edge_to_node"}, 21, 7, lone_atoms=False),
    "pyg_schnet": Peer(pyg_schnet, _pyg_schnet_energy, {"cfconv"}, 3, 1),
    "dimenet": Peer(_copied(dimenet), _dimenet_energy, {"triplet_reduce", "gated_edge_to_node"}, 5, 2, prepare=_prepare_dimenet),
    "dimenet++": Peer(_copied(dimenet_pp), _dimenet_energy, {"cfconv", "gated_edge_to_node"}, 5, 2, prepare=_prepare_dimenet),
    "schnetpack_schnet": Peer(functools.partial(schnetpack, "SchNet"), _schnetpack_energy, {"cfconv"}, 3, 1),
    "schnetpack_painn": Peer(functools.partial(schnetpack, "PaiNN"), _schnetpack_energy, {"painn_message"}, 3, 1),
    "ocp_schnet": Peer(_ocp_schnet, _ocp_energy, {"cfconv"}, 2, 1),
    "ocp_dimenet++": Peer(_copied(_ocp_dimenet_pp), _ocp_energy, {"cfconv", "gated_edge_to_node"}, 5, 2),
    "ocp_painn": Peer(ocp_painn, _ocp_energy, {"painn_message"}, 3, 1, lone_atoms=False),
}
