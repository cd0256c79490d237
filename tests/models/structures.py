"""Small structures and models that the tests of this folder share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.models import DimeNetPPOptions, GemNetOCOptions, MXMNetOptions, PaiNNOptions, PAMNetOptions, Potential, SchNetOptions
from fastkd.models.factory import ARCHITECTURES
from fastkd.models.ocp_graph import ocp_graph

CUTOFF = 3.0
BOX = 60.0  #: Å, so wide that images do not meet

_DIMENET = DimeNetPPOptions(
    width=8, layers=2, triplet_width=6, basis_width=4, output_width=7, degrees=4, radial=3, cutoff=CUTOFF, output_layers=1
)
GEMNET = GemNetOCOptions(
    **dict.fromkeys(("before_skip", "after_skip", "concat", "atom_update", "after_atom", "atom_layers", "global_layers"), 1),
    **dict.fromkeys(("triplet_in", "triplet_out", "quad_in", "quad_out", "pair_in", "pair_out", "radial", "layers"), 3),
    **dict.fromkeys(("radial_width", "circular_width", "spherical_width", "spherical"), 3),
    width=6,
    edge_width=7,
    cutoff=CUTOFF,
)
#: name → options of a small model, all with CUTOFF
OPTIONS: dict[str, Any] = {
    "painn": PaiNNOptions(width=8, layers=2, radial=6, cutoff=CUTOFF),
    "painn_bessel": PaiNNOptions(
        width=8, layers=2, radial=6, cutoff=CUTOFF, basis="bessel", envelope_exponent=6, layer_norm=True, residual_scaling=True
    ),
    "painn_exp_normal": PaiNNOptions(width=5, layers=2, radial=6, cutoff=CUTOFF, basis="exp_normal", fitted_scales=True),
    "painn_direct": PaiNNOptions(width=8, layers=2, radial=6, cutoff=CUTOFF, forces="direct"),
    "painn_ocp": PaiNNOptions.ocp(width=8, layers=2, radial=6, cutoff=CUTOFF),
    "painn_schnetpack": PaiNNOptions(
        width=8,
        layers=3,
        radial=6,
        cutoff=CUTOFF,
        envelope="cosine",
        norm_epsilon=1e-6,
        shared_filters=True,
        shared_blocks=True,
        last_element=9,
    ),
    "schnet": SchNetOptions(width=8, filters=7, layers=2, radial=6, cutoff=CUTOFF),
    "schnet_smooth": SchNetOptions(width=8, filters=7, layers=2, radial=6, cutoff=CUTOFF, envelope="polynomial"),
    "dimenet_pp": _DIMENET,
    "dimenet_pp_ocp": replace(_DIMENET, output_bias=True, angle_forces=False, rounded_basis=True),
    "mxmnet": MXMNetOptions(width=6, layers=2, radial=4, cutoff=CUTOFF, spherical=3, spherical_radial=2),
    "mxmnet_smooth": MXMNetOptions(
        width=6, layers=2, radial=4, cutoff=CUTOFF, spherical=3, spherical_radial=2, local="distance", local_distance=2.5, smooth=True
    ),
    "pamnet": PAMNetOptions(width=6, layers=2, radial=4, cutoff=CUTOFF, spherical=3, spherical_radial=2, local="distance"),
    "pamnet_smooth": PAMNetOptions(width=6, layers=2, radial=4, cutoff=CUTOFF, spherical=3, spherical_radial=2, smooth=True),
    "pamnet_s": PAMNetOptions(width=6, layers=2, radial=4, cutoff=CUTOFF, simple=True, covalent_factor=1.5, smooth=True),
    "pamnet_s_exact": PAMNetOptions(width=6, layers=2, radial=4, cutoff=CUTOFF, simple=True, covalent_factor=1.5),
    "gemnet_oc": replace(GEMNET.smooth(), forces="conservative", layers=2),
    "gemnet_oc_bessel": replace(
        GEMNET.smooth(), forces="conservative", basis="bessel", envelope="exponential", angular="legendre_outer", layers=1
    ),
    "gemnet_oc_direct": replace(GEMNET, coupled_forces=True, quad_cutoff=2.5, atom_edge_cutoff=2.8, layers=1),
    "gemnet_oc_direct_smooth": replace(GEMNET.smooth(), layers=1),
}
#: OCP's DimeNet++ leaves angles out of its forces
CONSERVATIVE = [name for name in OPTIONS if "direct" not in name and "ocp" not in name]
#: zero at the cutoff to second order
SMOOTH = [
    *("painn", "painn_bessel", "painn_exp_normal", "painn_direct", "schnet_smooth"),
    *("dimenet_pp", "dimenet_pp_ocp", "mxmnet_smooth", "pamnet_smooth", "pamnet_s"),
    *("gemnet_oc", "gemnet_oc_bessel", "gemnet_oc_direct", "gemnet_oc_direct_smooth"),
]
#: to first order: SchNet's cosine
COSINE = ["schnet", "painn_schnetpack"]
#: as their authors wrote them, and docs/models.md says: something does not vanish there; smooth options of each are in `SMOOTH`
JUMPING = ["painn_ocp", "mxmnet", "pamnet", "pamnet_s_exact"]
#: whose forces come in opposite pairs, although they are no gradient
PAIRWISE = ["dimenet_pp_ocp", "gemnet_oc_direct"]


def make_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Potential:
    """A model with weights that are random throughout, biases included, so that no term hides behind a zero."""
    torch.manual_seed(seed)
    options = OPTIONS[name]
    model = next(make for make, kind in ARCHITECTURES.values() if type(options) is kind)(options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if isinstance(options, PaiNNOptions) and options.fitted_scales:
            model.scales.copy_(torch.tensor([0.8, 1.3]))
        model.reference_energy.copy_(torch.randn(119, dtype=torch.float64))
        model.energy_scale.fill_(1.7)
    return model.to(dtype)


def random_molecule(atoms: int, seed: int) -> tuple[Tensor, Tensor]:
    """Atomic numbers and positions: random sites of a grid of 1.4 Å, displaced by up to 0.3 Å, so that some atoms are neighbours."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.tensor([1, 6, 7, 8])[torch.randint(4, (atoms,), generator=generator)]
    sites = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 3)[torch.randperm(64, generator=generator)[:atoms]]
    return numbers, 1.4 * sites + 0.3 * (2 * torch.rand(atoms, 3, generator=generator, dtype=torch.float64) - 1)


def batch_of(
    *structures: tuple[Tensor, Tensor],
    cell: Tensor | None = None,
    cutoff: float = CUTOFF,
    dtype: torch.dtype = torch.float64,
    max_neighbors: int = 0,
) -> Batch:
    """Structures end to end, with their graph; ``cell`` [3, 3] makes all of them periodic."""
    natoms = torch.tensor([numbers.shape[0] for numbers, _ in structures])
    count, atoms = len(structures), int(natoms.sum())
    positions = torch.cat([positions for _, positions in structures]).double()
    boxes = (torch.eye(3, dtype=torch.float64) * BOX if cell is None else cell).expand(count, 3, 3)
    graph = ocp_graph(positions.detach(), boxes, natoms, cutoff, max_neighbors, symmetric=False)
    if cell is None:
        assert not graph.edge_shift.any()
    return Batch(
        atomic_numbers=torch.cat([numbers for numbers, _ in structures]),
        positions=positions.to(dtype),
        atom_ptr=torch.nn.functional.pad(natoms.cumsum(0), (1, 0)),
        graph_index=torch.arange(count).repeat_interleave(natoms),
        cell=(torch.zeros(count, 3, 3) if cell is None else boxes).to(dtype),
        pbc=torch.full((count, 3), cell is not None),
        energy=torch.zeros(count, dtype=torch.float64),
        forces=torch.zeros(atoms, 3, dtype=dtype),
        labelled=torch.zeros(count, dtype=torch.bool),
        structure_index=torch.arange(count),
        graphs={cutoff: graph},
    )
