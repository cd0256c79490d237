"""SchNetPack (schnetpack 2.x): a whole potential, from the ``best_model`` file that its trainer wrote.

K. T. Schütt et al., SchNetPack 2.0: a neural network toolbox for atomistic machine learning, J. Chem. Phys. 158, 144801 (2023).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.data.units import Units
from fastkd.errors import ConfigError
from fastkd.teachers.hooks import Feature
from fastkd.teachers.output import Need
from fastkd.teachers.torch_module import Call, ForeignModule, Outputs

from .common import load_pickled


def make(
    *,
    checkpoint: str,
    trust_pickle: bool = False,
    energy: str = "energy",
    forces: str = "forces",
    energy_unit: str = "eV",
    length_unit: str = "Å",
    licence: str = "",
) -> ForeignModule:
    """A SchNetPack potential from its file.

    Args:
        checkpoint: file that holds the whole model.
        trust_pickle: such files are pickled modules, and reading one can run any code; true says that you trust this one.
        energy: key of the energy among the model's outputs.
        forces: key of the forces; empty if the model has none, which are then taken as the slope of the energy.
        energy_unit: of the model, which its file does not state.
        length_unit: of the model.
        licence: of these weights, which the file does not state.

    Returns:
        A teacher with node features (scalar_representation), and vectors (vector_representation) where the representation has them.
    """
    module: Any = load_pickled(checkpoint, trust_pickle=trust_pickle)
    representation = getattr(module, "representation", None)
    if representation is None or not hasattr(representation, "cutoff"):
        raise ConfigError(f"{checkpoint} holds a {type(module).__name__} without a representation; it is no potential of SchNetPack 2")
    units = Units(energy_unit, length_unit)
    # in Å for our graphs, in the model's unit inside
    cutoff = float(representation.cutoff) * units.factors(checkpoint)["positions"]
    inside = bool(forces) and forces in getattr(module, "model_outputs", [])

    def inputs(batch: Batch, needs: frozenset[Need]) -> Call:
        graph = batch.graph(cutoff)
        shift = torch.einsum("ei,eij->ej", graph.edge_shift.to(batch.positions.dtype), batch.cell[batch.graph_index[graph.csr.edge_dst]])
        positions = batch.positions.detach().clone() if inside else batch.positions
        return Call(
            {
                "_atomic_numbers": batch.atomic_numbers,
                "_positions": positions,
                "_cell": batch.cell,
                "_pbc": batch.pbc,
                "_n_atoms": batch.atom_ptr.diff(),
                "_idx": batch.structure_index,
                "_idx_m": batch.graph_index,
                # vectors of the package point from i, which receives, to j
                "_idx_i": graph.csr.edge_dst,
                "_idx_j": graph.csr.edge_src,
                "_offsets": shift,
            }
        )

    def outputs(said: dict[str, Any], batch: Batch) -> Outputs:
        return Outputs(energy=said[energy], forces=said.get(forces) if inside else None)

    features = [Feature("representation", "node", output="scalar_representation")]
    if any(base.__name__ == "PaiNN" for base in type(representation).__mro__):
        features.append(Feature("representation", "vector", output="vector_representation"))

    return ForeignModule(
        module,
        inputs,
        outputs,
        name=f"SchNetPack {type(representation).__name__}",
        cutoff=cutoff,
        units=units,
        forces="module" if inside else "gradient",
        # it differentiates whenever it is called
        differentiates=inside,
        reference_energy=_references(module, energy),
        features=features,
        licence=licence,
        identity=f"{energy} {forces}",
    )


def _references(module: Any, energy: str) -> Tensor | None:
    """What the model's postprocessors add per atom, [119] in its unit: reference energies and the mean per atom of its training set."""
    found = None
    for step in module.postprocessors if module.do_postprocessing else ():
        if type(step).__name__ != "AddOffsets" or getattr(step, "_property", "") != energy or not step.is_extensive:
            continue
        found = torch.zeros(119, dtype=torch.float64) if found is None else found
        if step.add_mean:
            found += step.mean.detach().double().sum()
        if step.add_atomrefs:
            known = step.atomref.detach().double().flatten()[:119]
            found[: len(known)] += known
    return found
