"""Checkpoints made with fairchem-core's own models and moving averages, and what those predict with their own graphs."""

import importlib
from dataclasses import replace

import pytest
import torch

from fastkd.models.convert_command import Request, convert_checkpoint
from tests.kernels import peer_packages
from tests.kernels.peer_models import default_dtype

from .ocp_files import DERIVED, ENERGY, FORCES, HEADS, NAMES, SAME, averages, checkpoint, hydra_name, write
from .structures import batch_of, random_molecule
from .test_gemnet_oc_peers import generated

pytestmark = [
    pytest.mark.peers,
    # fairchem-core calls what newer versions of torch_geometric no longer need
    pytest.mark.filterwarnings("ignore:.*jittable' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using torch.cross without specifying the dim arg:UserWarning"),
]

CUTOFF, LIMIT = 5.0, 12
SIZES = {
    "painn": {"hidden_channels": 16, "num_layers": 3, "num_rbf": 12, "cutoff": CUTOFF, "max_neighbors": LIMIT, "otf_graph": False},
    "dimenet": {
        **{"hidden_channels": 12, "num_blocks": 2, "int_emb_size": 8, "basis_emb_size": 4, "out_emb_channels": 10, "cutoff": CUTOFF},
        **{"num_spherical": 3, "num_radial": 4, "num_output_layers": 1, "otf_graph": False},
    },
    "gemnet_oc": {
        **dict.fromkeys(("emb_size_trip_in", "emb_size_trip_out", "emb_size_aint_in", "emb_size_aint_out"), 6),
        **dict.fromkeys(("emb_size_quad_in", "emb_size_quad_out", "emb_size_rbf", "emb_size_cbf", "emb_size_sbf"), 4),
        **dict.fromkeys(("num_before_skip", "num_after_skip", "num_concat", "num_atom", "num_output_afteratom"), 1),
        **dict.fromkeys(("quad_interaction", "atom_edge_interaction", "edge_atom_interaction", "atom_interaction"), True),
        **{"emb_size_atom": 10, "emb_size_edge": 12, "num_spherical": 3, "num_radial": 5, "num_blocks": 2, "num_global_out_layers": 1},
        **{"cutoff": CUTOFF, "cutoff_qint": 4.0, "cutoff_aeaint": 4.5, "max_neighbors": LIMIT, "max_neighbors_qint": 5},
        **{"max_neighbors_aeaint": 8, "max_neighbors_aint": 1000, "sbf": {"name": "legendre_outer"}, "qint_tags": [1, 2]},
        **{"rbf": {"name": "spherical_bessel"}, "direct_forces": True, "otf_graph": True},
    },
    "schnet": {"hidden_channels": 16, "num_filters": 12, "num_interactions": 2, "num_gaussians": 10, "cutoff": CUTOFF, "otf_graph": False},
}
#: exact in float32, in which the reference multiplies it with images
CELL = torch.tensor([[7.0, 0, 0], [0.625, 6.25, 0], [0.125, 0.375, 6.75]], dtype=torch.float64)
#: module and class of each family in fairchem-core
CLASSES = {
    "painn": ("painn.painn", "PaiNN"),
    "schnet": ("schnet", "SchNetWrap"),
    "dimenet": ("dimenet_plus_plus", "DimeNetPlusPlusWrap"),
    "gemnet_oc": ("gemnet_oc.gemnet_oc", "GemNetOC"),
}


def live(family, **changes):
    """A model of fairchem-core in float64, random throughout."""
    module, model_class = CLASSES[family]
    package = peer_packages.fairchem(module)
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        model = getattr(package, model_class)(**{**SIZES[family], **changes})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.endswith("scale_factor"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def predict(model, structures, monkeypatch):
    """Normalised energies and forces, with the reference's own graph."""
    from torch_geometric.data import Data

    numbers = torch.cat([z for z, _ in structures])
    natoms = torch.tensor([len(z) for z, _ in structures])
    data = Data(atomic_numbers=numbers, pos=torch.cat([x for _, x in structures]), natoms=natoms)
    data.batch, data.cell = torch.arange(len(natoms)).repeat_interleave(natoms), CELL.expand(len(natoms), 3, 3)
    data.pbc = torch.ones(len(natoms), 3, dtype=torch.bool)
    # the reference searches neighbours in float32 whatever it is given
    searched = data.clone()
    searched.pos, searched.cell = data.pos.float(), data.cell.float()
    search = importlib.import_module("fairchem.core.common.utils").radius_graph_pbc
    backbone = getattr(model, "backbone", model)
    limit = backbone.max_neighbors
    data.edge_index, data.cell_offsets, data.neighbors = search(searched, CUTOFF, limit, enforce_max_neighbors_strictly=True)
    data.tags = torch.arange(len(numbers)) % 3
    with default_dtype(torch.float64), monkeypatch.context() as patch:
        if hasattr(backbone, "quad_interaction"):
            # GemNet-OC casts to float32 before its last layers, and makes its graph in each forward pass, for positions in float32
            patch.setattr(torch.Tensor, "float", lambda self: self)
            backbone.generate_graph = generated
        out = model(data)
    # a head of a model of heads gives a dictionary of its own, and that for derivatives both
    energy, forces = (nested(out, name) for name in ("energy", "forces"))
    return energy.reshape(-1).detach(), forces.detach()


def nested(out, name):
    found = out.get(name, out["energy"])
    return found[name] if isinstance(found, dict) else found


def hydra(family, model):
    """The same weights in a model of a backbone and heads."""
    module, model_class = CLASSES[family]
    package = peer_packages.fairchem(module)
    base = importlib.import_module("fairchem.core.models.base")
    sizes = {**SIZES[family]}
    heads = {key: dict(head) for key, head in HEADS[family].items()}
    if family == "gemnet_oc":
        for head in heads.values():
            head["num_global_out_layers"] = sizes["num_global_out_layers"]
        # the heads' own number is the one that counts
        sizes["num_global_out_layers"] = 3
    name = f"{NAMES[family]}_backbone"
    with default_dtype(torch.float64):
        whole = base.HydraModel(backbone={"model": name, **sizes}, heads=heads)
    assert isinstance(whole.backbone, getattr(package, f"{model_class}Backbone"))
    whole.load_state_dict({hydra_name(key) if family != "dimenet" else f"backbone.{key}": v for key, v in model.state_dict().items()})
    return whole, {"name": "hydra", "backbone": {"model": name, **sizes}, "heads": heads}


@pytest.mark.parametrize("family", ["painn", "painn_hydra", "schnet", "gemnet_oc", "gemnet_oc_hydra", "dimenet", "dimenet_hydra"])
def test_energies_and_forces_are_those_of_the_live_model(family, tmp_path, monkeypatch):
    base = family.removesuffix("_hydra")
    check(base, tmp_path, monkeypatch, whole=not family.endswith("_hydra"))


@pytest.mark.parametrize(
    "changes",
    [
        {"direct_forces": False, "sbf": {"name": "spherical_harmonics"}},
        {"rbf": {"name": "gaussian"}, "rbf_spherical": {"name": "spherical_bessel"}, "forces_coupled": True, "extensive": False},
        {"quad_interaction": False, "envelope": {"name": "exponential"}},
        {"atom_edge_interaction": False, "enforce_max_neighbors_strictly": False, "num_elements": 100},
        {"edge_atom_interaction": False, "atom_interaction": False, "qint_tags": [0, 1, 2]},
    ],
    ids=["gradient", "two_bases", "no_quadruplets", "no_atom_edge", "no_edge_atom"],
)
def test_options_of_gemnet_oc_are_found_in_the_file(changes, tmp_path, monkeypatch):
    """Frequencies that are trained are listed under several names, of which the averages have one."""
    check("gemnet_oc", tmp_path, monkeypatch, **changes)


def check(base, folder, monkeypatch, *, whole=True, **changes):
    """Averages, normalisers and scale factors of a file, against what the live model makes of them."""
    model = live(base, **changes)
    config = {"name": NAMES[base], **SIZES[base], **changes}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if name.endswith("scale_factor"):
            parameter.data.fill_(0.7 + 0.05 * (number % 10))
    if not whole:
        model, config = hydra(base, model)
    # the averages predict; what is stored beside them is the last step's
    ema = averages(model)
    derived = base in DERIVED or changes.get("direct_forces") is False
    spread = SAME if derived else FORCES
    contents = checkpoint(base, state=model.state_dict(), ema=ema, normalizers={"energy": ENERGY, "forces": spread})
    contents["config"]["model"] = config
    converted = convert_checkpoint(write(folder / "checkpoint.pt", contents), Request())
    assert converted.provenance["weights"] == "moving averages (ema)"
    with torch.no_grad():
        for parameter, average in zip((p for p in model.parameters() if p.requires_grad), ema["shadow_params"], strict=True):
            parameter.copy_(average)
    structures = [random_molecule(20, 1), random_molecule(28, 2)]
    energy, forces = predict(model.eval(), structures, monkeypatch)
    batch = replace(batch_of(*structures, cell=CELL, cutoff=CUTOFF), tags=torch.arange(48) % 3)
    limit = LIMIT if base in ("painn", "gemnet_oc") else 50
    assert int(batch.graph(CUTOFF).csr.edge_ptr.diff().max()) > limit
    got = converted.model(batch)
    torch.testing.assert_close(got.energy, energy * 2.5 - 0.75, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.forces, forces * float(spread["rmsd"]), rtol=1e-9, atol=1e-9)
    assert forces.abs().max() > 1e-2
