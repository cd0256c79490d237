"""A foreign torch module as a teacher: units, references, autograd, hooks, and messages for what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ase import units

from fastkd.config import DistillConfig, TermConfig
from fastkd.data.units import Units
from fastkd.distill import build_terms
from fastkd.errors import ConfigError, DataError
from fastkd.teachers import CachedTeacher, Feature, LiveTeacher, ModuleTeacher, Offer, load_teacher
from fastkd.teachers.output import TeacherOutput
from tests.distill.common import make_batch, prediction

from .foreign import CUTOFF, REFERENCE, make, network

KCAL = units.kcal / units.mol
PLACE = "module:tests.teachers.foreign"
EVERYTHING = frozenset({"energy", "forces", "atom_energy", "node", "vector", "edge_sum", "edge_vector_sum", "degree"})


def teacher_of(**changes) -> ModuleTeacher:
    teacher = ModuleTeacher(make(**changes), "foreign").to(dtype=torch.float64)
    teacher.start(make_batch([4, 0]))
    return teacher


@pytest.fixture(scope="module")
def teacher() -> ModuleTeacher:
    return teacher_of()


def by_hand(batch):
    """The network asked without any of the library: its own units."""
    net = network().double()
    graph = batch.graph(CUTOFF)
    positions = (batch.positions / units.Bohr).requires_grad_()
    vectors = positions[graph.csr.edge_dst] - positions[graph.csr.edge_src]
    said = net(batch.atomic_numbers, vectors, torch.stack([graph.csr.edge_src, graph.csr.edge_dst]), batch.graph_index, batch.num_graphs)
    (slope,) = torch.autograd.grad(said["energy"].sum(), positions)
    return said["energy"][:, 0].detach(), -slope, said["atoms"][:, 0].detach(), said["messages"]


def test_outputs_come_in_our_units_with_references_in_the_total_alone(teacher) -> None:
    batch = make_batch([0, 5, 3])
    energy, forces, atoms, _ = by_hand(batch)
    table = torch.zeros(119, dtype=torch.float64)
    table[[1, 6, 8]] = torch.tensor(list(REFERENCE.values()), dtype=torch.float64)
    total = energy + torch.zeros_like(energy).index_add(0, batch.graph_index, table[batch.atomic_numbers])
    got = teacher(batch, EVERYTHING)
    torch.testing.assert_close(got.energy, total * KCAL, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.forces, forces * KCAL / units.Bohr, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.atom_energy, atoms * KCAL, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(teacher.reference_energy, table * KCAL)
    assert got.energy.dtype == torch.float64


def test_forces_are_the_slope_of_the_energy_in_ev_per_angstrom(teacher) -> None:
    batch = make_batch([2])
    forces = teacher(batch, frozenset({"forces"})).forces
    step = 1e-5
    for atom, axis in ((0, 0), (1, 2)):
        energies = []
        for sign in (1, -1):
            moved = batch.positions.clone()
            moved[atom, axis] += sign * step
            energies.append(float(teacher(replace(batch, positions=moved), frozenset({"energy"})).energy))
        assert (energies[1] - energies[0]) / (2 * step) == pytest.approx(float(forces[atom, axis]), rel=1e-5, abs=1e-7)


def test_energies_that_hold_their_references_are_left_alone() -> None:
    batch = make_batch([0, 5])
    inside = teacher_of(references_in=frozenset({"energy", "atom_energy"}))
    outside = teacher_of()
    shift = inside.reference_energy[batch.atomic_numbers]
    a, b = (t(batch, frozenset({"energy", "atom_energy"})) for t in (inside, outside))
    torch.testing.assert_close(b.atom_energy - a.atom_energy, shift)
    torch.testing.assert_close(b.energy - a.energy, torch.zeros(2, dtype=torch.float64).index_add(0, batch.graph_index, shift))


def test_features_come_in_our_layout(teacher) -> None:
    batch = make_batch([1, 6])
    got = teacher(batch, EVERYTHING)
    net = network().double()
    kept = {}
    net.block.register_forward_hook(lambda m, i, o: kept.update(o))
    scaled = replace(batch, positions=batch.positions / units.Bohr, cell=batch.cell / units.Bohr)
    call = make().inputs(scaled, EVERYTHING)
    net(*call.args, **call.kwargs)
    assert torch.equal(got.node, kept["scalars"])
    assert torch.equal(got.vector, kept["vectors"].transpose(1, 2))
    assert got.edge.shape == (batch.graph(CUTOFF).num_edges, 6)
    want = torch.zeros(batch.num_atoms, 6, dtype=torch.float64).index_add(0, batch.graph(CUTOFF).csr.edge_dst, got.edge)
    torch.testing.assert_close(got.edge_sum, want)
    assert torch.equal(got.degree, torch.bincount(batch.graph(CUTOFF).csr.edge_dst, minlength=batch.num_atoms))
    assert not any(value.requires_grad or value.is_inference() for value in vars(got).values() if isinstance(value, torch.Tensor))


def test_the_offer_says_what_came(teacher) -> None:
    assert teacher.offer.widths == {"node": 6, "vector": 6, "edge": 6}
    assert teacher.offer.outputs == {"energy", "forces", "atom_energy"}
    assert teacher.known_element.nonzero().flatten().tolist() == [1, 6, 8]
    assert teacher.card() == {"path": "foreign", "model": "teacher (Foreign)", "licence": "CC-BY-4.0", "sha256": teacher.hash}


def test_autograd_runs_only_where_somebody_takes_a_gradient(teacher) -> None:
    seen = teacher.module.grad_mode
    batch = make_batch([0])
    for needs, mode in (({"node", "energy"}, (False, True)), ({"forces"}, (True, False))):
        seen.clear()
        teacher(batch, frozenset(needs))
        assert seen == [mode]
    inside = teacher_of(forces="none", differentiates=lambda needs: "node" in needs)
    for needs, mode in (({"energy"}, (False, True)), ({"node"}, (True, False))):
        inside.module.grad_mode.clear()
        inside(batch, frozenset(needs))
        assert inside.module.grad_mode == [mode]
    assert torch.is_grad_enabled()


def test_hooks_are_there_only_while_it_is_asked(teacher) -> None:
    teacher(make_batch([0]), EVERYTHING)
    assert not any(module._forward_hooks for module in teacher.module.modules())


def test_its_precision_is_its_own() -> None:
    low = make_batch([0, 1], dtype=torch.float32)
    teacher = teacher_of()
    got = teacher(low, EVERYTHING)
    assert got.node.dtype == got.forces.dtype == torch.float64
    want = teacher(low.to(dtype=torch.float64), EVERYTHING)
    assert torch.equal(got.energy, want.energy)


def test_a_cache_gives_what_the_teacher_gave(teacher) -> None:
    batch = make_batch([4, 0, 7])
    cache = CachedTeacher.build(teacher, EVERYTHING, [batch], dataset_hash="data")
    got, want = cache(batch), teacher(batch, EVERYTHING)
    for need in EVERYTHING:
        assert torch.equal(getattr(got, need), getattr(want, need)), need
    assert cache.cost.batches == 1


def test_a_teacher_that_finds_neighbours_itself_needs_no_graph() -> None:
    own = make(cutoff=None, features=[Feature("block", "node", output="scalars")])
    inner = own.inputs
    graph = make_batch([4, 0]).graphs

    own.inputs = lambda batch, needs: inner(replace(batch, graphs=graph), needs)
    teacher = ModuleTeacher(own, "foreign").to(dtype=torch.float64)
    bare = replace(make_batch([4, 0]), graphs={})
    teacher.start(bare)
    output = teacher(bare, frozenset({"node", "energy"}))
    want = teacher_of()(make_batch([4, 0]), frozenset({"node", "energy"}))
    assert torch.equal(output.node, want.node)
    cache = CachedTeacher.build(teacher, frozenset({"node"}), [bare], dataset_hash="data")
    assert torch.equal(cache(bare).node, want.node)
    assert output.graph is None


def test_a_student_term_takes_its_features(teacher) -> None:
    batch = make_batch([0, 1])
    config = DistillConfig(terms=[TermConfig(kind=kind) for kind in ("energy", "forces", "atom_energy", "n2n", "v2v", "e2n")])
    terms = build_terms(config, Offer("student", {"node": 5, "vector": 5}, blocks=2), teacher.offer)
    source = LiveTeacher(teacher, terms.needs)
    values = terms(prediction(batch, 5), source(batch), batch)
    assert set(values) == {"energy", "forces", "atom_energy", "n2n", "v2v", "e2n"}
    assert all(torch.isfinite(value.raw) for value in values.values())
    assert source.cost.batches == 1
    assert source.cost.settle() > 0


def test_a_term_on_an_output_that_it_lacks_is_refused() -> None:
    mute = teacher_of(forces="none")
    assert not mute.complete
    with pytest.raises(ConfigError, match=r"needs forces of the teacher, but teacher \(Foreign\) predicts atom_energy, energy"):
        build_terms(DistillConfig(terms=[TermConfig(kind="forces")]), Offer("student", {"node": 5}), mute.offer)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Feature("blokc", "node"), r"no module 'blokc'; near ones: block"),
        (
            Feature("block", "node"),
            r"'block' returned a dict \(scalars: \[\d+, 6\].*not a tensor; say which item with output \(scalars, vectors\)",
        ),
        (Feature("block", "node", output="scalar"), r"'block' returned a dict .* no item 'scalar'"),
        (Feature("filter", "node"), r"'filter' gives \[\d+, 6\], but kind node needs \[10, channels\]"),
        (Feature("embed", "edge"), r"'embed' gives \[10, 6\], but kind edge needs"),
        (Feature("out", "graph"), r"'out' gives \[10, 1\], but kind graph needs \[2, channels\]"),
        (Feature("embed", "atom_energy"), r"'embed' gives \[10, 6\], but kind atom_energy needs \[10\] or"),
        (Feature("embed", "vector"), r"'embed' gives \[10, 6\], but kind vector needs"),
        (Feature("embed", "node", width=7), r"'embed' gives 6 channels, but width = 7"),
        (Feature("unused", "node"), r"'unused' was not called"),
        (Feature("embed", "node", layout="3x0e+1x1"), r"layout = '3x0e\+1x1' must be"),
        (Feature("embed", "node", layout="3x0e+1x2o"), r"'embed' gives \[10, 6\] with layout 3x0e\+1x2o"),
        (Feature("embed", "vector", layout="3x0e+1x1o"), "was declared kind vector, but does not turn"),
    ],
)
def test_what_does_not_fit_is_said_at_start(feature, message) -> None:
    with pytest.raises(ConfigError, match=message):
        teacher_of(features=[feature])


def test_edges_without_our_graph_have_no_order() -> None:
    graph = make_batch([4, 0]).graphs
    own = make(cutoff=None, features=[Feature("filter", "edge")])
    inner = own.inputs
    own.inputs = lambda batch, needs: inner(replace(batch, graphs=graph), needs)
    with pytest.raises(ConfigError, match="declare its cutoff"):
        ModuleTeacher(own, "foreign").to(dtype=torch.float64).start(make_batch([4, 0]))


def test_scalars_and_vectors_are_found_in_irreps() -> None:
    from fastkd.teachers.hooks import Sizes, shaped

    value = torch.arange(2 * 14.0).reshape(2, 14)
    sizes = Sizes(2, 5, 1)
    node = shaped(value, Feature("x", "node", layout="2x0e + 1o + 1x1e+2x1o"), sizes, "who")
    assert torch.equal(node, value[:, :2])
    vector = shaped(value, Feature("x", "vector", layout="2x0e+1o+1x1e+2x1o"), sizes, "who")
    assert vector.shape == (2, 3, 3)
    assert torch.equal(vector[:, :, 0], value[:, 2:5])
    assert torch.equal(vector[:, :, 1], value[:, 8:11])
    assert torch.equal(vector[:, :, 2], value[:, 11:14])


def test_features_of_one_kind_are_concatenated() -> None:
    both = teacher_of(features=[Feature("embed", "node"), Feature("block", "node", output="scalars")])
    assert both.offer.widths["node"] == 12
    alone = teacher_of(features=[Feature("block", "node", output="scalars")])
    batch = make_batch([3, 0])
    assert torch.equal(both(batch, frozenset({"node"})).node[:, 6:], alone(batch, frozenset({"node"})).node)


def test_a_wrong_output_shape_is_said() -> None:
    from fastkd.teachers import Outputs

    with pytest.raises(ConfigError, match=r"energy has shape \[10, 1\], expected \[2\]"):
        teacher_of(outputs=lambda said, batch: Outputs(energy=said["atoms"]))


def test_an_energy_that_does_not_depend_on_positions_is_said() -> None:
    from fastkd.teachers import Outputs

    with pytest.raises(ConfigError, match=r"does not depend on batch\.positions"):
        teacher_of(outputs=lambda said, batch: Outputs(energy=said["energy"].detach()))


def test_structures_that_it_cannot_take_are_refused() -> None:
    with pytest.raises(DataError, match="crystals only"):
        teacher_of(periodic="always")
    batch = make_batch([0])
    crystal = replace(batch, pbc=torch.ones(1, 3, dtype=torch.bool), cell=9 * torch.eye(3, dtype=torch.float64)[None])
    with pytest.raises(DataError, match="molecules only"):
        ModuleTeacher(make(periodic="never"), "foreign")(crystal, frozenset({"energy"}))


def test_what_tells_two_teachers_apart_is_in_the_hash() -> None:
    assert teacher_of().hash == teacher_of().hash
    others = [
        teacher_of(seed=4),
        teacher_of(identity="head 2"),
        teacher_of(units=Units("eV", "bohr")),
        teacher_of(features=[Feature("embed", "node")]),
    ]
    assert len({teacher_of().hash, *(other.hash for other in others)}) == 5


def test_it_is_loaded_by_an_import_string() -> None:
    loaded = load_teacher(f"{PLACE}:make", options={"seed": 4}, features=[Feature("embed", "node")], dtype=torch.float64)
    loaded.start(make_batch([0, 1]))
    assert loaded.offer.widths == {"node": 6}
    assert loaded.hash != load_teacher(f"{PLACE}:make", features=[Feature("embed", "node")]).hash
    assert loaded.dtype == torch.float64


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("module:tests.teachers.foreign", {}, "write module:package.file:function"),
        ("module:tests.teachers.absent:make", {}, r"cannot import tests\.teachers\.absent"),
        (f"{PLACE}:absent", {}, "has no 'absent'"),
        (f"{PLACE}:A_NUMBER", {}, "A_NUMBER is a int, not a function"),
        (f"{PLACE}:not_a_teacher", {}, r"returned a Foreign, not a ForeignModule; wrap it"),
        (f"{PLACE}:lennard_jones", {"sigma": 1}, r"teacher\.options do not fit .* unexpected|got an unexpected"),
        ("mace", {}, "needs a checkpoint: mace:FILE"),
        ("embedded", {"a": 1}, r"teacher\.options .* are for foreign teachers"),
    ],
)
def test_mistakes_in_the_path_are_said(path, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load_teacher(path, options=options)


def test_outputs_move_to_another_device() -> None:
    output = TeacherOutput(energy=torch.ones(2), graph=make_batch([0]).graph(CUTOFF).csr, cutoff=CUTOFF)
    moved = output.to("meta")
    assert moved.energy.device.type == moved.graph.edge_src.device.type == "meta"
    assert moved.forces is None


@pytest.mark.gpu
def test_a_teacher_may_live_on_another_device_than_the_batch(teacher) -> None:
    batch = make_batch([0, 1])
    want = teacher(batch, EVERYTHING)
    away = teacher_of().to("cuda")
    source = LiveTeacher(away, EVERYTHING)
    got = source(batch)
    for need in EVERYTHING:
        value = getattr(got, need)
        assert value.device.type == "cpu", need
        torch.testing.assert_close(value, getattr(want, need), rtol=1e-9, atol=1e-9)
    assert source.cost.settle() > 0
