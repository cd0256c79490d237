"""GemNet-OC against fairchem-core's own, live, in every variant: same weights, same outputs, features and gradients."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from fastkd.models.gemnet_oc import fit_scales, load_gemnet_oc
from fastkd.models.gemnet_oc.load import parameter_name
from fastkd.models.ocp_graph import ocp_graph
from tests import parity
from tests.kernels import peer_packages

from .structures import random_molecule

pytest.importorskip("torch_geometric", reason="needs the extra `peers`")
pytestmark = pytest.mark.peers

CONFIG = {
    **dict.fromkeys(("emb_size_trip_in", "emb_size_trip_out", "emb_size_aint_in", "emb_size_aint_out"), 6),
    **dict.fromkeys(("emb_size_quad_in", "emb_size_quad_out", "emb_size_rbf", "emb_size_cbf"), 4),
    **dict.fromkeys(("num_before_skip", "num_after_skip", "num_concat", "num_atom", "num_output_afteratom"), 1),
    **dict.fromkeys(("quad_interaction", "atom_edge_interaction", "edge_atom_interaction", "atom_interaction"), True),
    "emb_size_atom": 10,
    "emb_size_edge": 12,
    "emb_size_sbf": 5,
    "num_spherical": 4,
    "num_radial": 6,
    "num_blocks": 2,
    "num_atom_emb_layers": 1,
    "regress_forces": True,
    "direct_forces": True,
    "otf_graph": True,
    "cutoff": 5.0,
    "cutoff_qint": 4.0,
    "cutoff_aeaint": 4.5,
    "cutoff_aint": 5.5,
    "max_neighbors": 12,
    "max_neighbors_qint": 6,
    "max_neighbors_aeaint": 8,
    "max_neighbors_aint": 1000,
    "sbf": {"name": "legendre_outer"},
    "qint_tags": [1, 2],
}
NO_ATOMS = dict.fromkeys(("atom_edge_interaction", "edge_atom_interaction", "atom_interaction"), False)
VARIANTS = {
    "base": {},
    "unscaled": {},
    "spherical_harmonics": {"sbf": {"name": "spherical_harmonics"}, "qint_tags": [0, 1, 2]},
    "bessel": {"rbf": {"name": "spherical_bessel"}},
    "two_bases": {"rbf": {"name": "spherical_bessel"}, "rbf_spherical": {"name": "gaussian"}},
    "exponential": {"envelope": {"name": "exponential"}},
    "coupled": {"forces_coupled": True},
    "gradient": {"direct_forces": False},
    "gradient_harmonics": {"direct_forces": False, "sbf": {"name": "spherical_harmonics"}, "rbf": {"name": "spherical_bessel"}},
    "mean": {"extensive": False},
    "lenient": {"enforce_max_neighbors_strictly": False},
    "no_quadruplets": {"quad_interaction": False},
    "no_atoms": {**NO_ATOMS, "cutoff_aint": None},
    "no_atom_edge": {"atom_edge_interaction": False},
    "no_edge_atom": {"edge_atom_interaction": False},
    "no_atom_atom": {"atom_interaction": False},
    "triplets_only": {**NO_ATOMS, "quad_interaction": False},
    "no_after_atom": {"num_output_afteratom": 0, "num_atom_emb_layers": 0, "emb_size_edge": 10},
}


def structures() -> dict[str, torch.Tensor]:
    """A slab-like cell and a molecule in a box, with tags."""
    numbers, positions = zip(random_molecule(12, 1), random_molecule(9, 2), strict=True)
    cells = [torch.diag(torch.tensor([6.1, 6.3, 14.0], dtype=torch.float64)), 20 * torch.eye(3, dtype=torch.float64)]
    cells[0][1, 0] = 0.7
    return {
        "atomic_numbers": torch.cat(numbers),
        "positions": torch.cat(positions),
        "natoms": torch.tensor([12, 9]),
        "cell": torch.stack(cells),
        "tags": torch.randint(3, (21,), generator=torch.Generator().manual_seed(4)),
    }


def generated(data, cutoff, max_neighbors, otf_graph):
    """The reference's own way to make a graph is written for float32; this is the same one."""
    graph = ocp_graph(data.pos.detach(), data.cell, data.natoms, cutoff, max_neighbors, symmetric=False)
    source, target = graph.csr.edge_src, graph.csr.edge_dst
    offset = torch.einsum("ei,eij->ej", graph.edge_shift.double(), data.cell[data.batch[target]])
    vector = data.pos[source] - data.pos[target] + offset
    return SimpleNamespace(
        edge_index=torch.stack([source, target]),
        edge_distance=vector.norm(dim=1),
        edge_distance_vec=vector,
        cell_offsets=graph.edge_shift,
        neighbors=torch.bincount(data.batch[target], minlength=data.natoms.shape[0]),
    )


@contextmanager
def in_float64(monkeypatch):
    """The reference casts to float32 before its last layers, and takes constants in the default dtype."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda self: self)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def live(config, *, scaled):
    """The live model in float64 with random weights and, if ``scaled``, random scale factors; call it in `in_float64`."""
    gemnet = peer_packages.fairchem("gemnet_oc.gemnet_oc")
    torch.manual_seed(0)
    model = gemnet.GemNetOC(**config).double()
    for name, parameter in model.named_parameters():
        if name.endswith("scale_factor"):
            parameter.data.fill_(0.5 + torch.rand(()).item() if scaled else 0.0)
        else:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.generate_graph = generated
    return model


def as_data(inputs):
    from torch_geometric.data import Data

    natoms = inputs["natoms"]
    return Data(
        pos=inputs["positions"].clone(),
        atomic_numbers=inputs["atomic_numbers"],
        natoms=natoms,
        cell=inputs["cell"],
        tags=inputs["tags"],
        batch=torch.arange(natoms.shape[0]).repeat_interleave(natoms),
    )


def reference(config, inputs, monkeypatch, *, scaled):
    """The live model's state, its outputs with what its output layers were given, and the gradients of a loss."""
    with in_float64(monkeypatch):
        model, seen, graphs = live(config, scaled=scaled), {}, []
        model.out_energy.register_forward_pre_hook(lambda module, args: seen.update(node=args[0]))
        if config["direct_forces"]:
            model.out_forces.register_forward_pre_hook(lambda module, args: seen.update(edge=args[0]))
        original = model.symmetrize_edges
        model.symmetrize_edges = lambda *args: graphs.append(original(*args)) or graphs[-1]
        out = model(as_data(inputs))
        main = graphs[0][0]
    outputs = {name: value.detach() for name, value in {**out, **seen}.items()}
    outputs |= {"edge_index": main["edge_index"], "edge_distance": main["distance"].detach(), "edge_direction": main["vector"].detach()}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss = out["energy"].square().sum() + out["forces"].square().sum()
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return model.state_dict(), outputs, dict(zip(trained, gradients, strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_features_and_weight_gradients(name, monkeypatch):
    config, inputs = {**CONFIG, **VARIANTS[name]}, structures()
    state, outputs, gradients = reference(config, inputs, monkeypatch, scaled=name != "unscaled")
    file = parity.ReferenceFile(name, "gemnet_oc", config, state, inputs, outputs)
    comparisons = parity.compare(file)
    assert {item.output for item in comparisons} == set(outputs)
    assert max(item.relative for item in comparisons) < 1e-11, comparisons

    foreign = load_gemnet_oc(config, state)
    model = foreign.model.double().train()
    prediction = model(parity.make_batch(inputs, foreign))
    loss = prediction.energy.square().sum() + prediction.forces.square().sum()
    loss.backward()
    parameters, checked = dict(model.named_parameters()), 0
    for theirs, gradient in gradients.items():
        ours = parameters[parameter_name(theirs)].grad
        if gradient is None and ours is None:
            continue
        torch.testing.assert_close(
            ours, gradient, rtol=1e-9, atol=1e-10 * float(gradient.abs().max()), msg=lambda text, name=theirs: f"{name}: {text}"
        )
        checked += 1
    assert checked > 60


def test_scale_factors_are_fitted_alike(monkeypatch):
    """The loop of the reference's fitting command, around its own factors."""
    inputs = structures()
    with in_float64(monkeypatch):
        model = live(CONFIG, scaled=False).eval()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        factors = {name: module for name, module in model.named_modules() if type(module).__name__ == "ScaleFactor"}
        order = []
        for name, module in factors.items():
            module.initialize_(index_fn=lambda name=name: order.append(name) if name not in order else None)
        model(as_data(inputs))
        for name in order:
            with factors[name].fit_context_(), torch.no_grad():
                model(as_data(inputs))
                factors[name].fit_()
    foreign = load_gemnet_oc(CONFIG, state)
    fitted = {f"{item.name}.factor": item.factor for item in fit_scales(foreign.model, [parity.make_batch(inputs, foreign)])}
    assert set(fitted) == {parameter_name(f"{name}.scale_factor") for name in order}
    for name in order:
        assert fitted[parameter_name(f"{name}.scale_factor")] == pytest.approx(factors[name].scale_factor.item(), rel=1e-9), name
