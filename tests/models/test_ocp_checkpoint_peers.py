"""Checkpoints made with fairchem-core's own models and moving averages, and what those predict with their own graphs."""

import importlib

import pytest
import torch

from fastkd.models.convert_command import Request, convert_checkpoint
from tests.kernels import peer_packages
from tests.kernels.peer_models import default_dtype

from .ocp_files import ENERGY, FORCES, SAME, averages, checkpoint, write
from .structures import batch_of, random_molecule

pytestmark = [
    pytest.mark.peers,
    # fairchem-core calls what newer versions of torch_geometric no longer need
    pytest.mark.filterwarnings("ignore:.*jittable' is deprecated:UserWarning"),
]

CUTOFF, LIMIT = 5.0, 12
SIZES = {
    "painn": {"hidden_channels": 16, "num_layers": 3, "num_rbf": 12, "cutoff": CUTOFF, "max_neighbors": LIMIT, "otf_graph": False},
    "schnet": {"hidden_channels": 16, "num_filters": 12, "num_interactions": 2, "num_gaussians": 10, "cutoff": CUTOFF, "otf_graph": False},
}
#: exact in float32, in which the reference multiplies it with images
CELL = torch.tensor([[7.0, 0, 0], [0.625, 6.25, 0], [0.125, 0.375, 6.75]], dtype=torch.float64)


def live(family):
    """A model of fairchem-core in float64, random throughout."""
    module = peer_packages.fairchem({"painn": "painn.painn", "schnet": "schnet"}[family])
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        model = (module.PaiNN if family == "painn" else module.SchNetWrap)(**SIZES[family])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.endswith("scale_factor"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def predict(model, structures):
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
    limit = getattr(model, "max_neighbors", LIMIT)
    data.edge_index, data.cell_offsets, data.neighbors = search(searched, CUTOFF, limit, enforce_max_neighbors_strictly=True)
    with default_dtype(torch.float64):
        out = model(data)
    # a head of a model of heads gives a dictionary of its own
    energy, forces = (out[name][name] if isinstance(out[name], dict) else out[name] for name in ("energy", "forces"))
    return energy.reshape(-1).detach(), forces.detach()


def hydra(model):
    """The same weights in a model of a backbone and two heads."""
    painn = peer_packages.fairchem("painn.painn")
    base = importlib.import_module("fairchem.core.models.base")
    heads = {"energy": {"module": "painn_energy_head"}, "forces": {"module": "painn_force_head"}}
    with default_dtype(torch.float64):
        whole = base.HydraModel(backbone={"model": "painn_backbone", **SIZES["painn"]}, heads=heads)
    assert isinstance(whole.backbone, painn.PaiNNBackbone)
    names = {"out_energy": "output_heads.energy", "out_forces": "output_heads.forces"}
    renamed = {f"{names.get(name.split('.')[0], 'backbone')}.{name}": value for name, value in model.state_dict().items()}
    whole.load_state_dict(renamed)
    config = {"name": "hydra", "backbone": {"model": "painn_backbone", **SIZES["painn"]}, "heads": heads}
    return whole, config


@pytest.mark.parametrize("family", ["painn", "painn_hydra", "schnet"])
def test_energies_and_forces_are_those_of_the_live_model(family, tmp_path):
    base = family.removesuffix("_hydra")
    model = live(base)
    config = {"name": base, **SIZES[base]}
    if base == "painn":
        model.upd_out_scalar_scale_1.set_(torch.tensor(1.3, dtype=torch.float64))
    if family == "painn_hydra":
        model, config = hydra(model)
    # the averages predict; what is stored beside them is the last step's
    ema = averages(model)
    spread = SAME if base == "schnet" else FORCES
    contents = checkpoint(base, state=model.state_dict(), ema=ema, normalizers={"energy": ENERGY, "forces": spread})
    contents["config"]["model"] = config
    converted = convert_checkpoint(write(tmp_path / "checkpoint.pt", contents), Request()).model
    with torch.no_grad():
        for parameter, average in zip((p for p in model.parameters() if p.requires_grad), ema["shadow_params"], strict=True):
            parameter.copy_(average)
    structures = [random_molecule(20, 1), random_molecule(28, 2)]
    energy, forces = predict(model.eval(), structures)
    batch = batch_of(*structures, cell=CELL, cutoff=CUTOFF)
    assert int(batch.graph(CUTOFF).csr.edge_ptr.diff().max()) > (LIMIT if base == "painn" else 50)
    got = converted(batch)
    torch.testing.assert_close(got.energy, energy * 2.5 - 0.75, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.forces, forces * float(spread["rmsd"]), rtol=1e-9, atol=1e-9)
    assert forces.abs().max() > 1e-2
