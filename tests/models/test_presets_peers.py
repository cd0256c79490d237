"""Parameter counts of presets, on the live reference implementations."""

import pytest
import torch
from torch import nn

from fastkd.models import presets
from tests.kernels import peer_packages

pyg = pytest.importorskip("torch_geometric.nn.models.dimenet", reason="needs the extra `peers`")

pytestmark = [
    pytest.mark.peers,
    # fairchem-core calls what newer versions of torch_geometric no longer need
    pytest.mark.filterwarnings("ignore:.*jittable' is deprecated:UserWarning"),
]


class NoParameters(nn.Module):
    """Stands in for the spherical basis, which takes half a minute to derive."""

    def __init__(self, *sizes):
        super().__init__()


def count(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name.startswith("dimenet_pp")])
def test_dimenet(name, monkeypatch):
    options = presets.find(name).options
    sizes = {
        **{"hidden_channels": options.width, "num_blocks": options.layers, "int_emb_size": options.triplet_width},
        **{"basis_emb_size": options.basis_width, "out_emb_channels": options.output_width, "num_spherical": options.degrees},
        **{"num_radial": options.radial, "cutoff": options.cutoff, "num_output_layers": options.output_layers},
    }
    if options.output_bias:
        package = peer_packages.fairchem("dimenet_plus_plus")
        monkeypatch.setattr(package, "SphericalBasisLayer", NoParameters)
        model = package.DimeNetPlusPlusWrap(**sizes)
    else:
        monkeypatch.setattr(pyg, "SphericalBasisLayer", NoParameters)
        model = pyg.DimeNetPlusPlus(out_channels=1, **sizes)
    assert count(model) == presets.find(name).parameters


@pytest.mark.parametrize("name", ["painn_coll_small", "schnet_coll"])
def test_painn_and_schnet(name):
    options = presets.find(name).options
    torch.manual_seed(0)
    if name.startswith("painn"):
        package = peer_packages.fairchem("painn.painn")
        model = package.PaiNN(hidden_channels=options.width, num_layers=options.layers, num_rbf=options.radial, cutoff=options.cutoff)
    else:
        package = peer_packages.fairchem("schnet")
        model = package.SchNetWrap(
            hidden_channels=options.width,
            num_filters=options.filters,
            num_interactions=options.layers,
            num_gaussians=options.radial,
            cutoff=options.cutoff,
        )
    assert count(model) == presets.find(name).parameters
