"""A small foreign network with units, conventions and habits of its own, and factories that wrap it."""

from __future__ import annotations

import torch
from ase import units
from ase.calculators.lj import LennardJones
from torch import Tensor, nn

from fastkd.data.units import Units
from fastkd.teachers import Call, Feature, ForeignModule, Outputs

CUTOFF = 3.0
REFERENCE = {"H": -10.0, "C": -800.0, "O": -1500.0}  # kcal/mol


class Block(nn.Module):
    """Returns scalars and vectors, these with axes last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, scalars: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        return {"scalars": scalars + torch.tanh(self.mix(scalars)), "vectors": vectors * torch.sigmoid(scalars)[:, :, None]}


class Foreign(nn.Module):
    """Energies in kcal/mol without references, lengths in bohr; edges from row 0 to row 1."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.filter = nn.Linear(4, width)
        self.block = Block(width)
        self.unused = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        self.grad_mode: list[tuple[bool, bool]] = []

    def forward(self, z: Tensor, edge_vector: Tensor, edges: Tensor, graph: Tensor, graphs: int) -> dict[str, Tensor]:
        self.grad_mode.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        length = edge_vector.norm(dim=-1, keepdim=True)
        fade = (1 - length / (CUTOFF / units.Bohr)).clamp(min=0) ** 2
        message = self.filter(torch.cat([torch.exp(-length * k) for k in (0.3, 0.6, 0.9, 1.2)], -1)) * fade
        scalars = self.embed(z)
        sent = message * scalars[edges[0]]
        vectors = scalars.new_zeros(len(z), scalars.shape[1], 3).index_add(0, edges[1], sent[:, :, None] * (edge_vector / length)[:, None])
        scalars = scalars.index_add(0, edges[1], sent)
        done = self.block(scalars, vectors)
        atoms = self.out(done["scalars"] + done["vectors"].square().sum(-1))
        return {"energy": atoms.new_zeros(graphs, 1).index_add(0, graph, atoms), "atoms": atoms, "messages": message}


def network(seed: int = 3) -> Foreign:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Foreign()


def inputs(batch, needs) -> Call:
    graph = batch.graph(CUTOFF)
    edges = torch.stack([graph.csr.edge_src, graph.csr.edge_dst])
    return Call(batch.atomic_numbers, batch.edge_vectors(graph), edges, batch.graph_index, graphs=batch.num_graphs)


def outputs(said, batch) -> Outputs:
    return Outputs(energy=said["energy"], atom_energy=said["atoms"])


def make(seed: int = 3, **changes) -> ForeignModule:
    """The network as a teacher; ``changes`` are attributes."""
    settings = {
        "inputs": inputs,
        "outputs": outputs,
        "cutoff": CUTOFF,
        "units": Units("kcal/mol", "bohr"),
        "forces": "gradient",
        "reference_energy": REFERENCE,
        "references_in": frozenset(),
        "elements": ["H", "C", "O"],
        "features": [
            Feature("block", "node", output="scalars"),
            Feature("block", "vector", output="vectors", layout="axes_last"),
            Feature("filter", "edge"),
        ],
        "licence": "CC-BY-4.0",
    }
    return ForeignModule(network(seed), **(settings | changes))


def not_a_teacher() -> nn.Module:
    return network()


A_NUMBER = 3


def lennard_jones(epsilon: float = 0.1) -> LennardJones:
    return LennardJones(sigma=1.2, epsilon=epsilon, rc=6.0)


class Picky(LennardJones):
    """Fails for structures with oxygen."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
        if 8 in atoms.numbers:
            raise ValueError("no oxygen, please")
        super().calculate(atoms, properties, list(system_changes) or ["positions"])


class EnergyOnly(LennardJones):
    implemented_properties = ("energy",)
