"""Twins from torch_geometric, schnetpack and fairchem-core 1.x: one of their models and ours with its weights.

torch_geometric's radius search and fairchem's scatter need compiled extensions, which few can install: edges are given to both sides, and
triplets where our batch keeps them too; torch_scatter's functions are torch's `index_add` (`tests/kernels/peer_packages.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench import bench_painn_schnetpack, bench_schnet_pyg
from bench.models.shapes import Structures
from bench.training_step import CUTOFF, Pair
from fastkd.data.batch import Batch
from fastkd.models.base import Potential
from fastkd.models.dimenet_pp_weights import dimenet_pp_name, load_dimenet_pp, load_dimenet_pp_ocp
from fastkd.models.ocp import load_painn, load_schnet, schnet_name
from tests.kernels import peer_packages
from tests.kernels.peer_models import default_dtype

#: of torch_geometric's DimeNet++, which are the authors' for QM9
DIMENET = {
    "hidden_channels": 128,
    "num_blocks": 4,
    "int_emb_size": 64,
    "basis_emb_size": 8,
    "out_emb_channels": 256,
    "num_spherical": 7,
    "num_radial": 6,
    "cutoff": 5.0,
    "envelope_exponent": 5,
}
SMALL_DIMENET = {"hidden_channels": 16, "num_blocks": 2, "int_emb_size": 8, "basis_emb_size": 4, "out_emb_channels": 12, "num_radial": 3}


def target_of(batch: Batch, seed: int) -> Tensor:
    """Random forces to fit, [n_atoms, 3]."""
    generator = torch.Generator().manual_seed(seed + 1)
    return (0.1 * torch.randn(batch.num_atoms, 3, generator=generator, dtype=torch.float64)).to(batch.positions)


def schnet_pyg(structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool) -> Pair:
    """torch_geometric's SchNet, 128 × 6 with 50 Gaussians."""
    return bench_schnet_pyg.make_pair(structures.batch(CUTOFF, dtype, device), *((24, 2) if small else (128, 6)), seed)


def painn_schnetpack(structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool) -> Pair:
    """schnetpack's PaiNN, 128 × 3 with 20 Gaussians, and the same head for energies on both."""
    return bench_painn_schnetpack.make_pair(structures.batch(CUTOFF, dtype, device), *((24, 2) if small else (128, 3)), seed)


# DimeNet++


def dimenet_pyg(structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool) -> Pair:
    """torch_geometric's DimeNet++; its edges and triplets are found once, as ours are."""
    import torch_geometric.nn.models.dimenet as pyg

    sizes = DIMENET | (SMALL_DIMENET if small else {})
    batch = structures.batch(sizes["cutoff"], dtype, device)
    torch.manual_seed(seed)
    with _cached_basis():
        theirs = pyg.DimeNetPlusPlus(out_channels=1, output_initializer="glorot_orthogonal", **sizes)
    theirs = random_biases(theirs).to(device, dtype)
    ours = load_dimenet_pp(sizes, theirs.state_dict()).to(device)
    edges, found = _edges(batch, ours.cutoff), _pyg_triplets(batch, ours.cutoff)

    def energy(positions: Tensor) -> Tensor:
        with _replaced(pyg, radius_graph=lambda *args, **options: edges, triplets=lambda edge_index, num_nodes: found):
            total: Tensor = theirs(batch.atomic_numbers, positions, batch.graph_index)
        return total.squeeze(-1)

    return Pair(ours, theirs, energy, by_name(dimenet_pp_name), batch, target_of(batch, seed))


def dimenet_fairchem(structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool) -> Pair:
    """fairchem's DimeNet++, whose forces leave angles out, with the sizes of its configuration for forces on OC20."""
    module = peer_packages.fairchem("dimenet_plus_plus")
    sizes = DIMENET | {"hidden_channels": 192, "num_blocks": 3, "out_emb_channels": 192, "cutoff": 6.0}
    sizes |= SMALL_DIMENET if small else {}
    torch.manual_seed(seed)
    with default_dtype(dtype), _cached_basis():
        theirs = module.DimeNetPlusPlusWrap(**sizes, regress_forces=False, otf_graph=False)
        # its last layers begin as zeros
        for block in theirs.output_blocks:
            nn.init.xavier_uniform_(block.lin.weight)
    theirs = random_biases(theirs).to(device, dtype)
    foreign = load_dimenet_pp_ocp(sizes, theirs.state_dict())
    ours = foreign.model.to(device)
    batch = structures.batch(ours.cutoff, dtype, device, max_neighbors=foreign.max_neighbors)
    found = _pyg_triplets(batch, ours.cutoff)
    # its own search builds a sparse matrix in every step
    theirs.triplets = lambda edge_index, cell_offsets, num_nodes: found
    return Pair(ours, theirs, fairchem_energy(theirs, batch, ours.cutoff), by_name(dimenet_pp_name), batch, target_of(batch, seed))


def _pyg_triplets(batch: Batch, cutoff: float) -> tuple[Tensor, ...]:
    source, target = _edges(batch, cutoff)
    triplets = batch.graph(cutoff).triplets
    kj, ji = triplets.edge_in, triplets.edge_out
    return target, source, target[ji], source[ji], source[kj], kj, ji


@contextmanager
def _cached_basis() -> Iterator[None]:
    """Symbolic Bessel functions once a process: they take ten seconds each time."""
    import torch_geometric.nn.models.dimenet_utils as utils

    with _replaced(utils, bessel_basis=_bessel_basis()):
        yield


@cache
def _bessel_basis() -> Any:
    import torch_geometric.nn.models.dimenet_utils as utils

    return cache(utils.bessel_basis)


# fairchem


def schnet_fairchem(structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool) -> Pair:
    """fairchem's SchNet with the sizes of its OC20 configuration; each atom has its 50 nearest neighbours."""
    module = peer_packages.fairchem("schnet")
    sizes = {"hidden_channels": 1024, "num_filters": 256, "num_interactions": 5, "num_gaussians": 200, "cutoff": 6.0}
    sizes |= {"hidden_channels": 24, "num_filters": 16, "num_interactions": 2, "num_gaussians": 10} if small else {}
    torch.manual_seed(seed)
    with default_dtype(dtype):
        theirs = random_biases(module.SchNetWrap(**sizes, regress_forces=False, otf_graph=False)).to(device, dtype)
    foreign = load_schnet(sizes, theirs.state_dict())
    ours = with_limit(foreign.model, foreign.max_neighbors).to(device)
    given = structures.batch(ours.cutoff, dtype, device, max_neighbors=foreign.max_neighbors)
    batch = structures.batch(ours.cutoff, dtype, device)
    return Pair(ours, theirs, fairchem_energy(theirs, given, ours.cutoff), by_name(schnet_name), batch, target_of(batch, seed))


def painn_fairchem(structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool) -> Pair:
    """fairchem's PaiNN with direct forces, 256 × 4 as the small one of OC20; each atom has its 50 nearest neighbours, made mutual."""
    module = peer_packages.fairchem("painn.painn")
    sizes = {"hidden_channels": 256, "num_layers": 4, "num_rbf": 128, "cutoff": 12.0, "max_neighbors": 50}
    sizes |= {"hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "cutoff": 5.0} if small else {}
    torch.manual_seed(seed)
    with default_dtype(dtype):
        theirs = random_biases(module.PaiNN(**sizes, regress_forces=True, direct_forces=True, otf_graph=False)).to(device, dtype)
    foreign = load_painn(sizes, theirs.state_dict())
    ours = with_limit(foreign.model, foreign.max_neighbors, mirrored=True).to(device)
    given = structures.batch(ours.cutoff, dtype, device, max_neighbors=foreign.max_neighbors)
    give_graph(theirs, given, ours.cutoff)
    batch = structures.batch(ours.cutoff, dtype, device)

    def outputs() -> tuple[Tensor, Tensor]:
        with default_dtype(dtype):
            found = theirs(fairchem_data(given, given.positions))
        return found["energy"].reshape(-1), found["forces"]

    def as_ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # loading permutes rows and turns signs, of gradients as of weights
        state = {name: weights.get(name, torch.zeros_like(value)) for name, value in theirs.state_dict().items()}
        loaded = load_painn(sizes, state).model
        return {name: value.detach() for name, value in loaded.named_parameters() if bool(value.any())}

    return Pair(ours, theirs, lambda positions: outputs()[0], as_ours, batch, target_of(batch, seed), theirs_direct=outputs)


def fairchem_energy(theirs: Any, batch: Batch, cutoff: float) -> Any:
    """Its energy from positions, with the edges of the batch's graph."""
    give_graph(theirs, batch, cutoff)
    dtype = batch.positions.dtype

    def energy(positions: Tensor) -> Tensor:
        # it makes tensors without saying of which dtype
        with default_dtype(dtype):
            out = theirs(fairchem_data(batch, positions))
        return (out["energy"] if isinstance(out, dict) else out).reshape(-1)

    return energy


def give_graph(theirs: Any, batch: Batch, cutoff: float) -> None:
    """Edges that were found before, in the order of ours; vectors from positions. Its own way is written for float32."""
    graph = batch.graph(cutoff)
    source, target = edges = _edges(batch, cutoff)
    offset = torch.einsum("ei,eij->ej", graph.edge_shift.to(batch.cell.dtype), batch.cell[batch.graph_index[target]])
    neighbors = torch.bincount(batch.graph_index[target], minlength=batch.num_graphs)

    def generate_graph(data: Any, *args: Any, **options: Any) -> SimpleNamespace:
        vector = data.pos[source] - data.pos[target] + offset
        return SimpleNamespace(
            edge_index=edges,
            edge_distance=vector.norm(dim=1),
            edge_distance_vec=vector,
            offset_distances=offset,
            cell_offsets=graph.edge_shift,
            neighbors=neighbors,
        )

    theirs.generate_graph = generate_graph


def fairchem_data(batch: Batch, positions: Tensor) -> Any:
    """A batch as fairchem's loader gives it."""
    from torch_geometric.data import Data

    box = 200 * torch.eye(3, dtype=positions.dtype, device=positions.device).expand(batch.num_graphs, 3, 3)
    return Data(
        pos=positions,
        atomic_numbers=batch.atomic_numbers,
        batch=batch.graph_index,
        natoms=batch.atom_ptr.diff(),
        cell=batch.cell if bool(batch.pbc.any()) else box,
        tags=torch.full_like(batch.atomic_numbers, 1) if batch.tags is None else batch.tags,
    )


# shared


def _edges(batch: Batch, cutoff: float) -> Tensor:
    csr = batch.graph(cutoff).csr
    return torch.stack([csr.edge_src, csr.edge_dst])


def by_name(name_of: Any) -> Any:
    """Their weights, or gradients, by our names."""

    def as_ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name_of(name): weight for name, weight in weights.items()}

    return as_ours


def random_biases(model: nn.Module) -> nn.Module:
    """Biases begin as zeros; with random ones no term hides."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def with_limit(model: Potential, neighbors: int, *, mirrored: bool | None = None) -> Potential:
    """The same model that cuts its graph itself, as the presets of the published models do."""
    changes = {"max_neighbors": neighbors} | ({} if mirrored is None else {"mirrored": mirrored})
    limited = type(model)(replace(model.options, **changes))
    limited.to(next(model.parameters()).dtype).load_state_dict(model.state_dict())
    return limited


@contextmanager
def _replaced(module: ModuleType, **functions: Any) -> Iterator[None]:
    """Other functions in a module for a while."""
    before = {name: getattr(module, name) for name in functions}
    vars(module).update(functions)
    try:
        yield
    finally:
        vars(module).update(before)
