"""Small structures and models that the tests of this folder share."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.models import PaiNN, PaiNNOptions, Potential, SchNet, SchNetOptions
from fastkd.models.ocp_graph import ocp_graph

CUTOFF = 3.0
BOX = 60.0  #: Å, so wide that images do not meet

#: name → options of a small model, all with CUTOFF
OPTIONS: dict[str, PaiNNOptions | SchNetOptions] = {
    "painn": PaiNNOptions(width=8, layers=2, radial=6, cutoff=CUTOFF),
    "painn_bessel": PaiNNOptions(
        width=8, layers=2, radial=6, cutoff=CUTOFF, basis="bessel", envelope_exponent=6, layer_norm=True, residual_scaling=True
    ),
    "painn_exp_normal": PaiNNOptions(width=5, layers=2, radial=6, cutoff=CUTOFF, basis="exp_normal", fitted_scales=True),
    "painn_direct": PaiNNOptions(width=8, layers=2, radial=6, cutoff=CUTOFF, forces="direct"),
    "painn_ocp": PaiNNOptions.ocp(width=8, layers=2, radial=6, cutoff=CUTOFF),
    "schnet": SchNetOptions(width=8, filters=7, layers=2, radial=6, cutoff=CUTOFF),
    "schnet_smooth": SchNetOptions(width=8, filters=7, layers=2, radial=6, cutoff=CUTOFF, envelope="polynomial"),
}
CONSERVATIVE = [name for name, options in OPTIONS.items() if "direct" not in name and name != "painn_ocp"]
#: zero at the cutoff to second order; the others' filters are SchNet's cosine, or jump by design
SMOOTH = ["painn", "painn_bessel", "painn_exp_normal", "schnet_smooth"]


def make_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Potential:
    """A model with weights that are random throughout, biases included, so that no term hides behind a zero."""
    torch.manual_seed(seed)
    options = OPTIONS[name]
    model = PaiNN(options) if isinstance(options, PaiNNOptions) else SchNet(options)
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
