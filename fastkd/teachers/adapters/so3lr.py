"""SO3LR (so3krates-torch): a transferable potential for molecules with long-range electrostatics and dispersion.

A. Kabylda et al., Molecular simulations with a pretrained neural network and universal pairwise force fields, J. Am. Chem. Soc. 2025.
The weights ship in the package's wheel. Level of theory: PBE0+MBD. Elements H, C, N, O, F, P, S, Cl.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastkd.data.batch import Batch
from fastkd.errors import ConfigError
from fastkd.teachers.output import Need
from fastkd.teachers.torch_module import Call, ForeignModule, Outputs

from .common import licence_of, mace_graph, one_hot

ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl")
#: Order of the l = 1 harmonics in the package is y, z, x.
_XYZ = (2, 0, 1)


def make(*, charge: float = 0.0, spin: float = 0.0, cutoff_lr: float = 12.0, damping: float = 2.0) -> ForeignModule:
    """The pretrained SO3LR.

    Args:
        charge: total charge of every structure, e.
        spin: total spin of every structure, ħ.
        cutoff_lr: where electrostatics and dispersion end, Å; the default is the package's own.
        damping: width over which dispersion is damped to zero, Å.

    Returns:
        A teacher with node features [n_atoms, 128], one vector feature [n_atoms, 3, 1], and energies of atoms.
    """
    import so3krates_torch

    file = Path(so3krates_torch.__file__).parent / "pretrained" / "so3lr" / "so3lr.model"
    # the package's own file, as its calculator reads it: a pickled module
    module: Any = torch.load(file, map_location="cpu", weights_only=False)
    if cutoff_lr < module.r_max:
        raise ConfigError(f"teacher.options.cutoff_lr = {cutoff_lr}: must be at least the short-range cutoff, {module.r_max} Å")
    module.r_max_lr, module.dispersion_energy_cutoff_lr_damping = cutoff_lr, damping
    head, short = module.atomic_energy_output_block, float(module.r_max)
    reference = torch.zeros(119, dtype=torch.float64)
    reference[1:] = head.energy_shifts.detach().double().flatten()[:118]

    def inputs(batch: Batch, needs: frozenset[Need]) -> Call:
        graph = batch.graph(cutoff_lr)
        near = batch.edge_vectors(graph).square().sum(-1) <= short**2
        positions = batch.positions
        data = {
            # the module marks its input for gradients
            "positions": positions.detach().clone(),
            "atomic_numbers": batch.atomic_numbers,
            "node_attrs": one_hot(batch.atomic_numbers - 1, module.num_elements, positions.dtype),
            "cell": batch.cell.reshape(-1, 3),
            "batch": batch.graph_index,
            "ptr": batch.atom_ptr,
            "head": torch.zeros_like(batch.structure_index),
            "total_charge": positions.new_full((batch.num_graphs,), charge),
            "total_spin": positions.new_full((batch.num_graphs,), spin),
            **mace_graph(batch, graph, near),
            **mace_graph(batch, graph, suffix="_lr"),
        }
        return Call(
            data,
            compute_force="forces" in needs,
            compute_stress="stress" in needs,
            return_descriptors=True,
            return_eqv_descriptors=True,
        )

    def outputs(said: Any, batch: Batch) -> Outputs:
        return Outputs(
            energy=said["energy"],
            forces=said["forces"],
            atom_energy=said["node_energy"],
            stress=said["stress"] if bool(batch.pbc.all()) else None,
            features={"node": said["inv_features"], "vector": said["ev_features"][:, _XYZ, None]},
        )

    return ForeignModule(
        module,
        inputs,
        outputs,
        name="SO3LR",
        cutoff=float(cutoff_lr),
        differentiates=lambda needs: bool({"forces", "stress"} & needs),
        reference_energy=reference,
        references_in=frozenset({"energy", "atom_energy"}),
        elements=ELEMENTS,
        licence=licence_of("so3krates-torch"),
        identity=f"charge {charge} spin {spin} cutoff_lr {cutoff_lr} damping {damping}",
    )
