"""The authors' MXMNet, PAMNet and PAMNet-s: constructor arguments and state dict → our models.

Their models embed five classes of atoms, ours any atomic number; ``elements`` says which class is which element. Names are mapped, and
nothing else changes: features come out equal, bonds being given (``Batch.bonds``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastkd.errors import CheckpointError

from .foreign import ForeignModel
from .multiplex import Multiplex
from .mxmnet import MXMNet, MXMNetOptions
from .pamnet import PAMNet, PAMNetOptions

#: The order in which PyTorch Geometric's QM9, and so both references, number the elements: H C N O F.
QM9_ELEMENTS = (1, 6, 7, 8, 9)

_SHARED = (
    (r"rbf_g\.freq$", "global_frequencies"),
    (r"rbf_l\.freq$", "local_frequencies"),
    (r"(?:rbf_g_mlp|mlp_rbf_g)\.", "global_embedding."),
    (r"(?:rbf_l_mlp|mlp_rbf_l)\.", "local_embedding."),
)
_MXMNET_NAMES = (
    *_SHARED,
    (r"sbf_1_mlp\.", "two_hop_embedding."),
    (r"sbf_2_mlp\.", "one_hop_embedding."),
    (r"(global|local)_layers\.(\d+)\.h_mlp\.", r"\1_layers.\2.before."),
    (r"(global|local)_layers\.(\d+)\.res1\.mlp\.", r"\1_layers.\2.update.first.layers."),
    (r"(global|local)_layers\.(\d+)\.res2\.mlp\.", r"\1_layers.\2.update.second.layers."),
    (r"(global|local)_layers\.(\d+)\.res3\.mlp\.", r"\1_layers.\2.update.third.layers."),
    (r"(global|local)_layers\.(\d+)\.mlp\.", r"\1_layers.\2.update.dense."),
    (r"global_layers\.(\d+)\.x_edge_mlp\.0\.", r"global_layers.\1.message.linear."),
    (r"global_layers\.(\d+)\.linear\.", r"global_layers.\1.gate."),
    (r"local_layers\.(\d+)\.mlp_kj\.0\.", r"local_layers.\1.two_hop.linear."),
    (r"local_layers\.(\d+)\.mlp_ji_1\.0\.", r"local_layers.\1.own_first.linear."),
    (r"local_layers\.(\d+)\.mlp_ji_2\.", r"local_layers.\1.own_second."),
    (r"local_layers\.(\d+)\.mlp_jj\.", r"local_layers.\1.one_hop."),
    (r"local_layers\.(\d+)\.mlp_sbf1\.", r"local_layers.\1.two_hop_filter."),
    (r"local_layers\.(\d+)\.mlp_sbf2\.", r"local_layers.\1.one_hop_filter."),
    (r"local_layers\.(\d+)\.lin_rbf1\.", r"local_layers.\1.two_hop_gate."),
    (r"local_layers\.(\d+)\.lin_rbf2\.", r"local_layers.\1.one_hop_gate."),
    (r"local_layers\.(\d+)\.lin_rbf_out\.", r"local_layers.\1.gate."),
    (r"local_layers\.(\d+)\.y_mlp\.", r"local_layers.\1.head."),
    (r"local_layers\.(\d+)\.y_W\.", r"local_layers.\1.energy."),
)
_PAMNET_NAMES = (
    *_SHARED,
    (r"(?:mlp_sbf1|mlp_sbf)\.", "one_hop_embedding."),
    (r"mlp_sbf2\.", "two_hop_embedding."),
    (r"(global|local)_layer\.(\d+)\.mlp_x1\.", r"\1_layers.\2.before."),
    (r"(global|local)_layer\.(\d+)\.mlp_x2\.", r"\1_layers.\2.after."),
    (r"(global|local)_layer\.(\d+)\.res1\.mlp\.", r"\1_layers.\2.first.layers."),
    (r"(global|local)_layer\.(\d+)\.res2\.mlp\.", r"\1_layers.\2.second.layers."),
    (r"(global|local)_layer\.(\d+)\.res3\.mlp\.", r"\1_layers.\2.third.layers."),
    (r"(global|local)_layer\.(\d+)\.mlp_out\.", r"\1_layers.\2.head."),
    (r"(global|local)_layer\.(\d+)\.W_out\.", r"\1_layers.\2.energy."),
    (r"(global|local)_layer\.(\d+)\.W$", r"\1_layers.\2.attention.weight"),
    (r"global_layer\.(\d+)\.mlp_m\.0\.", r"global_layers.\1.message.linear."),
    (r"global_layer\.(\d+)\.W_edge_attr\.", r"global_layers.\1.gate."),
    (r"local_layer\.(\d+)\.mlp_m_ji\.0\.", r"local_layers.\1.own.linear."),
    (r"local_layer\.(\d+)\.mlp_m_(?:kj|jj)\.0\.", r"local_layers.\1.neighbor.linear."),
    (r"local_layer\.(\d+)\.mlp_sbf\.", r"local_layers.\1.path_filter."),
    (r"local_layer\.(\d+)\.lin_rbf\.", r"local_layers.\1.path_gate."),
    (r"local_layer\.(\d+)\.lin_rbf_out\.", r"local_layers.\1.gate."),
)


def load_mxmnet(config: Mapping[str, Any], state: Mapping[str, Tensor], elements: Sequence[int] = QM9_ELEMENTS) -> ForeignModel:
    """The authors' MXMNet.

    Args:
        config: its ``Config`` (``dim``, ``n_layer``, ``cutoff``) and constructor arguments; those that are missing take the defaults.
        state: its state dict, in any floating dtype.
        elements: atomic number of each class of atoms that it embeds.

    Returns:
        The model, which wants bonds in the batch, and no limit on neighbours: the reference's 500 is never reached.

    Raises:
        CheckpointError: if tensors are missing, left over or misshapen.
    """
    options = MXMNetOptions(**_shared_options(config), cutoff=float(config.get("cutoff", 5.0)))
    return _load(MXMNet(options), state, _MXMNET_NAMES, elements)


def load_pamnet(config: Mapping[str, Any], state: Mapping[str, Tensor], elements: Sequence[int] = QM9_ELEMENTS) -> ForeignModel:
    """The authors' PAMNet or PAMNet-s, which are told by their tensors; arguments and errors as `load_mxmnet`.

    Raises:
        CheckpointError: also for models of other data than QM9, whose atoms are no elements.
    """
    dataset = config.get("dataset", "QM9")
    if dataset != "QM9":
        raise CheckpointError(f"PAMNet for {dataset!r} is not supported, only for 'QM9': its inputs are no elements")
    state = {name: value for name, value in state.items() if not name.endswith("init_linear.weight")}  # only used for PDBbind
    options = PAMNetOptions(
        **_shared_options(config),
        cutoff=float(config.get("cutoff_g", 5.0)),
        local_cutoff=float(config.get("cutoff_l", 5.0)),
        simple=any(".mlp_m_jj." in name for name in state),
    )
    return _load(PAMNet(options), state, _PAMNET_NAMES, elements)


def _shared_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": int(config.get("dim", 128)),
        "layers": int(config.get("n_layer", 6)),
        "spherical": int(config.get("num_spherical", 7)),
        "spherical_radial": int(config.get("num_radial", 6)),
        "envelope_exponent": int(config.get("envelope_exponent", 5)),
        "local": "bonds",
    }


def _load(model: Multiplex, state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...], elements: Sequence[int]) -> ForeignModel:
    ours, classes = {}, None
    for name, value in state.items():
        bare = re.sub(r"^(module\.)+", "", name)
        if bare == "embeddings":
            classes = value
        else:
            renamed = _renamed(bare, rules)
            ours[renamed] = value.t() if renamed.endswith("attention.weight") else value
    if classes is None:
        raise CheckpointError("the table of embeddings is missing in the foreign state dict")
    width = model.options.width
    if classes.shape != (len(elements), width):
        raise CheckpointError(
            f"embeddings are {list(classes.shape)}, expected [{len(elements)}, {width}]: one row an element {list(elements)}"
        )
    numbers = torch.tensor(elements)
    table = torch.zeros(model.embedding.weight.shape, dtype=classes.dtype)
    table[numbers] = classes
    model.known_element.zero_()
    model.known_element[numbers] = True
    own = model.state_dict()
    kept = {name: own[name] for name in ("reference_energy", "known_element", "energy_scale")}
    model.to(classes.dtype)
    try:
        model.load_state_dict({**ours, "embedding.weight": table, **kept})
    except RuntimeError as error:
        raise CheckpointError(f"foreign state dict does not fit its config: {error}") from error
    return ForeignModel(model.eval(), max_neighbors=0, symmetric=False, maps={})


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    # the references nest (linear, activation) in sequences, ours are flat
    flat = re.sub(r"\.(\d+)\.0\.(weight|bias)$", lambda match: f".{2 * int(match[1])}.{match[2]}", name)
    for pattern, replacement in rules:
        new, count = re.subn("^" + pattern, replacement, flat)
        if count:
            return new
    raise CheckpointError(f"unexpected tensor {name!r} in the foreign state dict")
