"""What every model is: a module from a batch to energies, forces and named features.

A model predicts an energy per atom; the sum over a graph plus fixed per-element reference energies is the total energy. Forces are
−dE/dx, or a direct head where the model has one. Features are what distillation compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, Self

import torch
from fastkd_kernels import CSRGraph, edge_to_node, segment_reduce
from fastkd_kernels.graph import transpose
from torch import Tensor, nn

from fastkd.data.batch import Batch
from fastkd.errors import ConfigError, DataError

from .layers.elements import ElementTable
from .layers.tables import FilterTables

MAX_ATOMIC_NUMBER = 118
ForceMode = Literal["conservative", "direct"]
FeatureKind = Literal["node", "edge", "vector", "atom_energy"]

#: The layer whose features `Features` holds under their own names; see `Features.at` for the others.
FINAL = "final"


@dataclass(frozen=True, eq=False)
class EdgeGraph:
    """The graph that a model cut out of the batch's for its edge features."""

    csr: CSRGraph
    direction: Tensor  #: [n_edges, 3], unit vectors from source to target, in the order of ``csr``
    length: Tensor  #: [n_edges] Å
    shift: Tensor  #: [n_edges, 3] int64, periodic image of the source


@dataclass(frozen=True, eq=False)
class BlockOutput:
    """What one output block of a model made, before the last linear layer: x_E of atoms and, where there is one, x_F of edges."""

    node: Tensor  #: [n_atoms, c]
    edge: Tensor | None = None  #: [n_edges, c_edge], in the order of `Features.edge`


@dataclass(frozen=True, eq=False)
class Features:
    """What a model offers to distillation, each optional.

    ``edge`` belongs to the edges of ``edge_graph``, or if that is None to those of the batch's graph with the model's own cutoff, in
    that graph's order, and is computed when it is first read; ``layers`` are the scalar node embeddings from the embedding (first) to
    the last block.
    """

    node: Tensor | None = None  #: [n_atoms, c]
    compute_edge: Callable[[], Tensor] | None = None  #: gives ``edge``, [n_edges, c]
    vector: Tensor | None = None  #: [n_atoms, 3, c]
    layers: tuple[Tensor, ...] = ()  #: each [n_atoms, c]
    vector_layers: tuple[Tensor, ...] = ()  #: each [n_atoms, 3, c], zero before the first block
    edge_graph: EdgeGraph | None = None  #: whose edges ``edge`` belongs to; None: those of the batch's graph
    edge_layers: tuple[Callable[[], Tensor] | None, ...] = ()  #: each gives [n_edges, c]; None where there is none, or it was not kept
    outputs: tuple[BlockOutput, ...] = ()  #: of every output block, that of the embedding first
    mixing: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)  #: embeddings of atoms of equal width, see `Potential.mixing`

    @cached_property
    def edge(self) -> Tensor | None:
        """[n_edges, c], or None if the model has no edge feature."""
        return None if self.compute_edge is None else self.compute_edge()

    def at(self, kind: str, layer: str = FINAL) -> Tensor | None:
        """The feature of a kind (``node``, ``edge``, ``vector``) at a layer, or None if the model has none there.

        Args:
            kind: of the feature.
            layer: ``final``; ``regular_k``, the embeddings after block k (0: before the first); ``x_k``, what output block k made.
        """
        if layer == FINAL:
            final: Tensor | None = getattr(self, kind)
            return final
        stack, number = split_layer(layer)
        if stack == "x":
            return getattr(self.outputs[number], kind, None) if number < len(self.outputs) else None
        if kind == "edge":
            compute = self.edge_layers[number] if number < len(self.edge_layers) else None
            return None if compute is None else compute()
        layers = self.vector_layers if kind == "vector" else self.layers
        return layers[number] if number < len(layers) else None

    def detach(self) -> Features:
        """The same numbers without autograd's graph."""
        compute, own = self.compute_edge, self.edge_graph
        return Features(
            node=_detached(self.node),
            compute_edge=None if compute is None else lambda: compute().detach(),
            vector=_detached(self.vector),
            layers=tuple(layer.detach() for layer in self.layers),
            vector_layers=tuple(layer.detach() for layer in self.vector_layers),
            edge_graph=None if own is None else EdgeGraph(own.csr, own.direction.detach(), own.length.detach(), own.shift),
            edge_layers=tuple(None if layer is None else partial(_detached_result, layer) for layer in self.edge_layers),
            outputs=tuple(BlockOutput(item.node.detach(), _detached(item.edge)) for item in self.outputs),
            mixing={name: tuple(layer.detach() for layer in layers) for name, layers in self.mixing.items()},
        )


def split_layer(layer: str) -> tuple[str, int]:
    """``regular_2`` → ("regular", 2), ``x_0`` → ("x", 0).

    Raises:
        ValueError: for any other name.
    """
    stack, _, number = layer.rpartition("_")
    if stack not in ("regular", "x") or not number.isdecimal():
        raise ValueError(f"{layer!r} is no layer: final, regular_k or x_k with k = 0, 1, …")
    return stack, int(number)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Output of a model for a batch."""

    energy: Tensor  #: [n_graphs] float64, eV, reference energies included
    forces: Tensor | None  #: [n_atoms, 3] eV/Å
    atom_energy: Tensor  #: [n_atoms] eV, reference energies *not* included
    features: Features


@dataclass(frozen=True, eq=False)
class Readout:
    """What a model's `represent` returns: energies before scaling, direct forces if it has a head for them, features."""

    atom_energy: Tensor  #: [n_atoms], in units of the model's energy_scale
    forces: Tensor | None
    features: Features


def _forget_tables(model: nn.Module, incompatible: object) -> None:
    tables = getattr(model, "tables", None)
    if tables is not None:
        tables.reset()


def _supply_offset(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    # weights from before there was an offset; a state dict without weights is somebody's mistake, and stays one
    if f"{prefix}energy_scale" in state:
        state.setdefault(f"{prefix}energy_offset", torch.zeros((), dtype=torch.float64))


class Potential(nn.Module):
    """Base of all models. Subclasses write `represent`; energies, references, scaling and forces are done here.

    Buffers ``reference_energy`` [119] (eV by atomic number, 0 for elements never seen), ``known_element`` [119] (bool) and
    ``energy_scale`` [] (eV, multiplies predictions so that the network works with numbers near one) and ``energy_offset`` [] (eV, added
    once per structure, as the mean of whoever trained on normalised totals) are part of the state dict. Files from before there were
    offsets have none. The energies stay float64 when the module is cast: totals are large.
    """

    reference_energy: Tensor
    known_element: Tensor
    energy_scale: Tensor
    energy_offset: Tensor
    #: a frozen dataclass: all that determines a model but its weights
    options: Any
    #: how radial filters are tabulated; None in models that have none
    tables: FilterTables | None = None
    #: layers (see `Features.at`) whose *edge* features the model holds on to: each is as large as anything in it, so none by default
    kept_layers: frozenset[str] = frozenset()
    #: whether it takes any graph in place of that of its cutoff, as e2e with ``edges: teacher`` needs
    takes_any_graph = False

    def __init__(self, cutoff: float, force_mode: ForceMode = "conservative") -> None:
        super().__init__()
        self.cutoff = float(cutoff)  #: Å
        self.force_mode: ForceMode = force_mode
        self.register_buffer("reference_energy", torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64))
        known = torch.ones(MAX_ATOMIC_NUMBER + 1, dtype=torch.bool)
        known[0] = False
        self.register_buffer("known_element", known)
        self.register_buffer("energy_scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("energy_offset", torch.zeros((), dtype=torch.float64))
        self.register_load_state_dict_pre_hook(_supply_offset)
        self.register_load_state_dict_post_hook(_forget_tables)

    def represent(self, batch: Batch, edge_vector: Tensor) -> Readout:
        """Network proper: ``edge_vector`` [n_edges, 3] Å in the order of ``batch.graph(self.cutoff)``.

        Where ``edge_vector`` is a leaf of autograd's graph, only its first derivative is ever asked for, and a model may save the work
        that higher ones need; where it was computed from positions that require a gradient, all orders must be right.
        """
        raise NotImplementedError

    @property
    def feature_widths(self) -> dict[FeatureKind, int]:
        """Channels of each feature the model offers."""
        raise NotImplementedError

    @property
    def num_blocks(self) -> int:
        """Interaction blocks; features of block k, counted from 1, are ``layers[k]`` and ``vector_layers[k]``."""
        raise NotImplementedError

    @property
    def edge_rule(self) -> str:
        """Which edges its edge features belong to, in words that are equal for models with the same edges."""
        return f"all neighbours within {self.cutoff:g} Å"

    @property
    def layer_widths(self) -> dict[str, dict[FeatureKind, int]]:
        """Channels of each feature by layer, see `Features.at`: ``final``, and as far as the model has them ``regular_k`` and ``x_k``.

        Edge features of layers that are costly to hold on to are there only after the layer was named in ``kept_layers``.
        """
        final = self.feature_widths
        widths: dict[str, dict[FeatureKind, int]] = {FINAL: final}
        for number in range(self.num_blocks + 1):
            widths[f"regular_{number}"] = {"node": final["node"]}
            if number and "vector" in final:
                widths[f"regular_{number}"]["vector"] = final["vector"]
        return widths

    @property
    def mixing(self) -> dict[str, tuple[int, int]]:
        """Sets of embeddings of atoms that knowledge mixing may pull together: name → how many, and their channels.

        The first is the default. ``blocks`` are the embeddings after each block, ``embedding_blocks`` those and the one before the first.
        """
        width = self.feature_widths["node"]
        return {"blocks": (self.num_blocks, width), "embedding_blocks": (self.num_blocks + 1, width)}

    def forward(self, batch: Batch, *, forces: bool = True, create_graph: bool | None = None) -> Prediction:
        """Energies, forces and features of a batch.

        Derivatives of the outputs reach the weights. They reach positions too if ``batch.positions`` requires a gradient, to any
        order; otherwise that work is left out.

        Args:
            batch: must hold the neighbour graph of ``self.cutoff``.
            forces: whether to compute forces.
            create_graph: whether conservative forces can be differentiated again; default: while training with grad enabled.

        Raises:
            DataError: if the batch holds an element that the model does not know.
            RuntimeError: under `torch.inference_mode`, where gradients, and so conservative forces, do not exist.
        """
        self.check_elements(batch)
        differentiate = forces and self.force_mode == "conservative"
        if differentiate and torch.is_inference_mode_enabled():
            raise RuntimeError("conservative forces are gradients, which torch.inference_mode forbids; use torch.no_grad instead")
        wants_graph = torch.is_grad_enabled()
        if create_graph is None:
            create_graph = self.training and wants_graph
        with torch.set_grad_enabled(wants_graph or differentiate):
            graph = batch.graph(self.cutoff)
            edge_vector = batch.edge_vectors(graph, batch.positions)
            own = differentiate and not edge_vector.requires_grad
            if own:
                edge_vector = edge_vector.detach().requires_grad_(True)
            readout = self.represent(batch, edge_vector)
            atom_energy = readout.atom_energy * self.energy_scale.to(readout.atom_energy.dtype)
            interaction = segment_reduce(atom_energy, batch.atom_ptr, "sum")
            predicted_forces = readout.forces
            if differentiate:
                (g,) = torch.autograd.grad(interaction.sum(), edge_vector, create_graph=create_graph, allow_unused=True)
                if own and not torch.compiler.is_compiling():
                    # nobody else has this leaf: a later backward pass may leave out what would end here
                    edge_vector.requires_grad_(False)
                predicted_forces = torch.zeros_like(batch.positions) if g is None else _forces_from_edges(g, graph.csr)
            elif readout.forces is not None:
                predicted_forces = readout.forces * self.energy_scale.to(readout.forces.dtype)
            reference = self.reference_energy[batch.atomic_numbers]
            # totals are large and differences small: references are added in float64
            energy = interaction.double() + segment_reduce(reference, batch.atom_ptr, "sum") + self.energy_offset
        if wants_graph:
            return Prediction(energy, predicted_forces if forces else None, atom_energy, readout.features)
        return Prediction(energy.detach(), _detached(predicted_forces) if forces else None, atom_energy.detach(), readout.features.detach())

    def know_elements(self, atomic_numbers: Iterable[int]) -> None:
        """Say which elements the model is made for; atoms of all others are refused.

        Raises:
            ConfigError: if one is not in the model's table of elements.
        """
        table = getattr(self, "embedding", None)
        first, last = (table.first, table.last) if isinstance(table, ElementTable) else (1, MAX_ATOMIC_NUMBER)
        wanted = sorted(atomic_numbers)
        outside = [z for z in wanted if not max(first, 1) <= z <= last]
        if outside:
            raise ConfigError(
                f"the model's table of elements goes from {_symbol(max(first, 1))} to {_symbol(last)}, and "
                f"{', '.join(_symbol(z) for z in outside)} is not in it; take a model or a preset with a longer table"
            )
        self.known_element.fill_(False)
        self.known_element[wanted] = True

    def check_elements(self, batch: Batch) -> None:
        """Raise DataError if an atom's element is not among those the model was made for."""
        if torch.compiler.is_compiling() or (batch.positions.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        numbers = batch.atomic_numbers
        clamped = numbers.clamp(0, MAX_ATOMIC_NUMBER)
        known = self.known_element[clamped] & (clamped == numbers)
        if bool(known.all()):
            return
        atom = int((~known).nonzero()[0])
        structure = int(batch.structure_index[batch.graph_index[atom]])
        elements = ", ".join(_symbol(int(z)) for z in self.known_element.nonzero().flatten())
        first = int(batch.atom_ptr[batch.graph_index[atom]])
        raise DataError(
            f"structure {structure} holds {_symbol(int(numbers[atom]))} (atom {atom - first}), which this model does not know; "
            f"it knows {elements}. Leave the structure out, or train a model on data with this element."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        precise = {name: getattr(self, name) for name in ("reference_energy", "energy_scale", "energy_offset")}
        super()._apply(fn, recurse)
        for name, value in precise.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


def _forces_from_edges(g: Tensor, graph: CSRGraph) -> Tensor:
    """−dE/dx from dE/d(edge vector) [n_edges, 3]: each edge pulls its two ends with opposite forces. [n_atoms, 3]."""
    return edge_to_node(g, CSRGraph(*transpose(*graph.tensors))) - edge_to_node(g, graph)


def block_mixing(layers: Sequence[Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """`Features.mixing` of a model whose blocks each make an embedding of atoms, from ``layers`` with that before the first block."""
    return {"blocks": tuple(layers[1:]), "embedding_blocks": tuple(layers)}


def held(edge: Tensor, layer: str, kept: frozenset[str]) -> Callable[[], Tensor] | None:
    """An entry of `Features.edge_layers`: the tensor if its layer is to be kept, else nothing that holds on to it."""
    return (lambda: edge) if layer in kept else None


def _detached(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()


def _detached_result(compute: Callable[[], Tensor]) -> Tensor:
    return compute().detach()


def _symbol(atomic_number: int) -> str:
    from ase.data import chemical_symbols

    return chemical_symbols[atomic_number] if 0 < atomic_number <= MAX_ATOMIC_NUMBER else f"atomic number {atomic_number}"
