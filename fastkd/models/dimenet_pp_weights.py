"""DimeNet++ weights of OCP, PyTorch Geometric and the authors' TensorFlow checkpoints → our model.

Example:
    >>> model = load_dimenet_pp_tensorflow("dimenet/pretrained/dimenet_pp/U0/ckpt")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastkd.errors import CheckpointError

from .dimenet_pp import DimeNetPP, DimeNetPPOptions
from .foreign import ForeignModel, fill, renamed, without_wrapper
from .ocp import DEFAULT_MAX_NEIGHBORS
from .tensorflow_bundle import TensorBundle

#: H, C, N, O, F: what the authors' checkpoints were trained on
QM9_ELEMENTS = (1, 6, 7, 8, 9)

#: PyTorch Geometric's names, which are OCP's
_NAMES = (
    (r"rbf\.freq", r"frequencies"),
    (r"emb\.lin_rbf\.", r"embed.radial.0."),
    (r"emb\.lin\.", r"embed.combine."),
    (r"output_blocks\.(\d+)\.lin_rbf\.", r"outputs.\1.gate."),
    (r"output_blocks\.(\d+)\.lin_up\.", r"outputs.\1.up."),
    (r"output_blocks\.(\d+)\.lins\.(\d+)\.", r"outputs.\1.dense.\2.0."),
    (r"output_blocks\.(\d+)\.lin\.", r"outputs.\1.last."),
    (r"interaction_blocks\.(\d+)\.lin_rbf1\.", r"interactions.\1.radial.0."),
    (r"interaction_blocks\.(\d+)\.lin_rbf2\.", r"interactions.\1.radial.1."),
    (r"interaction_blocks\.(\d+)\.lin_sbf1\.", r"interactions.\1.spherical.0."),
    (r"interaction_blocks\.(\d+)\.lin_sbf2\.", r"interactions.\1.spherical.1."),
    (r"interaction_blocks\.(\d+)\.lin_kj\.", r"interactions.\1.neighbor.0."),
    (r"interaction_blocks\.(\d+)\.lin_ji\.", r"interactions.\1.direct.0."),
    (r"interaction_blocks\.(\d+)\.lin_down\.", r"interactions.\1.down.0."),
    (r"interaction_blocks\.(\d+)\.lin_up\.", r"interactions.\1.up.0."),
    (r"interaction_blocks\.(\d+)\.lin\.", r"interactions.\1.skip.0."),
    (r"interaction_blocks\.(\d+)\.layers_before_skip\.(\d+)\.lin1\.", r"interactions.\1.before.\2.dense.0.0."),
    (r"interaction_blocks\.(\d+)\.layers_before_skip\.(\d+)\.lin2\.", r"interactions.\1.before.\2.dense.1.0."),
    (r"interaction_blocks\.(\d+)\.layers_after_skip\.(\d+)\.lin1\.", r"interactions.\1.after.\2.dense.0.0."),
    (r"interaction_blocks\.(\d+)\.layers_after_skip\.(\d+)\.lin2\.", r"interactions.\1.after.\2.dense.1.0."),
)
#: the authors' names → PyTorch Geometric's; a kernel is a transposed weight
_TENSORFLOW_NAMES = (
    (r"rbf_layer/frequencies", r"rbf.freq"),
    (r"emb_block/embeddings", r"emb.emb.weight"),
    (r"emb_block/dense_rbf/", r"emb.lin_rbf."),
    (r"emb_block/dense/", r"emb.lin."),
    (r"output_blocks/(\d+)/dense_rbf/", r"output_blocks.\1.lin_rbf."),
    (r"output_blocks/(\d+)/up_projection/", r"output_blocks.\1.lin_up."),
    (r"output_blocks/(\d+)/dense_layers/(\d+)/", r"output_blocks.\1.lins.\2."),
    (r"output_blocks/(\d+)/dense_final/", r"output_blocks.\1.lin."),
    (r"int_blocks/(\d+)/dense_(rbf1|rbf2|sbf1|sbf2|kj|ji)/", r"interaction_blocks.\1.lin_\2."),
    (r"int_blocks/(\d+)/(down|up)_projection/", r"interaction_blocks.\1.lin_\2."),
    (r"int_blocks/(\d+)/final_before_skip/", r"interaction_blocks.\1.lin."),
    (r"int_blocks/(\d+)/(layers_before_skip|layers_after_skip)/(\d+)/dense_(\d)/", r"interaction_blocks.\1.\2.\3.lin\4."),
)
_TENSORFLOW_PARTS = ("rbf_layer/", "emb_block/", "output_blocks/", "int_blocks/")
_TENSORFLOW_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
#: argument of the constructors → our option
_ARGUMENTS = {
    "hidden_channels": "width",
    "num_blocks": "layers",
    "int_emb_size": "triplet_width",
    "basis_emb_size": "basis_width",
    "out_emb_channels": "output_width",
    "num_spherical": "degrees",
    "num_radial": "radial",
    "cutoff": "cutoff",
    "envelope_exponent": "envelope_exponent",
    "num_before_skip": "before_skip",
    "num_after_skip": "after_skip",
    "num_output_layers": "output_layers",
}


def load_dimenet_pp_ocp(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> ForeignModel:
    """OCP's DimeNet++, whose forces leave angles out (see `DimeNetPPOptions.angle_forces`).

    Args:
        config: its constructor arguments; those that are missing take OCP's defaults.
        state: its state dict, in any floating dtype.

    Raises:
        CheckpointError: if tensors are missing, left over or misshapen.
    """
    model = _load({"cutoff": 10.0, **config}, state, output_bias=True, output_init="zeros", angle_forces=False)
    # the reference takes no other limit, whatever its config says
    return ForeignModel(model, DEFAULT_MAX_NEIGHBORS, symmetric=False, maps={})


def load_dimenet_pp(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> DimeNetPP:
    """PyTorch Geometric's DimeNet++ with one output. Arguments and errors as `load_dimenet_pp_ocp`.

    Its limit of 32 neighbours per atom has no counterpart: ours has all neighbours within the cutoff, as the authors' has.
    """
    return _load(config, state)


def load_dimenet_pp_tensorflow(
    path: str | Path, *, cutoff: float = 5.0, envelope_exponent: int = 5, elements: Sequence[int] = QM9_ELEMENTS
) -> DimeNetPP:
    """DimeNet++ as its authors published it for QM9, from a TensorFlow 2 checkpoint; neither TensorFlow nor its libraries are needed.

    The sizes follow from the tensors. What was trained on is the caller's to know: the authors' energies are in eV, and of these
    properties the prediction is the sum over atoms (``atom_energy``, and ``energy`` of the graph).

    Args:
        path: prefix of the checkpoint (``folder/ckpt``), its ``.index`` file, or a folder with one checkpoint.
        cutoff: Å; a checkpoint does not say it. The default is the authors'.
        envelope_exponent: likewise.
        elements: atomic numbers it was trained on; others are refused.

    Raises:
        CheckpointError: if files are missing, truncated, damaged, or hold no DimeNet++ with one output.
    """
    bundle = TensorBundle(path)
    state = {}
    for name in bundle.entries:
        # optimizers keep their averages under the names of variables
        if name.startswith(_TENSORFLOW_PARTS) and ".OPTIMIZER_SLOT" not in name:
            bare = name.removesuffix(_TENSORFLOW_SUFFIX)
            tensor = torch.from_numpy(bundle.read(name))
            if bare.endswith("/kernel"):
                bare, tensor = bare.removesuffix("kernel") + "weight", tensor.T.contiguous()
            state[bare] = tensor
    state = renamed(state, _TENSORFLOW_NAMES)
    config = {"cutoff": cutoff, "envelope_exponent": envelope_exponent, **_sizes(state, bundle.index)}
    model = _load(config, state)
    model.known_element.zero_()
    model.known_element[list(elements)] = True
    return model


def _sizes(state: Mapping[str, Tensor], file: Path) -> dict[str, int]:
    """Constructor arguments that follow from the shapes of a state dict."""
    try:
        radial, width = state["emb.lin_rbf.weight"].shape[::-1]
        first = "interaction_blocks.0."
        basis, harmonics = state[first + "lin_sbf1.weight"].shape
        sizes = {
            "hidden_channels": width,
            "num_radial": radial,
            "basis_emb_size": basis,
            "num_spherical": harmonics // radial,
            "int_emb_size": state[first + "lin_sbf2.weight"].shape[0],
            "out_emb_channels": state["output_blocks.0.lin_up.weight"].shape[0],
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file} is no checkpoint of a DimeNet++: its tensors lack {error}") from error
    lists = {
        "num_blocks": r"interaction_blocks\.(\d+)\.",
        "num_before_skip": r"interaction_blocks\.0\.layers_before_skip\.(\d+)\.",
        "num_after_skip": r"interaction_blocks\.0\.layers_after_skip\.(\d+)\.",
        "num_output_layers": r"output_blocks\.0\.lins\.(\d+)\.",
    }
    return sizes | {name: _count(state, pattern) for name, pattern in lists.items()}


def _count(names: Iterable[str], pattern: str) -> int:
    return len({found.group(1) for found in (re.match(pattern, name) for name in names) if found})


def _load(config: Mapping[str, Any], state: Mapping[str, Tensor], **fixed: Any) -> DimeNetPP:
    state = without_wrapper(state)
    given = {ours: config[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in config}
    model = DimeNetPP(DimeNetPPOptions(**given, **fixed, rounded_basis=True))
    embedding = state.pop("emb.emb.weight", None)
    fill(model, renamed(state, _NAMES), embedding, first_element=0)
    return model


def dimenet_pp_name(name: str) -> str:
    """Our name of a parameter of PyTorch Geometric's DimeNet++."""
    if name == "emb.emb.weight":
        return "embedding.weight"
    return next(iter(renamed({name: Tensor()}, _NAMES)))
