"""SchNetPack's PaiNN (version 2): state dict → our model, in eV and Å.

SchNetPack makes the filters of all blocks in one layer, its edges point from destination to source, its update block orders gates
(scalar, vector, dot) and mixes vectors (V, W) where ours has (scalar, dot, vector) and (W, V). Rows of the weights are moved and negated accordingly, so
that scalar and vector features come out equal. What the network computes is in the unit it was trained in: the factor to eV becomes the
energy scale, mean and single-atom references the model's reference energies.

Example:
    >>> state = read_state("best_model.npz")  # doctest: +SKIP
    >>> model = load_painn(state, energy_unit="kcal/mol", elements=["H", "C", "O"]).model  # doctest: +SKIP
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastkd.data.units import energy_unit as energy_unit_in_ev
from fastkd.data.units import length_unit as length_unit_in_angstrom
from fastkd.errors import CheckpointError

from .foreign import ForeignModel, fill, listed, renamed
from .painn import PaiNN, PaiNNOptions

_NAMES = (
    (r"interactions\.(\d+)\.interatomic_context_net\.0\.", r"messages.\1.context.0."),
    (r"interactions\.(\d+)\.interatomic_context_net\.1\.", r"messages.\1.context.2."),
    (r"filters\.(\d+)\.", r"messages.\1.filter."),
    (r"mixing\.(\d+)\.mu_channel_mix\.", r"updates.\1.vector_mix."),
    (r"mixing\.(\d+)\.intraatomic_context_net\.0\.", r"updates.\1.context.0."),
    (r"mixing\.(\d+)\.intraatomic_context_net\.1\.", r"updates.\1.context.2."),
    (r"outnet\.0\.", r"energy_head.0."),
    (r"outnet\.1\.", r"energy_head.2."),
)
#: A radial basis in float32 is as far as this from one in float64, relative to the cutoff.
_ROUNDING = 1e-6


def is_painn(state: Mapping[str, Any]) -> bool:
    """Whether a state dict is that of a SchNetPack PaiNN with an energy head."""
    return any(name.endswith("representation.mixing.0.mu_channel_mix.weight") for name in state)


def load_painn(
    state: Mapping[str, Tensor],
    *,
    energy_unit: str,
    length_unit: str = "Å",
    elements: Iterable[str] = (),
    extensive_mean: bool = True,
    epsilon: float = 1e-8,
) -> ForeignModel:
    """SchNetPack's PaiNN with an `Atomwise` energy head of two layers and SiLU.

    A state dict does not say in which units and on which elements a model was trained, nor what its offsets do: say so here.

    Args:
        state: of the whole model (`NeuralNetworkPotential`), in any floating dtype; names may begin with ``model.``.
        energy_unit: of the network's energies and offsets, such as kcal/mol or eV.
        length_unit: of the positions and the cutoff it was trained with.
        elements: symbols of the elements it was trained on; others are refused. Empty: all of its table.
        extensive_mean: `AddOffsets.is_extensive`: the mean is per atom; otherwise per structure.
        epsilon: of `PaiNN`, under the square root of vector norms.

    Raises:
        CheckpointError: if it is a variant that is not supported, or tensors are missing, left over or misshapen.
        DataError: for an unknown unit.
    """
    ev, angstrom = energy_unit_in_ev(energy_unit, "energy_unit"), length_unit_in_angstrom(length_unit, "length_unit")
    state = {re.sub(r"^model\.", "", name): value for name, value in state.items()}
    network = {n.removeprefix("representation."): v for n, v in state.items() if n.startswith("representation.")}
    embedding, first_filter = network.pop("embedding.weight", None), network.pop("filter_net.weight", None)
    layers = len({name.split(".")[1] for name in network if name.startswith("interactions.")})
    if embedding is None or first_filter is None or not layers:
        raise CheckpointError(
            "this is no state dict of a SchNetPack PaiNN: representation.embedding.weight, representation.filter_net.weight or "
            "representation.interactions.* is missing; give the state dict of the whole model, as saved from NeuralNetworkPotential"
        )
    width = embedding.shape[1]
    cutoff = _cutoff(network) * angstrom
    basis, factor = _basis(network, cutoff, angstrom)
    shared_filters = layers > 1 and first_filter.shape[0] == 3 * width
    network |= _filters(first_filter * factor, network.pop("filter_net.bias", None), layers, shared=shared_filters)
    network |= _head(state, width)
    ours = _reordered(renamed(network, _NAMES))
    options = PaiNNOptions(
        width=width,
        layers=layers,
        radial=first_filter.shape[1],
        cutoff=cutoff,
        basis=basis,
        envelope="cosine",
        norm_epsilon=epsilon,
        shared_filters=shared_filters,
        shared_blocks=_blocks_are_equal(ours, layers),
        last_element=embedding.shape[0] - 1,
    )
    model = PaiNN(options)
    fill(model, ours, embedding, 0, _NAMES)
    _set_energies(model, state, ev, extensive_mean=extensive_mean)
    if numbers := _atomic_numbers(elements):
        model.know_elements(numbers)
    return ForeignModel(model, max_neighbors=0, symmetric=False, maps={}, notes=_notes(energy_unit, length_unit, bool(numbers)))


def _notes(energy_unit: str, length_unit: str, elements_given: bool) -> tuple[str, ...]:
    notes = [f"trained in {energy_unit} and {length_unit}, as you say: the file does not; predictions are in eV and Å"]
    if not elements_given:
        notes.append("the file does not say which elements it was trained on; all of its table are let through (see --elements)")
    return tuple(notes)


def _cutoff(network: dict[str, Tensor]) -> float:
    cutoff = network.pop("cutoff_fn.cutoff", None)
    network.pop("cutoff", None)  # the representation's own name for the same number
    others = [name for name in network if name.startswith("cutoff_fn.")]
    if cutoff is None or others:
        raise CheckpointError("only CosineCutoff is supported as cutoff_fn" + (f"; this one has {listed(others)}" if others else ""))
    return round(float(cutoff.reshape(())), 6)


def _basis(network: dict[str, Tensor], cutoff: float, angstrom: float) -> tuple[Any, float]:
    """Kind of the radial basis, and what the filter's weights are multiplied with, as ours may be normalised otherwise."""
    parts = {name: network.pop(name).double() for name in list(network) if name.startswith("radial_basis.")}
    names = {name.removeprefix("radial_basis.") for name in parts}
    if names == {"offsets", "widths"}:
        offsets, widths = parts["radial_basis.offsets"] * angstrom, parts["radial_basis.widths"] * angstrom
        even = torch.linspace(0, cutoff, offsets.shape[0], dtype=torch.float64)
        spacing = torch.full_like(even, float(even[1])) if len(even) > 1 else widths
        if max((offsets - even).abs().max(), (widths - spacing).abs().max()) < _ROUNDING * cutoff:
            return "gaussian", 1.0
        raise CheckpointError(
            "only GaussianRBF with centres from 0 to the cutoff, and their spacing as width, is supported; this one has others"
        )
    if names == {"freqs"}:
        frequencies = parts["radial_basis.freqs"] / angstrom
        even = torch.arange(1, frequencies.shape[0] + 1, dtype=torch.float64) * math.pi / cutoff
        if (frequencies - even).abs().max() < _ROUNDING * even[-1]:
            return "bessel", angstrom / math.sqrt(2 / cutoff)
        raise CheckpointError("BesselRBF and cutoff_fn have different cutoffs; that is not supported")
    raise CheckpointError(
        f"only GaussianRBF and BesselRBF are supported as radial_basis; this one has {listed(sorted(parts)) or 'no tensors'}"
    )


def _filters(weight: Tensor, bias: Tensor | None, layers: int, *, shared: bool) -> dict[str, Tensor]:
    """One filter per block, with its direction part negated."""
    if bias is None:
        raise CheckpointError("representation.filter_net.bias is missing in the foreign state dict")
    parts: dict[str, Tensor] = {}
    for kind, value in (("weight", weight), ("bias", bias)):
        for number in range(layers):
            scalar, direction, vector = (value if shared else value.chunk(layers)[number]).chunk(3)
            parts[f"filters.{number}.{kind}"] = torch.cat([scalar, -direction, vector])
    return parts


def _head(state: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    heads = {name: value for name, value in state.items() if name.startswith("output_modules.")}
    numbers = {name.split(".")[1] for name in heads}
    if len(numbers) != 1:
        raise CheckpointError(
            f"{len(numbers)} output modules with weights; exactly one energy head (Atomwise) is supported: {listed(sorted(heads))}"
        )
    head = {re.sub(r"^output_modules\.\d+\.", "", name): value for name, value in heads.items()}
    first, last = head.get("outnet.0.weight"), head.get("outnet.1.weight")
    half = max(1, width // 2)
    if first is None or last is None or first.shape != (half, width) or last.shape != (1, half):
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in head.items())
        raise CheckpointError(f"only an Atomwise head of two layers, {width} → {half} → 1, is supported; this one has {shapes}")
    return head


def _reordered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The update blocks' gates and vectors in our order."""
    for name, value in state.items():
        if re.fullmatch(r"updates\.\d+\.context\.2\.\w+", name):
            scalar, vector, dot = value.chunk(3)
            state[name] = torch.cat([scalar, dot, vector])
        elif re.fullmatch(r"updates\.\d+\.vector_mix\.weight", name):
            state[name] = torch.cat(value.chunk(2)[::-1])
    return state


def _blocks_are_equal(state: Mapping[str, Tensor], layers: int) -> bool:
    """Whether `shared_interactions` was set: trained apart, no two blocks would be equal to the last bit."""
    names = [name for name in state if re.match(r"(messages\.0\.context|updates\.0)\.", name)]
    copies = [(state[name], state.get(name.replace(".0.", f".{number}.", 1))) for name in names for number in range(1, layers)]
    return layers > 1 and bool(names) and all(copy is not None and torch.equal(first, copy) for first, copy in copies)


def _set_energies(model: PaiNN, state: Mapping[str, Tensor], ev: float, *, extensive_mean: bool) -> None:
    """`AddOffsets` of the file, if any: mean, and single-atom references."""
    offsets = {name: value.double() for name, value in state.items() if name.startswith("postprocessors.")}
    unknown = [name for name in offsets if not re.fullmatch(r"postprocessors\.\d+\.(mean|atomref)", name)]
    if unknown or len({name.split(".")[1] for name in offsets}) > 1:
        raise CheckpointError(
            f"only one AddOffsets is supported as postprocessor with numbers of its own; this model has {listed(sorted(offsets))}"
        )
    model.energy_scale.fill_(ev)
    for name, value in offsets.items():
        if name.endswith("atomref"):
            rows = min(value.numel(), model.embedding.last + 1)
            model.reference_energy[:rows] += value.flatten()[:rows] * ev
        elif extensive_mean:
            model.reference_energy[1 : model.embedding.last + 1] += value.reshape(()) * ev
        else:
            model.energy_offset += value.reshape(()) * ev
    model.reference_energy[0] = 0


def _atomic_numbers(symbols: Iterable[str]) -> list[int]:
    from ase.data import atomic_numbers

    symbols = list(symbols)
    unknown = [symbol for symbol in symbols if symbol not in atomic_numbers or symbol == "X"]
    if unknown:
        raise CheckpointError(f"--elements: {listed(unknown)}: no such element; write symbols such as H C O")
    return [int(atomic_numbers[symbol]) for symbol in symbols]
