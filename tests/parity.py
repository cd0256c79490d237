"""Compare our models with reference outputs: ``python -m tests.parity FILE...``.

A file holds the weights of a foreign model, structures, and what the foreign implementation computes from them. Exit status: 0 if
every output agrees, 1 if one does not, 2 if a file cannot be read or its model is not supported.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastkd_kernels import edge_to_node, edge_to_node_vector
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from fastkd.data.batch import Batch
from fastkd.errors import DataError, UserError
from fastkd.models.base import EdgeGraph, Features
from fastkd.models.dimenet_pp_weights import load_dimenet_pp_ocp
from fastkd.models.gemnet_oc import load_gemnet_oc
from fastkd.models.multiplex_weights import load_mxmnet, load_pamnet
from fastkd.models.ocp import ForeignModel, load_painn, load_schnet
from fastkd.models.ocp_graph import ocp_graph

TOLERANCE = 1e-9  #: of max |ours − theirs| / max |theirs|, per output


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """Contents of one file."""

    name: str
    model: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """How far one output is from the reference."""

    output: str
    absolute: float
    relative: float

    @property
    def passed(self) -> bool:
        return self.relative <= TOLERANCE


Loader = Callable[[Mapping[str, Any], Mapping[str, Tensor]], ForeignModel]

#: family → (a tensor that tells it from others, how to load it); None where we have no such model yet
FAMILIES: dict[str, tuple[str | None, Loader | None]] = {
    "painn": ("message_layers.0.x_proj.0.weight", load_painn),
    "schnet": ("interactions.0.conv.lin1.weight", load_schnet),
    "gemnet_oc": ("int_blocks.0.trip_interaction.dense_ba.linear.weight", load_gemnet_oc),
    "dimenet": ("interaction_blocks.0.lin_sbf1.weight", load_dimenet_pp_ocp),
    "mxmnet": ("local_layers.0.y_W.weight", load_mxmnet),
    "pamnet": ("local_layer.0.W_out.weight", load_pamnet),
}


def read(path: str | Path) -> ReferenceFile:
    """Read a file. Raises DataError if it is not one of this format."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (a handle is no dict)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a readable safetensors file: {error}") from error
    if "config" not in metadata:
        raise DataError(f"{path}: no 'config' in the metadata; this is not a file of reference outputs")
    groups: dict[str, dict[str, Tensor]] = {"state": {}, "in": {}, "out": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        if group in groups:
            groups[group][rest] = tensor
    model = metadata.get("model", "")
    return ReferenceFile(str(path), model, json.loads(metadata["config"]), groups["state"], groups["in"], groups["out"])


def family(file: ReferenceFile) -> str:
    """Which of FAMILIES a file belongs to: by the tensors it holds, else by the name of its model."""
    bare = {name.removeprefix("module.") for name in file.state}
    for name, (marker, _) in FAMILIES.items():
        if marker is not None and marker in bare:
            return name
    for name in FAMILIES:
        if name.replace("_", "") in file.model.lower().replace("_", ""):
            return name
    raise DataError(f"{file.name}: cannot tell which model this is, from neither its tensors nor its name {file.model!r}")


def predict(file: ReferenceFile) -> dict[str, Tensor]:
    """Our value of every output we know how to compute. Raises DataError if the model is not supported."""
    name = family(file)
    loader = FAMILIES[name][1]
    if loader is None:
        ours = ", ".join(key for key, (_, loader) in FAMILIES.items() if loader)
        raise DataError(f"{file.name}: {name} is not supported yet; supported are {ours}")
    foreign = loader(file.config, file.state)
    model = foreign.model.double()
    batch = make_batch(file.inputs, foreign)
    prediction = model(batch)
    features = prediction.features
    values = {"energy": prediction.energy, "forces": prediction.forces, "atom_energy": prediction.atom_energy}
    for output, feature in (("n2n", features.node), ("n2e", features.node), ("v2v", features.vector)):
        if feature is not None:
            # equal widths need no projection, and the reference has none then
            weight, bias = foreign.maps.get(output, (None, None))
            values[output] = feature if weight is None else functional.linear(feature, weight, bias)
    if features.edge_graph is not None:
        values |= _edge_outputs(file, features, features.edge_graph)
    return {key: value.detach() for key, value in values.items() if value is not None}


def _edge_outputs(file: ReferenceFile, features: Features, graph: EdgeGraph) -> dict[str, Tensor | None]:
    """Features of GemNet-OC: atoms, edges in the order of the reference's, and edges summed into atoms."""
    values: dict[str, Tensor | None] = {"node": features.node}
    if features.edge is not None:
        values["e2n"] = edge_to_node(features.edge, graph.csr)
        values["e2v"] = edge_to_node_vector(features.edge, graph.direction, graph.csr)
    if {"edge_index", "edge_distance", "edge_direction"} <= set(file.outputs):
        order = _match(file, graph)
        values["edge_index"] = torch.stack([graph.csr.edge_src, graph.csr.edge_dst])[:, order]
        values["edge_distance"], values["edge_direction"] = graph.length[order], graph.direction[order]
        values["edge"] = None if features.edge is None else features.edge[order]
    return values


def _match(file: ReferenceFile, graph: EdgeGraph) -> Tensor:
    """Number of our edge for each of the reference's: same atoms, nearest vector. Raises DataError if the graphs differ."""
    index, vector = file.outputs["edge_index"], file.outputs["edge_distance"][:, None] * file.outputs["edge_direction"]
    ours = torch.stack([graph.csr.edge_src, graph.csr.edge_dst])
    distance = torch.cdist(vector, graph.length[:, None].detach() * graph.direction.detach())
    distance[(index[:, :, None] != ours[:, None, :]).any(0)] = math.inf
    order = distance.argmin(1) if distance.numel() else index[0]
    if order.shape[0] != ours.shape[1] or order.unique().shape[0] != order.shape[0]:
        raise DataError(f"{file.name}: our graph has {ours.shape[1]} edges, the reference's {index.shape[1]}, and they cannot be matched")
    return order


def make_batch(inputs: Mapping[str, Tensor], foreign: ForeignModel) -> Batch:
    """Structures of a file, with the graph that the reference would make."""
    positions, natoms = inputs["positions"].double(), inputs["natoms"]
    graphs, atoms = natoms.shape[0], positions.shape[0]
    cutoff, periodic = foreign.model.cutoff, "cell" in inputs
    # molecules stand in boxes so wide that images do not meet
    width = (positions.amax(0) - positions.amin(0)).max().item() + 2 * cutoff
    cell = inputs["cell"].double() if periodic else torch.eye(3, dtype=torch.float64).mul(width).repeat(graphs, 1, 1)
    graph = ocp_graph(positions, cell, natoms, cutoff, foreign.max_neighbors, symmetric=foreign.symmetric)
    return Batch(
        atomic_numbers=inputs["atomic_numbers"].long(),
        positions=positions,
        atom_ptr=functional.pad(natoms.cumsum(0), (1, 0)),
        graph_index=torch.arange(graphs).repeat_interleave(natoms),
        cell=cell,
        pbc=torch.full((graphs, 3), periodic),
        energy=torch.zeros(graphs, dtype=torch.float64),
        forces=torch.zeros(atoms, 3, dtype=torch.float64),
        labelled=torch.zeros(graphs, dtype=torch.bool),
        structure_index=torch.arange(graphs),
        graphs={cutoff: graph},
        bonds=inputs.get("bond_index"),
        tags=inputs["tags"].long() if "tags" in inputs else None,
    )


def compare(file: ReferenceFile) -> list[Comparison]:
    """Errors of every output of a file.

    Raises:
        DataError: if the model is not supported, or the file holds an output that we do not compute.
    """
    values = predict(file)
    missing = sorted(set(file.outputs) - set(values))
    if missing:
        raise DataError(f"{file.name}: outputs {', '.join(missing)} of {family(file)} are not supported yet")
    comparisons = []
    for output, want in sorted(file.outputs.items()):
        got = values[output]
        if got.numel() != want.numel():
            raise DataError(f"{file.name}: {output} is {list(want.shape)}, ours is {list(got.shape)}")
        difference = (got.reshape(want.shape) - want).abs()
        absolute = difference.max().item() if want.numel() else 0.0
        size = want.abs().max().item() if want.numel() else 0.0
        if not absolute:
            relative = 0.0
        elif size and math.isfinite(absolute):
            relative = absolute / size
        else:
            relative = math.inf
        comparisons.append(Comparison(output, absolute, relative))
    return comparisons


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    status = 0
    for path in arguments:
        try:
            file = read(path)
            comparisons = compare(file)
        except UserError as error:
            print(f"{path}: {error}" if not str(error).startswith(str(path)) else error, file=sys.stderr)
            status = 2
            continue
        print(f"{path}  ({family(file)}, {file.inputs['positions'].shape[0]} atoms)")
        for item in comparisons:
            verdict = "ok" if item.passed else f"FAILED (> {TOLERANCE:g})"
            print(f"  {item.output:<12} max abs {item.absolute:9.2e}   max rel {item.relative:9.2e}   {verdict}")
        if not all(item.passed for item in comparisons):
            status = max(status, 1)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
