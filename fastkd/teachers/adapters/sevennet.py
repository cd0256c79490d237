"""SevenNet (sevenn): potentials for materials, on the NequIP architecture. SevenNet-0 ships its weights in the package's wheel.

Y. Park et al., Scalable parallel algorithm for graph neural network interatomic potentials in molecular dynamics simulations,
J. Chem. Theory Comput. 20, 4857 (2024). SevenNet-0 was trained on MPtrj (PBE and PBE+U).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from fastkd.data.batch import Batch
from fastkd.errors import ConfigError
from fastkd.teachers.hooks import Feature, parse_irreps
from fastkd.teachers.output import Need
from fastkd.teachers.torch_module import Call, ForeignModule, Outputs

from .common import licence_of, require_trust


def make(*, checkpoint: str = "7net-0", modal: str = "", trust_pickle: bool = False) -> ForeignModule:
    """A SevenNet.

    Args:
        checkpoint: name of a pretrained model, or a file; the package downloads those that it does not ship.
        modal: which of its levels of theory a multi-modal model shall speak for.
        trust_pickle: a file is a pickle, and reading one can run any code; true says that you trust it. Not needed for a name.

    Returns:
        A teacher with node features (the scalars after the last block), the vectors of models with parity, and energies of atoms.
        SevenNet-0 is equivariant under rotations only: its l = 1 features mix vectors and axial vectors, so it offers none.
    """
    if Path(checkpoint).exists():
        require_trust(checkpoint, trust_pickle=trust_pickle)
    import sevenn._keys as key
    from sevenn import util

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved: Any = util.load_checkpoint(checkpoint)
        module: Any = saved.build_model()
    if module.modal_map and modal not in module.modal_map:
        raise ConfigError(f"teacher.options.modal = {modal!r}: {checkpoint} has {', '.join(module.modal_map)}")
    # forces are taken as a gradient outside, so that no work is done for them where nobody asks
    module.delete_module_by_key("force_output")
    module.key_grad = None
    module.set_is_batch_data(True)
    cutoff = float(module.cutoff)
    species = dict(module.type_map)
    reference = torch.zeros(119, dtype=torch.float64)
    shift = module.rescale_atomic_energy.shift.detach().double().flatten()
    for number, index in species.items():
        reference[number] = shift[index if len(shift) > 1 else 0]

    def inputs(batch: Batch, needs: frozenset[Need]) -> Call:
        graph = batch.graph(cutoff)
        data: dict[str, Any] = {
            key.ATOMIC_NUMBERS: batch.atomic_numbers,
            key.NODE_FEATURE: batch.atomic_numbers,
            key.POS: batch.positions,
            # the package's messages flow from row 1 to row 0, along vectors from row 0 to row 1
            key.EDGE_IDX: torch.stack([graph.csr.edge_dst, graph.csr.edge_src]),
            key.EDGE_VEC: -batch.edge_vectors(graph),
            key.BATCH: batch.graph_index,
            key.NUM_ATOMS: batch.atom_ptr.diff(),
        }
        if module.modal_map:
            data[key.MODAL_TYPE] = torch.full_like(batch.structure_index, module.modal_map[modal])
        return Call(data)

    def outputs(said: Any, batch: Batch) -> Outputs:
        return Outputs(energy=said[key.PRED_TOTAL_ENERGY], atom_energy=said[key.ATOMIC_ENERGY])

    module.eval_modal_map = False
    return ForeignModule(
        module,
        inputs,
        outputs,
        name=f"SevenNet {checkpoint}",
        cutoff=cutoff,
        forces="gradient",
        reference_energy=reference,
        references_in=frozenset({"energy", "atom_energy"}),
        elements=sorted(species),
        features=_features(module),
        # that of the wheel that SevenNet-0 ships in; a file of the user's has its own
        licence="" if Path(checkpoint).exists() else licence_of("sevenn"),
        identity=f"{checkpoint} {modal}",
    )


def _features(module: Any) -> list[Feature]:
    """Node: the input of the readout. Vector: the last block that has any."""
    gates = [name for name in module._modules if name.endswith("equivariant_gate")]
    layouts = {name: str(module._modules[name].gate.irreps_out).replace(" ", "") for name in gates}
    found = [Feature(gates[-1], "node", output="x", layout=layouts[gates[-1]])]
    with_vectors = [name for name in gates if any((degree, parity) == (1, "o") for _, degree, parity in parse_irreps(layouts[name]))]
    return found + [Feature(name, "vector", output="x", layout=layouts[name]) for name in with_vectors[-1:]]
