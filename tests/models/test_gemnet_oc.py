"""GemNet-OC: reference outputs, sizes, graphs against brute force, loading, and what only this model has."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastkd_kernels import TripletIndex
from torch.nn import functional

from fastkd.config import ModelConfig
from fastkd.errors import CheckpointError
from fastkd.models import GemNetOC, GemNetOCOptions, build_model, load_model, save_model
from fastkd.models.gemnet_oc import load_gemnet_oc
from fastkd.models.gemnet_oc.bases import TwoAngles, legendre
from fastkd.models.gemnet_oc.graphs import make_graphs
from fastkd.teachers.teacher import Teacher
from tests import parity

from .structures import CUTOFF, GEMNET, OPTIONS, batch_of, make_model, random_molecule

FILES = sorted((Path(__file__).parents[1] / "fixtures" / "parity").glob("ocp_gemnetoc_*.safetensors"))
CELL = torch.tensor([[2.5, 0, 0], [0.4, 2.7, 0], [0.1, 0.3, 3.1]], dtype=torch.float64)
CRYSTAL = (
    torch.tensor([8, 1, 6]),
    torch.tensor([[0.1, 0.2, 0.3], [1.3, 0.5, 0.9], [1.1, 1.9, 2.3]], dtype=torch.float64),
)


def test_both_files_are_here():
    assert [path.stem for path in FILES] == ["ocp_gemnetoc_molecules", "ocp_gemnetoc_slabs"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_output_agrees(path):
    file = parity.read(path)
    comparisons = parity.compare(file)
    assert {item.output for item in comparisons} == set(file.outputs)
    assert max(item.relative for item in comparisons) < 1e-12


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_as_a_teacher_it_sums_the_edges_of_its_own_graph(path):
    file = parity.read(path)
    foreign = load_gemnet_oc(file.config, file.state)
    needs = frozenset({"edge_sum", "edge_vector_sum", "node", "degree"})
    output = Teacher(foreign.model.double())(parity.make_batch(file.inputs, foreign), needs)
    for got, want in ((output.edge_sum, "e2n"), (output.edge_vector_sum, "e2v"), (output.node, "node")):
        torch.testing.assert_close(got, file.outputs[want], rtol=1e-11, atol=1e-12)
    assert torch.equal(output.degree, torch.bincount(file.outputs["edge_index"][1], minlength=output.degree.shape[0]))
    assert output.edge_direction.shape[0] == output.graph.num_edges == file.outputs["edge"].shape[0]


@pytest.mark.parametrize(("name", "count"), [("base", 38_864_384), ("small", 8_753_408), ("coll", 11_197_184)])
def test_parameter_counts_of_the_papers(name, count):
    with torch.device("meta"):
        model = GemNetOC(getattr(GemNetOCOptions, name)())
    assert sum(parameter.numel() for parameter in model.parameters()) == count


# Graphs


def edges_of(edges):
    csr = edges.csr
    return list(zip(csr.edge_src.tolist(), csr.edge_dst.tolist(), map(tuple, edges.shift.tolist()), strict=True))


def plus(first, second, sign=1):
    return tuple(a + sign * b for a, b in zip(first, second, strict=True))


def nearest(edges, length, cutoff, limit):
    """The ``limit`` nearest of each target, by brute force."""
    found = []
    for target in {edge[1] for edge in edges}:
        own = sorted((length[edge], edge) for edge in edges if edge[1] == target and length[edge] <= cutoff)
        found += [edge for _, edge in own[: limit or None]]
    return set(found)


@pytest.mark.parametrize("limits", [(0, 0, 0), (10, 5, 8)], ids=["all", "nearest"])
def test_graphs_triplets_and_quadruplets_against_brute_force(limits):
    neighbors, quad, mixed = limits
    options = replace(
        GEMNET,
        neighbors=neighbors,
        quad_neighbors=quad,
        atom_edge_neighbors=mixed,
        atom_neighbors=0,
        quad_cutoff=2.4,
        atom_edge_cutoff=2.8,
        quad_tags=(1,),
    )
    batch = replace(batch_of(CRYSTAL, cell=CELL), tags=torch.tensor([0, 1, 2]))
    graph = batch.graph(CUTOFF)
    vector = batch.edge_vectors(graph)
    full = list(zip(graph.csr.edge_src.tolist(), graph.csr.edge_dst.tolist(), map(tuple, graph.edge_shift.tolist()), strict=True))
    length = dict(zip(full, vector.norm(dim=1).tolist(), strict=True))
    graphs = make_graphs(batch, graph, vector, options)

    kept = [e for e in nearest(full, length, CUTOFF, neighbors) if e[0] < e[1] or (e[0] == e[1] and e[2] > (0, 0, 0))]
    main, middle, other = edges_of(graphs.main), edges_of(graphs.middle), edges_of(graphs.mixed)
    assert set(main) == {*kept, *((t, s, tuple(-k for k in shift)) for s, t, shift in kept)}
    assert len(set(main)) == len(main) == 2 * len(kept)
    assert set(middle) == {e for e in nearest(full, length, 2.4, quad) if 1 in e[:2]}
    assert set(other) == nearest(full, length, 2.8, mixed)
    assert set(edges_of(graphs.atoms)) == set(full)
    assert all(main[swapped] == (t, s, tuple(-k for k in shift)) for (s, t, shift), swapped in zip(main, graphs.swap.tolist(), strict=True))
    for edges in (graphs.main, graphs.middle, graphs.mixed):
        csr = edges.csr
        expected = (batch.positions[csr.edge_dst] - batch.positions[csr.edge_src]) - edges.shift.double() @ CELL
        torch.testing.assert_close(edges.vectors(vector), expected)

    def pairs(index, incoming, outgoing):
        got = [(incoming[i], outgoing[o]) for i, o in zip(index.edge_in.tolist(), index.edge_out.tolist(), strict=True)]
        want = {(b, c) for b, c in itertools.product(incoming, outgoing) if b[1] == c[1] and (b[0], b[2]) != (c[0], c[2])}
        assert len(got) == len(set(got))
        assert set(got) == want

    pairs(graphs.triplets, main, main)
    pairs(graphs.atom_to_edge, other, main)
    pairs(graphs.edge_to_atom, main, other)
    quads = graphs.quadruplets
    got = []
    for inner, outer in zip(quads.paths.edge_in.tolist(), quads.paths.edge_out.tolist(), strict=True):
        assert quads.inner_middle[inner] == quads.outer_middle[outer]
        assert quads.onto_edges.edge_out[outer] == quads.outer_out[outer]
        got.append((main[quads.inner_in[inner]], middle[quads.inner_middle[inner]], main[quads.outer_out[outer]]))
    want = set()
    for db, ba, ca in itertools.product(main, middle, main):
        if db[1] == ba[0] and ba[1] == ca[1]:
            a, b, c, d = (ca[1], (0, 0, 0)), (ba[0], ba[2]), (ca[0], ca[2]), (db[0], plus(db[2], ba[2]))
            if len({a, b, c, d}) == 4:
                want.add((db, ba, ca))
    assert len(got) == len(set(got)) > 100
    assert set(got) == want


def test_lenient_limits_keep_ties():
    # a square: each corner has two neighbours equally far away, and one farther
    square = torch.tensor([[0.0, 0, 0], [1.5, 0, 0], [0, 1.5, 0], [1.5, 1.5, 0]], dtype=torch.float64)
    batch = batch_of((torch.tensor([1, 1, 1, 1]), square))
    graph = batch.graph(CUTOFF)
    for strict, each in ((True, 1), (False, 2)):
        options = replace(GEMNET, atom_edge_neighbors=1, strict_neighbors=strict)
        assert make_graphs(batch, graph, batch.edge_vectors(graph), options).mixed.num_edges == 4 * each


def test_options_that_do_not_fit():
    with pytest.raises(ValueError, match="no cutoff may exceed"):
        GemNetOCOptions(cutoff=6.0, atom_cutoff=5.0)
    with pytest.raises(ValueError, match="quad_cutoff may not exceed"):
        GemNetOCOptions(cutoff=5.0, quad_cutoff=6.0, atom_edge=False, edge_atom=False, atom_atom=False)
    with pytest.raises(ValueError, match="at least one block"):
        GemNetOCOptions(layers=0)
    with pytest.raises(ValueError, match="elements must lie"):
        GemNetOCOptions(elements=119)
    assert GemNetOCOptions(cutoff=5.0, atom_edge_cutoff=7.0, quad_cutoff=6.0).reach == 7.0
    assert GemNetOCOptions(cutoff=5.0, atom_cutoff=8.0).reach == 8.0
    assert GemNetOCOptions(cutoff=5.0, atom_cutoff=8.0, atom_atom=False).reach == 5.0


# Bases


@pytest.mark.parametrize("kind", ["legendre_outer", "spherical_harmonics", "smooth_harmonics"])
def test_basis_of_two_angles_against_scipy(kind):
    sph_harm_y = pytest.importorskip("scipy.special").sph_harm_y
    generator = torch.Generator().manual_seed(0)
    vectors = functional.normalize(torch.randn(3, 20, 3, dtype=torch.float64, generator=generator), dim=-1)
    ca, ba, db = vectors
    outer, inner = torch.linalg.cross(ca, ba), torch.linalg.cross(db, ba)
    cos_phi = (ca * ba).sum(1)
    theta = torch.acos((functional.normalize(outer, dim=1) * functional.normalize(inner, dim=1)).sum(1))
    phi, degrees = torch.acos(cos_phi), 4
    one_each = TripletIndex.from_triplets(torch.arange(20), torch.arange(20), 20)
    message = torch.ones(20, 1, dtype=torch.float64)
    got = TwoAngles(kind, degrees, cos_phi, outer, inner).reduce(message, one_each, one_each).squeeze(-1)
    columns = []
    if kind == "legendre_outer":
        first, second = legendre(cos_phi, degrees), legendre(torch.cos(theta), degrees)
        for l in range(degrees):
            torch.testing.assert_close(first[:, l], torch.as_tensor(sph_harm_y(l, 0, phi.numpy(), 0.0).real))
        columns = [first[:, l] * second[:, m] for l in range(degrees) for m in range(degrees)]
    else:
        smooth = kind == "smooth_harmonics"
        sine = inner.norm(dim=1)
        for l in range(degrees):
            for m in [*range(l + 1), *(range(-l, 0) if not smooth else [])]:
                # scipy's have the Condon–Shortley phase, real harmonics take it back
                value = torch.as_tensor(sph_harm_y(l, abs(m), phi.numpy(), theta.numpy()))
                columns.append((value.real if m >= 0 else value.imag) * (2**0.5 * (-1) ** m if m else 1.0) * (sine**m if smooth else 1.0))
    torch.testing.assert_close(got, torch.stack(columns, 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("angular", ["legendre_outer", "spherical_harmonics", "smooth_harmonics"])
@pytest.mark.parametrize("axis", [[1.1, 0.0, 0.0], [0.8, 0.6, 0.5]], ids=["axis", "oblique"])
def test_atoms_on_a_line_have_finite_derivatives(angular, dtype, axis):
    line = torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([axis], dtype=torch.float64)
    torch.manual_seed(0)
    model = GemNetOC(replace(GEMNET, forces="conservative", angular=angular)).to(dtype)
    batch = batch_of((torch.tensor([6, 8, 7, 1, 6]), line), dtype=dtype)
    positions = batch.positions.clone().requires_grad_()
    for prediction in (model(batch), model(replace(batch, positions=positions))):
        (prediction.energy.sum() + prediction.forces.square().sum()).backward()
        assert torch.isfinite(prediction.forces).all()
    assert torch.isfinite(positions.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def across(name, place):
    """Energy and forces just before, at, and just beyond a place on a path of the first atom."""
    model, numbers = make_model(name), torch.tensor([6, 8, 7, 1])
    results = []
    for side in (-1e-6, 0.0, 1e-6):
        positions = torch.tensor([place(side), [0.0, 0, 0], [1.4, 0, 0], [2.0, 1.2, 0]], dtype=torch.float64)
        prediction = model(batch_of((numbers, positions)))
        results.append(torch.cat([prediction.energy, prediction.forces.flatten()]).detach())
    return results


@pytest.mark.parametrize(
    "place", [lambda side: [-1.3, side, 0.4 * side], lambda side: [-0.9, 0.8, side]], ids=["three atoms on a line", "four in a plane"]
)
def test_energy_and_forces_are_smooth_where_the_dihedral_is_not(place):
    left, middle, right = across("gemnet_oc", place)
    assert (left - right).abs().max() < 1e-4 * left.abs().max()
    torch.testing.assert_close((left + right) / 2, middle, rtol=1e-8, atol=1e-8)


def test_the_reference_jumps_where_the_dihedral_does():
    """Three atoms on a line: forces blow up, because the energy depends on the side from which the line is approached."""
    left, _, right = across("gemnet_oc_bessel", lambda side: [-1.3, side, 0.4 * side])
    assert (left - right)[1:].abs().max() > 1.0
    assert (across("gemnet_oc", lambda side: [-1.3, side, 0.4 * side])[0] - left).abs().max() > 1.0


def test_coinciding_atoms_have_finite_derivatives():
    """Data with such atoms is refused; a simulation that runs into them gets numbers."""
    numbers, positions = random_molecule(6, 1)
    positions[1] = positions[0] + torch.tensor([1e-9, 0, 0], dtype=torch.float64)
    for name in ("gemnet_oc", "gemnet_oc_bessel", "gemnet_oc_direct"):
        model = make_model(name)
        prediction = model(batch_of((numbers, positions)))
        (prediction.energy.sum() + prediction.forces.sum()).backward()
        assert torch.isfinite(prediction.forces).all()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["gemnet_oc", "gemnet_oc_bessel"])
def test_hessian_by_autograd_is_the_derivative_of_forces(name):
    model, batch, h = make_model(name), batch_of(random_molecule(6, 1)), 1e-6
    positions = batch.positions.clone().requires_grad_()
    (row,) = torch.autograd.grad(model(replace(batch, positions=positions)).forces[2, 1], positions)
    for atom, axis in [(0, 0), (2, 1), (5, 2)]:
        forces = []
        for sign in (1, -1):
            moved = batch.positions.clone()
            moved[atom, axis] += sign * h
            forces.append(model(replace(batch, positions=moved)).forces[2, 1].detach())
        assert ((forces[0] - forces[1]) / (2 * h)).item() == pytest.approx(row[atom, axis].item(), rel=1e-6, abs=1e-6)


def test_with_limits_on_neighbours_conservative_forces_are_still_exact():
    """As long as no two neighbours change places; the mirrored edges hang on the positions of both their ends."""
    torch.manual_seed(0)
    options = replace(GEMNET, forces="conservative", neighbors=4, quad_neighbors=2, atom_edge_neighbors=3, atom_neighbors=6)
    model, (z, x), h = GemNetOC(options).double(), random_molecule(12, 2), 1e-6
    batch = batch_of((z, x))
    # every limit cuts something off
    assert batch.graph(CUTOFF).csr.edge_ptr.diff().max() > 6
    forces = model(batch).forces
    assert forces.sum(0).abs().max() < 1e-12
    for atom, axis in [(0, 0), (4, 1), (11, 2)]:
        energy = []
        for sign in (1, -1):
            moved = x.clone()
            moved[atom, axis] += sign * h
            energy.append(model(replace(batch, positions=moved), forces=False).energy)
        assert (-(energy[0] - energy[1]) / (2 * h)).item() == pytest.approx(forces[atom, axis].item(), rel=1e-6, abs=1e-8)


def test_built_from_a_config_and_saved(tmp_path):
    torch.manual_seed(0)
    model = build_model(ModelConfig(kind="gemnet_oc", width=6, layers=1, radial=4, cutoff=CUTOFF, forces="direct"))
    assert isinstance(model, GemNetOC)
    assert (model.options.edge_width, model.options.forces, model.options.reach) == (12, "direct", CUTOFF)
    save_model(model, tmp_path)
    loaded, batch = load_model(tmp_path), batch_of(random_molecule(7, 0), dtype=torch.float32)
    assert loaded.options == model.options
    assert torch.equal(loaded(batch).forces, model.eval()(batch).forces)


# What options do


def test_coupled_forces_sum_to_zero():
    batch = batch_of(random_molecule(9, 1))
    coupled = make_model("gemnet_oc_direct")
    alone = GemNetOC(replace(OPTIONS["gemnet_oc_direct"], coupled_forces=False)).double()
    alone.load_state_dict(coupled.state_dict())
    assert coupled(batch).forces.sum(0).abs().max() < 1e-12
    assert alone(batch).forces.sum(0).abs().max() > 1e-3
    assert torch.equal(alone(batch).energy, coupled(batch).energy)


def test_tags_choose_who_takes_part_in_quadruplets():
    options = replace(GEMNET, quad_tags=(1, 2))
    torch.manual_seed(0)
    model = GemNetOC(options).double()
    batch = batch_of(random_molecule(9, 1))
    energies = []
    for tags in (None, torch.ones(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64), torch.tensor(5 * [2] + 4 * [0])):
        tagged = replace(batch, tags=tags).to(dtype=torch.float64)
        energies.append(model(tagged).energy.item())
    assert energies[0] == energies[1]
    assert len(set(energies[1:])) == 3
    off = GemNetOC(replace(options, quadruplets=False)).double()
    off.load_state_dict({k: v for k, v in model.state_dict().items() if ".quadruplets." not in k and ".quad_" not in k})
    # without a quadruplet the interaction adds nothing, but still counts in the norm of the sum
    for block in off.blocks:
        block.edge_norm = model.blocks[0].edge_norm
    assert off(batch).energy.item() == pytest.approx(energies[2], rel=1e-12)


def test_edge_features_say_which_graph_they_belong_to():
    for name in ("gemnet_oc", "gemnet_oc_direct"):
        model, batch = make_model(name), batch_of(random_molecule(9, 1))
        with torch.no_grad():
            features = model(batch).features
        assert features.edge.shape == (features.edge_graph.csr.num_edges, model.feature_widths["edge"])
        assert not features.edge.requires_grad
        assert not features.edge_graph.direction.requires_grad
        torch.testing.assert_close(features.edge_graph.direction.norm(dim=1), torch.ones_like(features.edge_graph.length))


def test_elements_beyond_the_table_are_refused():
    model = GemNetOC(replace(GEMNET, elements=8))
    assert model.known_element.nonzero().flatten().tolist() == list(range(1, 9))
    assert model.embedding.weight.shape[0] == 8


# Loading


def test_scale_factors_wrappers_and_unfitted_factors():
    file = parity.read(FILES[0])
    factors = {"int_blocks.1.quad_interaction.scale_sbf_sum.scale_factor": 0.5, "out_blocks.2.scale_rbf_F.scale_factor": 0.0}
    state = {f"module.module.{name}": value for name, value in file.state.items()}
    state |= {f"module.module.{name}": torch.tensor(value, dtype=torch.float64) for name, value in factors.items()}
    plain, scaled = (load_gemnet_oc(file.config, s).model for s in (file.state, state))
    assert scaled.blocks[1].quadruplets.sum_scale.factor.item() == 0.5
    assert scaled.outputs[2].edge_scale.factor.item() == 1.0
    assert scaled.embedding.weight.dtype == torch.float64
    for (name, value), other in zip(plain.state_dict().items(), scaled.state_dict().values(), strict=True):
        assert torch.equal(value, other) == (name != "blocks.1.quadruplets.sum_scale.factor"), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_basis": True}, "scale_basis"),
        ({"activation": "relu"}, "'relu'"),
        ({"rbf": {"name": "bernstein"}}, "'bernstein'"),
        ({"rbf": {"name": "gaussian", "trainable": True}}, "trainable gaussian"),
        ({"sbf": {"name": "gaussian_outer"}}, "'gaussian_outer'"),
        ({"cbf": {"name": "gaussian"}}, "cbf 'gaussian'"),
        ({"emb_size_atom": 16}, "does not fit"),
        ({"emb_size_atom": None}, "'emb_size_atom'"),
        ({"cutoff_qint": 9.0}, "makes no model"),
    ],
)
def test_variants_that_are_not_supported(change, message):
    file = parity.read(FILES[0])
    with pytest.raises(CheckpointError, match=message):
        load_gemnet_oc({**file.config, **change}, file.state)


def test_tensors_that_do_not_belong_or_lack():
    file = parity.read(FILES[0])
    for name in ("surprise.weight", "int_blocks.0.surprise.linear.weight", "mlp_rbf_surprise.linear.weight"):
        with pytest.raises(CheckpointError, match=f"unexpected tensor '{name}'"):
            load_gemnet_oc(file.config, {**file.state, name: torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 missing: 'energy_head\.weight'"):
        load_gemnet_oc(file.config, {k: v for k, v in file.state.items() if "out_energy" not in k})
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_gemnet_oc(file.config, {})
    uneven = {**file.state, "radial_basis.rbf.offset": torch.linspace(0, 1.1, 12)}
    with pytest.raises(CheckpointError, match="evenly spaced"):
        load_gemnet_oc(file.config, uneven)
