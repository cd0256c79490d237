"""MACE (mace-torch): any of its energy models, from a file that the package wrote.

I. Batatia et al., MACE: higher order equivariant message passing neural networks for fast and accurate force fields, NeurIPS 2022.
"""

from __future__ import annotations

from typing import Any

import torch

from fastkd.data.batch import Batch
from fastkd.errors import ConfigError
from fastkd.teachers.hooks import Feature, parse_irreps
from fastkd.teachers.output import Need
from fastkd.teachers.torch_module import Call, ForeignModule, Outputs

from .common import load_pickled, mace_graph, one_hot


def make(
    *, checkpoint: str, trust_pickle: bool = False, head: str = "", licence: str = "", charge: float = 0.0, spin: float = 1.0
) -> ForeignModule:
    """A MACE from its file.

    Args:
        checkpoint: ``.model`` file.
        trust_pickle: such files are pickled modules, and reading one can run any code; true says that you trust this one.
        head: of a model with several; empty takes the only one.
        licence: of these weights, which the file does not state.
        charge: of every structure, e, for models that take one.
        spin: multiplicity of every structure, for models that take one.

    Returns:
        A teacher with node features (scalars after the last product), vectors of the last block that has any, and energies of atoms.
    """
    import mace.modules  # noqa: F401 - the pickle refers to it

    module: Any = load_pickled(checkpoint, trust_pickle=trust_pickle)
    species = [int(number) for number in module.atomic_numbers]
    heads = list(getattr(module, "heads", None) or ["Default"])
    if not head and len(heads) > 1:
        raise ConfigError(f"teacher.options.head is needed: {checkpoint} has {', '.join(heads)}")
    if head and head not in heads:
        raise ConfigError(f"teacher.options.head = {head!r}: {checkpoint} has {', '.join(heads)}")
    chosen = heads.index(head) if head else 0
    cutoff = float(module.r_max)
    energies = module.atomic_energies_fn.atomic_energies.detach().double().reshape(-1, len(species))
    reference = torch.zeros(119, dtype=torch.float64)
    reference[species] = energies[chosen if len(energies) > 1 else 0]
    index = torch.full((119,), -1)
    index[species] = torch.arange(len(species))

    def inputs(batch: Batch, needs: frozenset[Need]) -> Call:
        positions = batch.positions
        data = {
            # the module marks its inputs for gradients
            "positions": positions.detach().clone(),
            "node_attrs": one_hot(index.to(positions.device)[batch.atomic_numbers], len(species), positions.dtype),
            "cell": batch.cell.reshape(-1, 3),
            "pbc": batch.pbc,
            "batch": batch.graph_index,
            "ptr": batch.atom_ptr,
            "head": torch.full_like(batch.structure_index, chosen),
            "total_charge": positions.new_full((batch.num_graphs,), charge),
            "total_spin": positions.new_full((batch.num_graphs,), spin),
            **mace_graph(batch, batch.graph(cutoff)),
        }
        return Call(data, compute_force="forces" in needs, compute_stress="stress" in needs)

    def outputs(said: Any, batch: Batch) -> Outputs:
        stress = said.get("stress") if bool(batch.pbc.all()) else None
        return Outputs(energy=said["energy"], forces=said.get("forces"), atom_energy=said["node_energy"], stress=stress)

    return ForeignModule(
        module,
        inputs,
        outputs,
        name=f"MACE {checkpoint.rpartition('/')[2]}",
        cutoff=cutoff,
        differentiates=lambda needs: bool({"forces", "stress"} & needs),
        reference_energy=reference,
        references_in=frozenset({"energy", "atom_energy"}),
        elements=species,
        features=_features(module),
        licence=licence,
        identity=f"head {chosen} charge {charge} spin {spin}",
    )


def _features(module: Any) -> list[Feature]:
    layouts = [str(product.linear.irreps_out).replace(" ", "") for product in module.products]
    last = len(layouts) - 1
    found = [Feature(f"products.{last}", "node", layout=layouts[last])]
    vectors = [k for k, layout in enumerate(layouts) if any((degree, parity) == (1, "o") for _, degree, parity in parse_irreps(layout))]
    return found + [Feature(f"products.{k}", "vector", layout=layouts[k]) for k in vectors[-1:]]
