"""MXMNet and PAMNet: bonds, paths and their functions, sizes, smoothness, and PAMNet-s against its equations written as loops."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastkd.data.neighbors import find_neighbors
from fastkd.errors import CheckpointError, DataError
from fastkd.models import MXMNet, MXMNetOptions, PAMNet, PAMNetOptions
from fastkd.models.layers.local_graph import LocalRule, local_graph
from fastkd.models.layers.mlp import safe_length
from fastkd.models.layers.path_basis import PathBasis, multiplex_envelope, spherical_bessel_zeros
from fastkd.models.multiplex_weights import load_mxmnet, load_pamnet
from tests import parity

from .pamnet_loops import pamnet_s
from .structures import OPTIONS, batch_of, make_model, random_molecule

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
NAMES = [name for name, options in OPTIONS.items() if isinstance(options, MXMNetOptions | PAMNetOptions)]
FADING = [name for name in NAMES if OPTIONS[name].smooth]
COVALENT, TWO = LocalRule("covalent", 1.25, 0.0), LocalRule("distance", 0.0, 2.0)
#: H-C≡C-H and O=C=O, straight to the last bit; and bent water
STRAIGHT = (torch.tensor([1, 6, 6, 1]), torch.tensor([[-1.66, 0, 0], [-0.6, 0, 0], [0.6, 0, 0], [1.66, 0, 0]], dtype=torch.float64))
DIOXIDE = (torch.tensor([8, 6, 8]), torch.tensor([[0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]], dtype=torch.float64))
WATER = (torch.tensor([8, 1, 1]), torch.tensor([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], dtype=torch.float64))
CELL = torch.tensor([[2.3, 0, 0], [0.6, 4.2, 0], [0.1, 0.4, 4.5]], dtype=torch.float64)


def bonds_of(batch, rule, two_hop=True):
    graph = batch.graph(3.0)
    vector = batch.edge_vectors(graph)
    return local_graph(batch, graph, rule, vector, safe_length(vector), two_hop=two_hop), vector


def test_local_edges_by_rule():
    close = torch.tensor([[0.0, 0, 0], [1.54, 0, 0], [0, 1.9, 0]], dtype=torch.float64)
    # C-C ends at 1.25 · 1.52 = 1.90 Å, C-H at 1.25 · 1.07 = 1.34 Å
    batch = batch_of((torch.tensor([6, 6, 1]), close))

    def pairs(bonds):
        return sorted(zip(bonds.atoms.edge_src.tolist(), bonds.atoms.edge_dst.tolist(), strict=True))

    assert pairs(bonds_of(batch, COVALENT)[0]) == [(0, 1), (1, 0)]
    assert pairs(bonds_of(batch, TWO)[0]) == [(0, 1), (0, 2), (1, 0), (2, 0)]
    given = replace(batch, bonds=torch.tensor([[2, 1, 1, 1], [1, 2, 1, 2]]))
    bonds, _ = bonds_of(given, LocalRule("bonds", 0.0, 0.0))
    assert pairs(bonds) == [(1, 2), (2, 1)]
    assert bonds.reach is None
    assert bonds.fade() is None
    # no bond outlives the neighbour graph
    assert bonds_of(batch, LocalRule("covalent", 9.0, 0.0))[0].reach.max() == 3.0


def test_given_bonds_that_are_missing():
    rule = LocalRule("bonds", 0.0, 0.0)
    with pytest.raises(DataError, match=r'local="bonds".*use "covalent"'):
        bonds_of(batch_of(WATER), rule)
    far = batch_of((torch.tensor([1, 1, 1]), torch.tensor([[0.0, 0, 0], [1, 0, 0], [9, 0, 0]], dtype=torch.float64)))
    for atoms in ([[0], [2]], [[2], [0]]):
        with pytest.raises(DataError, match=r"atoms [02] and [02] of the batch is longer.*3\.0 Å"):
            bonds_of(replace(far, bonds=torch.tensor(atoms)), rule)
    alone = batch_of((torch.tensor([1]), torch.zeros(1, 3)), (torch.tensor([1]), torch.zeros(1, 3)))
    with pytest.raises(DataError, match="longer"):
        bonds_of(replace(alone, bonds=torch.tensor([[0], [1]])), rule)
    assert bonds_of(replace(alone, bonds=torch.empty(2, 0, dtype=torch.int64)), rule)[0].edges.numel() == 0


def test_a_given_bond_in_a_crystal_is_the_nearest_image():
    numbers, positions = torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [2.0, 0, 0]], dtype=torch.float64)
    batch = batch_of((numbers, positions), cell=CELL)
    bonds, vector = bonds_of(replace(batch, bonds=torch.tensor([[0, 1], [1, 0]])), LocalRule("bonds", 0.0, 0.0))
    torch.testing.assert_close(vector[bonds.edges].norm(dim=1), torch.full((2,), 0.3, dtype=torch.float64))


@pytest.mark.parametrize("cell", [None, CELL], ids=["molecule", "crystal"])
def test_paths_are_all_paths(cell):
    z, x = (torch.tensor([8, 1, 6]), torch.tensor([[0.1, 0.2, 0.3], [1.2, 0.4, 0.2], [1.1, 2.0, 1.6]], dtype=torch.float64))
    batch = batch_of((z, x), random_molecule(9, 1), cell=cell)
    bonds, vector = bonds_of(batch, LocalRule("distance", 0.0, 2.4))
    graph = batch.graph(3.0)
    source, target = bonds.atoms.edge_src.tolist(), bonds.atoms.edge_dst.tolist()
    shift, vector = graph.edge_shift[bonds.edges].tolist(), vector[bonds.edges]
    number = range(len(source))

    def back(a, b):
        return source[a] == target[b] and all(p + q == 0 for p, q in zip(shift[a], shift[b], strict=True))

    want = {
        "two_hop": [(a, b) for a in number for b in number if target[a] == source[b] and not back(a, b)],
        "one_hop": [(a, b) for a in number for b in number if target[a] == target[b]],
    }
    for name, paths in want.items():
        found = getattr(bonds, name)
        assert sorted(zip(found.edge_src.tolist(), found.edge_dst.tolist(), strict=True)) == sorted(paths)
        assert len(paths) > 10
        sign = 1 if name == "two_hop" else -1
        cosine = torch.cosine_similarity(vector[found.edge_src], sign * vector[found.edge_dst], dim=1)
        torch.testing.assert_close(getattr(bonds, f"{name}_cosine")(), cosine)
    # a path through the cell back to an image of its first atom is no way back
    images = any(source[a] == target[b] for a, b in want["two_hop"])
    assert images == (cell is not None)
    assert bonds_of(batch, TWO, two_hop=False)[0].two_hop.num_edges == 0


def test_path_basis_against_scipy():
    special = pytest.importorskip("scipy.special")
    zeros = spherical_bessel_zeros(7, 6)
    for degree in range(7):
        assert np.abs(special.spherical_jn(degree, zeros[degree])).max() < 1e-13
    basis, length = PathBasis(7, 6, 5.0), torch.tensor([0.002, 0.05, 0.3, 0.9, 1.1, 1.6, 3.0, 4.9, 5.0, 7.0], dtype=torch.float64)
    x = length / 5
    rounded = zeros.astype(np.float32).astype(np.float64)
    bessel = np.stack([special.spherical_jn(n, row * x.numpy()[:, None]) for n, row in enumerate(rounded)], 1)
    norm = np.stack([math.sqrt(2) / np.abs(special.spherical_jn(n + 1, row)) for n, row in enumerate(rounded)])
    envelope = multiplex_envelope(x, 5, smooth=False) / x
    got = basis.radial_part(length)
    torch.testing.assert_close(got, torch.from_numpy((norm * bessel).reshape(10, 42)) * envelope[:, None], rtol=3e-7, atol=1e-12)
    assert not got[-2:].any()
    # lengths of float32 see the same numbers
    torch.testing.assert_close(basis.radial_part(length.float()), got.float(), rtol=1e-4, atol=1e-6)
    cosine = torch.linspace(-1, 1, 9, dtype=torch.float64)
    want = [math.sqrt((2 * n + 1) / (4 * math.pi)) * special.eval_legendre(n, cosine.numpy()) for n in range(7)]
    torch.testing.assert_close(basis.angular_part(cosine), torch.from_numpy(np.stack(want, 1)))


@pytest.mark.parametrize("smooth", [False, True])
def test_path_basis_derivatives(smooth):
    basis = PathBasis(5, 3, 5.0, smooth=smooth)
    length = torch.tensor([0.2, 0.7, 1.5, 2.6, 4.8, 5.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(basis.radial_part, length)
    assert torch.autograd.gradgradcheck(basis.radial_part, length, atol=1e-4)
    tiny = torch.tensor([0.0, 1e-9, 1e-3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(basis.radial_part(tiny).sum(), tiny, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), tiny)
    assert torch.isfinite(slope).all()
    assert torch.isfinite(curve).all()
    with pytest.raises(ValueError, match="path basis needs"):
        PathBasis(1, 3, 5.0)


def test_envelope_of_the_references_has_a_kink_and_ours_does_not():
    for smooth, slope in ((False, -1.0), (True, 0.0)):
        x = torch.tensor([1 - 1e-9], dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(multiplex_envelope(x, 5, smooth=smooth).sum(), x)
        assert found.item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_straight_molecules_have_finite_derivatives(name):
    batch = batch_of(STRAIGHT, DIOXIDE, WATER)
    positions = batch.positions.clone().requires_grad_()
    model = make_model(name)
    bonds = model.planes(batch, batch.edge_vectors(batch.graph(3.0)))[1].graph
    assert bonds.one_hop.num_edges > bonds.edges.shape[0]
    prediction = model(replace(batch, positions=positions))
    (prediction.energy.sum() + prediction.forces.square().sum()).backward()
    assert torch.isfinite(positions.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    # nothing can push a straight molecule off its line
    torch.testing.assert_close(prediction.forces[:4, 1:], torch.zeros(4, 2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_forces_of_bent_and_straight_molecules_by_finite_differences(name):
    model, batch, h = make_model(name), batch_of(STRAIGHT, WATER), 1e-6
    forces = model(batch).forces
    for atom, axis in [(0, 0), (1, 1), (2, 0), (4, 1), (5, 0), (6, 1)]:
        energies = []
        for sign in (1, -1):
            moved = batch.positions.clone()
            moved[atom, axis] += sign * h
            energies.append(model(replace(batch, positions=moved), forces=False).energy.sum())
        assert (-(energies[0] - energies[1]) / (2 * h)).item() == pytest.approx(forces[atom, axis].item(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_reach_every_weight_through_paths(name):
    """The force loss of molecules with paths of two hops against finite differences; those of test_gradients have none."""
    model, batch = make_model(name), batch_of(STRAIGHT, WATER, random_molecule(7, 4))
    target = torch.randn(batch.num_atoms, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def loss():
        return (model(batch).forces - target).square().sum() / 10

    loss().backward()
    generator = torch.Generator().manual_seed(4)
    for label, parameter in model.named_parameters():
        if not any(part in label for part in ("hop", "path", "own", "neighbor", "frequencies", "embedding")):
            continue
        direction, values = torch.randn(parameter.shape, dtype=torch.float64, generator=generator), []
        for step in (1e-6, -2e-6, 1e-6):
            with torch.no_grad():
                parameter.add_(step * direction)
            values.append(loss().item())
        slope = (values[0] - values[1]) / 2e-6
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=3e-6, abs=3e-6), label


def along(model, distance):
    """Energy, slope and curvature as two bonded atoms and a third part."""
    d = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
    mover = torch.stack([-d, torch.zeros_like(d), torch.zeros_like(d)])
    positions = torch.cat([torch.tensor([[0.0, 0, 0], [0.9, 0.3, 0.1]], dtype=torch.float64), mover[None]])
    numbers = torch.tensor([6, 1, 8])
    energy = model(replace(batch_of((numbers, positions.detach())), positions=positions), forces=False).energy.sum()
    (slope,) = torch.autograd.grad(energy, d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, d)
    return energy.item(), slope.item(), curvature.item()


@pytest.mark.parametrize("start", [False, True], ids=["end", "start"])
@pytest.mark.parametrize("name", FADING)
def test_fading_bonds_are_smooth_where_they_end_and_where_they_begin_to(name, start):
    options = OPTIONS[name]
    # radii of C and O
    reach = options.local_distance if options.local == "distance" else options.covalent_factor * (0.76 + 0.66)
    border, h = reach * (0.8 if start else 1.0), 1e-6
    model = make_model(name)
    inside, outside = along(model, border - h), along(model, border + h)
    # slopes times the step of 2e-6 Å; the third derivative of the fading is of the order of 1e3
    for value, other, bound in zip(inside, outside, (1e-5, 1e-4, 1e-2), strict=True):
        assert abs(value - other) < bound
    bonded = [bonds_of(batch_of((torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [reach + s, 0, 0]]))), model.rule)[0] for s in (-h, h)]
    assert [one.edges.shape[0] for one in bonded] == [2, 0]


@pytest.mark.parametrize(("name", "reach"), [("mxmnet", 1.25 * 1.42), ("pamnet", 2.0)])
def test_hard_bonds_jump_as_the_references_do(name, reach):
    """The default is exact; that its energy jumps is a property of the authors' models, and why `smooth` exists."""
    model = make_model(name)
    for border in (reach, 3.0):
        assert abs(along(model, border - 1e-7)[0] - along(model, border + 1e-7)[0]) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_atoms_on_top_of_each_other(name):
    """The loader refuses them with a message; a model that meets them all the same gives numbers."""
    with pytest.raises(DataError, match="Å apart"):
        find_neighbors(np.zeros((2, 3)), None, None, 3.0)
    batch = batch_of((torch.tensor([6, 1, 8]), torch.tensor([[0.0, 0, 0], [1e-9, 0, 0], [1.0, 0.2, 0]], dtype=torch.float64)))
    prediction = make_model(name)(batch)
    assert torch.isfinite(prediction.energy).all()
    assert torch.isfinite(prediction.forces).all()


@pytest.mark.parametrize("name", NAMES)
def test_features(name):
    model, batch = make_model(name), batch_of(WATER, random_molecule(8, 2))
    features, graph = model(batch).features, batch.graph(3.0)
    assert len(features.layers) == model.num_blocks + 1
    assert torch.equal(features.layers[0], model.embedding.weight[batch.atomic_numbers])
    assert features.layers[-1] is features.node
    assert "edge" not in vars(features)
    assert features.edge.shape == (graph.num_edges, model.feature_widths["edge"])
    assert not model.eval()(batch).features.detach().edge.requires_grad
    # messages between atoms that are about to part
    far = model(batch_of((torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [2.9999, 0, 0]])))).features.edge.abs().max()
    assert (far < 1e-8) == OPTIONS[name].smooth


def test_options_that_do_not_fit():
    for wrong, message in [
        ({"local": "magic"}, "covalent, distance or bonds"),
        ({"local": "distance", "local_distance": 6.0}, "beyond the cutoff"),
        ({"local": "bonds", "smooth": True}, "end nowhere"),
    ]:
        with pytest.raises(ValueError, match=message):
            PAMNetOptions(**wrong)


@pytest.mark.parametrize(
    ("make", "options", "unused", "count"),
    [
        (MXMNet, MXMNetOptions.qm9(), 0, 3_773_862),
        # the reference holds a layer for PDBbind's 18 features as well, which it does not use for elements
        (PAMNet, PAMNetOptions.qm9(), 18 * 128, 3_581_100),
        (PAMNet, PAMNetOptions.qm9(simple=True), 0, 3_573_292),
    ],
    ids=["mxmnet", "pamnet", "pamnet_s"],
)
def test_parameter_counts_of_the_references(make, options, unused, count):
    """The references embed five elements, ours all."""
    model = make(options)
    ours = sum(parameter.numel() for name, parameter in model.named_parameters() if name != "embedding.weight")
    assert ours + 5 * 128 + unused == count
    assert (options.width, options.layers, options.cutoff, options.local_cutoff, options.local) == (128, 6, 5.0, 5.0, "bonds")


def test_foreign_weights_that_do_not_fit():
    mxmnet, pamnet = (parity.read(FIXTURES / f"{name}_qm9.safetensors") for name in ("mxmnet", "pamnet"))
    for load, file in ((load_mxmnet, mxmnet), (load_pamnet, pamnet)):
        assert load(file.config, {f"module.{name}": value for name, value in file.state.items()}).model.known_element.sum() == 5
        with pytest.raises(CheckpointError, match=r"unexpected tensor 'surprise\.weight'"):
            load(file.config, {**file.state, "surprise.weight": torch.zeros(1)})
        with pytest.raises(CheckpointError, match="embeddings is missing"):
            load(file.config, {name: value for name, value in file.state.items() if name != "embeddings"})
        with pytest.raises(CheckpointError, match=r"expected \[3, 24\]"):
            load(file.config, file.state, elements=(1, 6, 8))
        with pytest.raises(CheckpointError, match="does not fit its config"):
            load({**file.config, "n_layer": 3}, file.state)
    with pytest.raises(CheckpointError, match="'PDBbind' is not supported"):
        load_pamnet({**pamnet.config, "dataset": "PDBbind"}, pamnet.state)


def test_elements_of_foreign_classes():
    file = parity.read(FIXTURES / "pamnet_qm9.safetensors")
    model = load_pamnet(file.config, file.state, elements=(1, 6, 7, 8, 16)).model
    assert model.known_element.nonzero().flatten().tolist() == [1, 6, 7, 8, 16]
    assert torch.equal(model.embedding.weight[16], file.state["embeddings"][4])


def test_pamnet_s_against_its_equations():
    file = parity.read(FIXTURES / "pamnet_qm9.safetensors")
    renamed = {"mlp_sbf1.": "mlp_sbf.", "mlp_m_kj.": "mlp_m_jj."}
    state = {}
    for name, value in file.state.items():
        for old, new in renamed.items():
            name = name.replace(old, new)  # noqa: PLW2901
        if not name.startswith(("mlp_sbf2.", "init_linear.")):
            state[name] = value
    foreign = load_pamnet(file.config, state)
    assert foreign.model.options.simple
    batch = parity.make_batch(file.inputs, foreign)
    prediction = foreign.model(batch)
    first = 0
    for graph, count in enumerate(file.inputs["natoms"].tolist()):
        atoms = slice(first, first + count)
        positions = file.inputs["positions"][atoms].clone().requires_grad_()
        bonds = [(j - first, i - first) for j, i in file.inputs["bond_index"].T.tolist() if first <= j < first + count]
        energy = pamnet_s(state, 24, 2, file.inputs["atom_type"][atoms], positions, bonds)
        (gradient,) = torch.autograd.grad(energy, positions)
        torch.testing.assert_close(prediction.energy[graph], energy, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(prediction.forces[atoms], -gradient, rtol=1e-9, atol=1e-10)
        first += count


@pytest.mark.peers
@pytest.mark.slow  # its symbolic basis is built in ten seconds
def test_path_basis_is_the_one_of_pytorch_geometric():
    utils = pytest.importorskip("torch_geometric.nn.models.dimenet_utils")
    sympy = pytest.importorskip("sympy")
    length = torch.linspace(0.9, 4.99, 50, dtype=torch.float64)
    x, symbol = length / 5, sympy.symbols("x")
    columns = [
        sympy.lambdify([symbol], function, {"sin": torch.sin, "cos": torch.cos})(x) for row in utils.bessel_basis(7, 6) for function in row
    ]
    want = torch.stack(columns, 1) * (multiplex_envelope(x, 5, smooth=False) / x)[:, None]
    torch.testing.assert_close(PathBasis(7, 6, 5.0).radial_part(length), want, rtol=1e-9, atol=1e-10)
