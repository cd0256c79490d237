"""GemNet-OC of the Open Catalyst Project: constructor arguments and state dict → our model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fastkd.errors import CheckpointError

from ..foreign import ForeignModel, listed, without_wrapper
from .model import GemNetOC
from .options import GemNetOCOptions
from .scales import scale_name

_SIZES = {
    "width": "emb_size_atom",
    "edge_width": "emb_size_edge",
    "layers": "num_blocks",
    "radial": "num_radial",
    "spherical": "num_spherical",
    "triplet_in": "emb_size_trip_in",
    "triplet_out": "emb_size_trip_out",
    "quad_in": "emb_size_quad_in",
    "quad_out": "emb_size_quad_out",
    "pair_in": "emb_size_aint_in",
    "pair_out": "emb_size_aint_out",
    "radial_width": "emb_size_rbf",
    "circular_width": "emb_size_cbf",
    "spherical_width": "emb_size_sbf",
    "before_skip": "num_before_skip",
    "after_skip": "num_after_skip",
    "concat": "num_concat",
    "atom_update": "num_atom",
    "after_atom": "num_output_afteratom",
}
_SIZES_WITH_DEFAULTS = {
    "atom_layers": ("num_atom_emb_layers", 0),
    "global_layers": ("num_global_out_layers", 2),
    "elements": ("num_elements", 83),
    "neighbors": ("max_neighbors", 50),
}
_SWITCHES = {
    "quadruplets": "quad_interaction",
    "atom_edge": "atom_edge_interaction",
    "edge_atom": "edge_atom_interaction",
    "atom_atom": "atom_interaction",
}
_BASES = {"gaussian": "gaussian", "spherical_bessel": "bessel"}
#: arguments that the loader reads itself
_READ = (
    *("regress_forces", "direct_forces", "forces_coupled", "extensive", "cutoff", "cutoff_qint", "cutoff_aeaint", "cutoff_aint"),
    *("max_neighbors_qint", "max_neighbors_aeaint", "max_neighbors_aint", "enforce_max_neighbors_strictly", "qint_tags"),
    *("rbf", "rbf_spherical", "envelope", "cbf", "sbf", "output_init", "activation", "scale_basis", "num_targets", "heads"),
)
#: arguments that predictions do not hang on: who makes the graph, where scale factors lie, what guards half precision
_WITHOUT_EFFECT = ("use_pbc", "use_pbc_single", "otf_graph", "scale_file", "scale_backprop_forces", "num_atoms", "bond_feat_dim")
#: arguments of the reference's heads in models of a backbone and heads
_OF_HEADS = ("num_global_out_layers", "output_init")
#: tensors that only direct forces need
_FORCE_HEAD = r"out_mlp_F\..*|out_forces\..*|out_blocks\.\d+\.(seq_forces|dense_rbf_F|scale_rbf_F)\..*"

_DENSE, _RESIDUAL = r"linear\.weight", r"dense_mlp\.([01])\.linear\.weight"
_HALVES = ("first", "second")
_INTERACTIONS = (
    ("trip_interaction", "edge_to_edge"),
    ("atom_edge_interaction", "atom_to_edge"),
    ("edge_atom_interaction", "edge_to_atom"),
    ("quad_interaction", "quadruplets"),
    ("atom_interaction", "atom_to_atom"),
)
_PARTS = (
    (r"dense_(?:ba|db)", "dense"),
    (r"mlp_rbf", "radial"),
    (r"mlp_cbf\.bilinear", "bilinear"),
    (r"mlp_sbf\.bilinear", "bilinear"),
    (r"bilinear", "bilinear"),
    (r"mlp_cbf", "circular"),
    (r"down_projection", "down"),
    (r"up_projection(?:_ca)?", "up"),
    (r"up_projection_ac", "up_reverse"),
)
_SHARED = {
    "mlp_rbf_h": "atom_update",
    "mlp_rbf_out": "output",
    "mlp_rbf_tint": "triplet_radial",
    "mlp_cbf_tint": "triplet_circular",
    "mlp_rbf_aeint": "atom_to_edge_radial",
    "mlp_cbf_aeint": "atom_to_edge_circular",
    "mlp_rbf_eaint": "edge_to_atom_radial",
    "mlp_cbf_eaint": "edge_to_atom_circular",
    "mlp_rbf_aint": "atoms_radial",
    "mlp_rbf_qint": "quad_radial",
    "mlp_cbf_qint": "quad_circular",
    "mlp_sbf_qint": "quad_spherical",
}
#: trained frequencies; the reference lists one module under several names
_FREQUENCIES = {
    "radial_basis": "main",
    "cbf_basis_tint.radial_basis": "main_angle",
    "cbf_basis_aeint.radial_basis": "main_angle",
    "sbf_basis_qint.radial_basis": "main_angle",
    "cbf_basis_qint.radial_basis": "middle_angle",
    "radial_basis_aeaint": "mixed",
    "cbf_basis_eaint.radial_basis": "mixed_angle",
    "radial_basis_aint": "atoms",
}


def load_gemnet_oc(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> ForeignModel:
    """OCP's GemNet-OC.

    Args:
        config: its constructor arguments; those that are missing take the reference's defaults.
        state: its state dict, in any floating dtype, with or without scale factors.

    Raises:
        CheckpointError: if an argument asks for a variant that is not supported, or tensors are missing, left over or misshapen.
    """
    config, notes = _with_heads(config), _ignored(config)
    options = options_of(config)
    state = without_wrapper(state)
    unused = config.get("direct_forces") and options.forces != "direct"
    if unused:
        state = {name: value for name, value in state.items() if not re.fullmatch(_FORCE_HEAD, name)}
        notes.append("its head for forces was never trained and is left out: forces are −dE/dx")
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(".rbf.offset"):
            _check_offsets(name, value)
        else:
            new = parameter_name(same_parameter(name))
            # unfitted factors are zero there
            ours[new] = torch.where(value == 0, torch.ones_like(value), value).reshape(()) if new.endswith(".factor") else value
    if not ours:
        raise CheckpointError("the foreign state dict holds no tensors")
    model = GemNetOC(options)
    # some of the reference's constants are float32 whatever the rest is
    model.to(reduce(torch.promote_types, (value.dtype for value in ours.values())))
    own = model.state_dict()
    kept = {key: value for key, value in own.items() if "." not in key or (key.endswith(".factor") and key not in ours)}
    lists = (("missing", own.keys() - kept.keys() - ours.keys()), ("unexpected", ours.keys() - own.keys()))
    problems = [f"{len(names)} {what}: {listed(sorted(names))}" for what, names in lists if names]
    if problems:
        raise CheckpointError(f"foreign state dict does not fit its config; tensors (by our names) {'; '.join(problems)}")
    try:
        model.load_state_dict({**kept, **ours})
    except RuntimeError as error:
        raise CheckpointError(f"foreign state dict does not fit its config: {error}") from error
    limit = options.atom_neighbors if options.atom_atom else 0
    return ForeignModel(model.eval(), limit, symmetric=False, maps={}, notes=tuple(notes), has_forces=not unused)


def _with_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a model of a backbone and heads as those of a whole model; others as they are."""
    merged, heads = dict(config), config.get("heads")
    if heads is None:
        return merged
    modules = [str(head.get("module", "")).rsplit(".", 1)[-1] for head in heads.values()]
    foreign = [name for name in modules if not re.fullmatch(r"gemnet_?oc_?(energy_?and_?grad_?)?force_?head", name, re.IGNORECASE)]
    if foreign:
        raise CheckpointError(f"OCP GemNet-OC with heads of {listed(foreign)} is not supported, only heads for energies and forces")
    for key in _OF_HEADS:
        values = [head[key] for head in heads.values() if key in head]
        if any(value != values[0] for value in values):
            raise CheckpointError(f"OCP GemNet-OC with heads of different {key} ({', '.join(map(str, values))}) is not supported")
        if values:
            merged[key] = values[0]
    merged["regress_forces"] = config.get("regress_forces", True) and (
        not config.get("direct_forces", False) or any("grad" not in name.lower() for name in modules)
    )
    return merged


def _ignored(config: Mapping[str, Any]) -> list[str]:
    known = {*_SIZES.values(), *(name for name, _ in _SIZES_WITH_DEFAULTS.values()), *_SWITCHES.values(), *_READ, *_WITHOUT_EFFECT}
    unknown = sorted(set(config) - known)
    return [f"config has {listed(unknown)}, which the reference's GemNet-OC does not know and ignores, and so do we"] if unknown else []


def same_parameter(name: str) -> str:
    """The first of the names under which the reference lists one and the same parameter."""
    if match := re.fullmatch(r"(.*)\.rbf\.frequencies", name):
        shared = _FREQUENCIES.get(match[1])
        return next((f"{first}.rbf.frequencies" for first, ours in _FREQUENCIES.items() if ours == shared), name)
    return name.replace(".seq_energy_pre.", ".layers.")


def options_of(config: Mapping[str, Any]) -> GemNetOCOptions:
    """Our options from the reference's constructor arguments.

    Raises:
        CheckpointError: if an argument is missing, or asks for a variant that is not supported.
    """
    missing = sorted(theirs for theirs in _SIZES.values() if config.get(theirs) is None)
    if missing:
        raise CheckpointError(f"OCP GemNet-OC needs {missing[0]!r} in its config")
    if int(config.get("num_targets") or 1) != 1:
        raise CheckpointError(f"OCP GemNet-OC with num_targets={config['num_targets']} is not supported, only with one: the energy")
    if config.get("scale_basis"):
        raise CheckpointError("OCP GemNet-OC with scale_basis=True is not supported")
    if str(config.get("activation", "silu")).lower() not in ("silu", "swish"):
        raise CheckpointError(f"OCP GemNet-OC with activation {config['activation']!r} is not supported, only 'silu'")
    basis, beside = config.get("rbf") or {"name": "gaussian"}, config.get("rbf_spherical")
    envelope = dict(config.get("envelope") or {"name": "polynomial", "exponent": 5})
    angular = _known(config, "sbf", ("legendre_outer", "spherical_harmonics"), "spherical_harmonics")
    _known(config, "cbf", ("spherical_harmonics",), "spherical_harmonics")
    envelope_name = _known(config, "envelope", ("polynomial", "exponential"), "polynomial")
    regress = config.get("regress_forces", True)
    initial = str(config.get("output_init", "HeOrthogonal")).lower()
    sizes: dict[str, Any] = {ours: int(config[theirs]) for ours, theirs in _SIZES.items()}
    sizes |= {ours: int(config.get(theirs, default)) for ours, (theirs, default) in _SIZES_WITH_DEFAULTS.items()}
    sizes |= {ours: bool(config.get(theirs, False)) for ours, theirs in _SWITCHES.items()}
    limit = sizes["neighbors"]
    cutoff = float(config.get("cutoff", 6.0))
    quads, mixed = sizes["quadruplets"], sizes["atom_edge"] or sizes["edge_atom"]
    quad_limit = _limit(config, "max_neighbors_qint", limit) if quads else limit
    mixed_limit = _limit(config, "max_neighbors_aeaint", limit) if mixed else limit
    largest = max(limit, quad_limit, mixed_limit)
    try:
        return GemNetOCOptions(
            **sizes,
            forces="direct" if regress and config.get("direct_forces", False) else "conservative",
            coupled_forces=bool(config.get("forces_coupled", False)),
            readout="sum" if config.get("extensive", True) else "mean",
            cutoff=cutoff,
            quad_cutoff=_cutoff(config, "cutoff_qint"),
            atom_edge_cutoff=_cutoff(config, "cutoff_aeaint"),
            atom_cutoff=_cutoff(config, "cutoff_aint"),
            quad_neighbors=quad_limit,
            atom_edge_neighbors=mixed_limit,
            atom_neighbors=_limit(config, "max_neighbors_aint", largest),
            strict_neighbors=bool(config.get("enforce_max_neighbors_strictly", True)),
            quad_tags=tuple(config.get("qint_tags") or (0, 1, 2)),
            basis=_basis(basis),  # type: ignore[arg-type]
            angle_basis=_basis(beside or basis),  # type: ignore[arg-type]
            envelope=envelope_name,  # type: ignore[arg-type]
            envelope_exponent=int(envelope.get("exponent", 5)),
            angular=angular,  # type: ignore[arg-type]
            output_init="zeros" if initial == "zeros" else "he_orthogonal",
        )
    except ValueError as error:
        raise CheckpointError(f"config of OCP GemNet-OC makes no model: {error}") from error


def parameter_name(name: str) -> str:
    """Our name of a parameter of the reference.

    Raises:
        CheckpointError: if there is none.
    """
    renamed = _shared(name) or _head(name) or scale_name(name)
    if renamed is None and (match := re.fullmatch(r"(int|out)_blocks\.(\d+)\.(.*)", name)):
        kind, number, rest = match.groups()
        inside = _interaction(rest) if kind == "int" else _output(rest)
        renamed = inside and f"{'blocks' if kind == 'int' else 'outputs'}.{number}.{inside}"
    if renamed is None:
        raise CheckpointError(f"unexpected tensor {name!r} in the foreign state dict")
    return renamed


def _shared(name: str) -> str | None:
    if match := re.fullmatch(r"(mlp_[a-z]+_[a-z]+)\.(?:linear\.)?weight", name):
        ours = _SHARED.get(match[1])
        return ours and f"bases.{ours}.weight"
    if match := re.fullmatch(r"(.*)\.rbf\.frequencies", name):
        ours = _FREQUENCIES.get(match[1])
        return ours and f"bases.{ours}.frequencies"
    return None


def _head(name: str) -> str | None:
    fixed = {
        "atom_emb.embeddings.weight": "embedding.weight",
        "edge_emb.dense.linear.weight": "edge_embedding.dense.weight",
        "out_energy.linear.weight": "energy_head.weight",
        "out_forces.linear.weight": "force_head.weight",
    }
    if name in fixed:
        return fixed[name]
    if match := re.fullmatch(rf"out_mlp_([EF])\.(\d+)\.(?:{_DENSE}|{_RESIDUAL})", name):
        mlp = "energy_mlp" if match[1] == "E" else "force_mlp"
        return f"{mlp}.0.weight" if match[3] is None else f"{mlp}.1.{int(match[2]) - 1}.{_HALVES[int(match[3])]}.weight"
    return None


def _interaction(name: str) -> str | None:
    """Within an interaction block."""
    if match := re.fullmatch(rf"(dense_ca|concat_layer\.dense)\.{_DENSE}", name):
        return "skip.weight" if match[1] == "dense_ca" else "concat.dense.weight"
    stacks = {
        "layers_before_skip": "before_skip",
        "layers_after_skip": "after_skip",
        "atom_emb_layers": "atom_layers",
        "residual_m": "after_concat",
    }
    if match := re.fullmatch(rf"({'|'.join(stacks)})\.(\d+)\.{_RESIDUAL}", name):
        return f"{stacks[match[1]]}.{match[2]}.{_HALVES[int(match[3])]}.weight"
    if name.startswith("atom_update."):
        inside = _update(name.removeprefix("atom_update."))
        return inside and f"atom_update.{inside}"
    for theirs, ours in _INTERACTIONS:
        for part, new in _PARTS:
            if re.fullmatch(rf"{theirs}\.{part}\.{_DENSE}", name):
                return f"{ours}.{new}.weight"
    return None


def _output(name: str) -> str | None:
    """Within an output block."""
    if re.fullmatch(rf"dense_rbf_F\.{_DENSE}", name):
        return "edge_gate.weight"
    if match := re.fullmatch(rf"seq_(energy2|forces)\.(\d+)\.{_RESIDUAL}", name):
        return f"{'after_atom' if match[1] == 'energy2' else 'edges'}.{match[2]}.{_HALVES[int(match[3])]}.weight"
    inside = _update(name)
    return inside and f"atoms.{inside}"


def _update(name: str) -> str | None:
    """Within an atom update."""
    if re.fullmatch(rf"dense_rbf\.{_DENSE}", name):
        return "gate.weight"
    if match := re.fullmatch(rf"layers\.(\d+)\.(?:{_DENSE}|{_RESIDUAL})", name):
        return f"layers.{match[1]}.weight" if match[2] is None else f"layers.{match[1]}.{_HALVES[int(match[2])]}.weight"
    return None


def _known(config: Mapping[str, Any], key: str, names: tuple[str, ...], default: str) -> str:
    name = str(dict(config.get(key) or {}).get("name", default)).lower()
    if name not in names:
        raise CheckpointError(f"OCP GemNet-OC with {key} {name!r} is not supported, only {' and '.join(map(repr, names))}")
    return name


def _basis(rbf: Mapping[str, Any]) -> str:
    name = str(rbf.get("name", "gaussian")).lower()
    if name not in _BASES or rbf.get("trainable"):
        kind = f"trainable {name}" if rbf.get("trainable") else name
        raise CheckpointError(f"OCP GemNet-OC with rbf {kind!r} is not supported, only 'gaussian' and 'spherical_bessel'")
    return _BASES[name]


def _cutoff(config: Mapping[str, Any], key: str) -> float | None:
    value = config.get(key)
    return None if value is None else float(value)


def _limit(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    return default if value is None else int(value)


def _check_offsets(name: str, offsets: Tensor) -> None:
    """Centres of Gaussians are constants of ours: evenly spaced from 0 to the cutoff."""
    expected = torch.linspace(0, 1, offsets.shape[0], dtype=torch.float64)
    if not torch.allclose(offsets.detach().double().cpu(), expected, rtol=0, atol=1e-6):
        raise CheckpointError(f"{name}: Gaussians that are not evenly spaced are not supported")
