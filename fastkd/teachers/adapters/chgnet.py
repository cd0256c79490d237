"""CHGNet (chgnet): a potential for crystals with magnetic moments. Its weights ship in the package's wheel.

B. Deng et al., CHGNet as a pretrained universal neural network potential for charge-informed atomistic modelling,
Nat. Mach. Intell. 5, 1031 (2023). Trained on MPtrj (PBE and PBE+U).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from ase import units
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.teachers.hooks import Feature
from fastkd.teachers.output import Need
from fastkd.teachers.torch_module import Call, ForeignModule, Outputs

from .common import licence_of, require_trust


def make(*, model: str = "0.3.0", checkpoint: str = "", trust_pickle: bool = False) -> ForeignModule:
    """A CHGNet.

    Args:
        model: name of a pretrained model that the package ships: 0.3.0, 0.2.0 or r2scan.
        checkpoint: file that the package's trainer wrote, in place of a pretrained model.
        trust_pickle: such a file is a pickle, and reading one can run any code; true says that you trust it.

    Returns:
        A teacher with node features [n_atoms, 64], a feature per crystal, and energies of atoms; for crystals only, in float32 only.
    """
    if checkpoint:
        require_trust(checkpoint, trust_pickle=trust_pickle)
    from chgnet.model import CHGNet
    from pymatgen.core import Structure

    module: Any = CHGNet.from_file(checkpoint) if checkpoint else CHGNet.load(model_name=model, use_device="cpu", verbose=False)
    # atoms without neighbours keep the energy that the network gives them alone
    module.graph_converter.set_isolated_atom_response("ignore")
    reference = None
    if module.composition_model is not None:
        reference = torch.zeros(119, dtype=torch.float64)
        weight = module.composition_model.fc.weight.detach().double().flatten()
        reference[1 : len(weight) + 1] = weight

    def graphs_of(batch: Batch) -> list[Any]:
        """The package's own graphs: it wants undirected bonds and angles between them."""
        numbers, positions = batch.atomic_numbers.cpu().numpy(), batch.positions.detach().cpu().double().numpy()
        cells, pointers = batch.cell.cpu().double().numpy(), batch.atom_ptr.tolist()
        return [
            module.graph_converter(Structure(cells[k], numbers[first:last], positions[first:last], coords_are_cartesian=True)).to(
                batch.positions.device
            )
            for k, (first, last) in enumerate(pairwise(pointers))
        ]

    def inputs(batch: Batch, needs: frozenset[Need]) -> Call:
        task = "efs" if "stress" in needs else "ef" if "forces" in needs else "e"
        return Call(graphs_of(batch), task=task, return_site_energies=module.mlp_first, return_crystal_feas=True)

    def outputs(said: dict[str, Any], batch: Batch) -> Outputs:
        counts = batch.atom_ptr.diff().to(said["e"].dtype)
        return Outputs(
            energy=said["e"] * counts if module.is_intensive else said["e"],
            forces=_joined(said.get("f")),
            atom_energy=_joined(said.get("site_energies")),
            stress=torch.stack(list(said["s"])) * units.GPa if "s" in said else None,
            features={"graph": said["crystal_fea"]},
        )

    last = "readout_norm" if module.readout_norm is not None else f"atom_conv_layers.{len(module.atom_conv_layers) - 1}"
    return ForeignModule(
        module,
        inputs,
        outputs,
        name=f"CHGNet {checkpoint or model}",
        differentiates=lambda needs: bool({"forces", "stress"} & needs),
        reference_energy=reference,
        references_in=frozenset({"energy", "atom_energy"}),
        elements=range(1, 95),
        periodic="always",
        features=[Feature(last, "node")],
        licence="" if checkpoint else licence_of("chgnet"),
        only_dtype=torch.float32,
        identity=checkpoint or model,
    )


def _joined(parts: Any) -> Tensor | None:
    return None if parts is None else torch.cat(list(parts))
