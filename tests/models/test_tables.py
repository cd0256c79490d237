"""Models whose filters are tables are the models themselves: when a table is taken, when it is kept, and what it changes."""

import copy
import pickle

import pytest
import torch
from fastkd_kernels.radial_conv.tables import LIMITS, measure

from bench.training_step import ethanol, relative, training_step
from fastkd.models.painn import PaiNN, PaiNNOptions
from fastkd.models.schnet import SchNet, SchNetOptions

MODELS = {
    "schnet": lambda: SchNet(SchNetOptions(width=12, filters=10, layers=2, radial=16, cutoff=5.0)),
    "painn": lambda: PaiNN(PaiNNOptions(width=8, layers=3, radial=12, cutoff=5.0)),
    "painn-ocp-filter": lambda: PaiNN(PaiNNOptions(width=8, layers=2, radial=12, cutoff=5.0, smooth_bias=False)),
    "painn-bessel": lambda: PaiNN(PaiNNOptions(width=8, layers=2, radial=8, cutoff=5.0, basis="bessel", envelope="cosine")),
}
each_model = pytest.mark.parametrize("name", list(MODELS))


def model_of(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def outputs_and_gradients(model, batch, method):
    """Energies, forces and weight gradients of one training step."""
    model.tables.method = method
    target = torch.linspace(-1, 1, 3 * batch.num_atoms, dtype=batch.positions.dtype).view(-1, 3)

    def outputs():
        prediction = model(batch)
        return prediction.energy, prediction.forces

    energy, forces, _ = training_step(outputs, target, model.parameters())
    return {"energy": energy, "forces": forces} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@each_model
# float64 is bounded by the slopes' error of the finest tables (1e-9), float32 by rounding
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 3e-9), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("paired", [True, False], ids=["pairs", "edges"])
def test_a_step_with_tables_is_a_step(name, dtype, tolerance, paired):
    batch = ethanol(3, 0, dtype)
    if not paired:
        # a cached property: the graph forgets that edges have a reverse
        batch.graph(5.0).__dict__["pairs"] = None
    model = model_of(name, dtype)
    exact, table = (outputs_and_gradients(model, batch, method) for method in ("exact", "table"))
    assert exact.keys() == table.keys()
    for key, value in exact.items():
        assert relative(table[key], value) < tolerance, key


@each_model
def test_training_twice_on_one_graph_gives_the_same(name):
    # gradients by distances are handed out once a pass, and a new pass starts anew
    batch, model = ethanol(4, 0, torch.float32), model_of(name)
    first, second = (outputs_and_gradients(model, batch, "table") for _ in range(2))
    for key, value in first.items():
        assert torch.equal(second[key], value), key


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_a_table_is_taken_where_it_pays(name):
    model = model_of(name)
    networks = [block.filter.network for block in model.interactions] if name == "schnet" else [block.network for block in model.messages]
    grid, tables = model.tables(networks, torch.linspace(1, 4, 5000))
    assert len(tables) == len(networks)
    assert tables[0].shape[0] == grid.rows
    assert model.tables(networks, torch.linspace(1, 4, grid.knots)) is None  # a network at as many places costs no more
    assert model.tables(networks, torch.linspace(1, 4, 5000, dtype=torch.float64)) is None
    model.tables.method = "exact"
    assert model.tables(networks, torch.linspace(1, 4, 5000)) is None


@each_model
def test_tables_of_frozen_weights_are_kept_until_the_weights_change(name):
    model, batch = model_of(name), ethanol(2, 0, torch.float32)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model(batch)
    kept = model.tables._kept
    assert kept is not None
    before = model(batch).forces
    assert model.tables._kept is kept
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "filter" in n).mul_(1.5)
    assert relative(model(batch).forces, before) > 1e-4
    assert model.tables._kept is not kept


def exact_energy(model, batch):
    method, model.tables.method = model.tables.method, "exact"
    with torch.no_grad():
        energy = model(batch, forces=False).energy
    model.tables.method = method
    return energy


def test_kept_tables_follow_weights_that_change_without_a_trace():
    model, batch = model_of("schnet"), ethanol(4, 0, torch.float32)
    model.requires_grad_(False)
    for factor in (1.0, 1.3, 0.7):
        for parameter in model.parameters():
            parameter.data.mul_(factor)
        assert relative(model(batch).energy, exact_energy(model, batch)) < 1e-5, factor


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, weight):
        return weight * self.factor


def test_kept_tables_follow_weights_that_live_for_one_call():
    # each call computes its weights anew, and may find them where the last ones were
    model, batch = model_of("schnet"), ethanol(4, 0, torch.float32)
    for block in model.interactions:
        torch.nn.utils.parametrize.register_parametrization(block.filter.second, "weight", Scaled())
    with torch.no_grad():
        for factor in (1.0, 1.3, 0.7, 1.1):
            for block in model.interactions:
                block.filter.second.parametrizations.weight[0].factor.fill_(factor)
            assert relative(model(batch, forces=False).energy, exact_energy(model, batch)) < 1e-5, factor


@pytest.mark.parametrize("factor", [30, 300])
def test_frozen_weights_that_become_sharper_at_once_get_a_finer_grid(factor):
    model, batch = model_of("schnet"), ethanol(4, 0, torch.float32)
    model.requires_grad_(False)
    model(batch)
    with torch.no_grad():
        for block in model.interactions:
            block.filter.first.weight.mul_(factor)
    forces = model(batch).forces
    model.tables.method = "exact"
    assert relative(forces, model(batch).forces) < 1e-4


@each_model
@pytest.mark.parametrize("frozen", [True, False])
def test_tables_made_in_inference_mode_serve_forces(name, frozen):
    model, batch = model_of(name), ethanol(4, 0, torch.float32)
    model.requires_grad_(not frozen)
    with torch.inference_mode():
        model(batch, forces=False)
    forces = model(batch).forces
    assert torch.equal(forces, model_of(name)(ethanol(4, 0, torch.float32)).forces)


def test_a_model_made_in_inference_mode():
    batch = ethanol(4, 0, torch.float32)
    with torch.inference_mode():
        model = model_of("schnet")
        energy = model(batch, forces=False).energy
    assert torch.equal(energy, model_of("schnet")(batch).energy)


def test_no_tables_for_dtypes_without_limits_nor_under_autocast():
    model, batch = model_of("schnet", torch.float16), ethanol(3, 0, torch.float16)
    assert torch.isfinite(model(batch).forces).all()
    model, batch = model_of("schnet"), ethanol(3, 0, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(batch).forces).all()


@each_model
def test_a_kept_table_is_not_copied_or_saved(name):
    model, batch = model_of(name), ethanol(2, 0, torch.float32)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    forces = model(batch).forces
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.tables._kept is None
        assert torch.equal(twin(batch).forces, forces)
    assert not any("table" in key for key in model.state_dict())


def test_no_table_for_a_filter_with_a_kink():
    model, batch = model_of("schnet"), ethanol(3, 0, torch.float32)
    with torch.no_grad():
        # so steep that its softplus is a kink
        model.interactions[0].filter.first.weight.mul_(3000)
    assert model.tables([block.filter.network for block in model.interactions], torch.linspace(1, 4, 5000)) is None
    assert torch.isfinite(model(batch).forces).all()


def networks_of(model):
    return [block.filter.network for block in model.interactions]


def test_a_restored_builder_goes_on_exactly():
    model, twin, lengths = model_of("schnet"), model_of("schnet"), torch.linspace(1, 4, 5000)
    knots = []
    for step in range(60):
        with torch.no_grad():
            for one in (model, twin):
                # filters become steeper with every step, and need more knots at some
                for block in one.interactions:
                    block.filter.first.weight.mul_(1.08)
        if step == 21:
            # a process dies, another one takes its place
            state = pickle.loads(pickle.dumps(twin.tables.state_dict()))
            fresh = model_of("schnet").tables
            fresh.load_state_dict(state)
            twin.tables = fresh
        one, other = (m.tables(networks_of(m), lengths) for m in (model, twin))
        assert (one is None) == (other is None)
        if one is not None:
            knots.append(one[0].knots)
            assert one[0] == other[0]
            assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))
        assert model.tables.state_dict() == twin.tables.state_dict()
    # the grid was refined on the way, else this test sees nothing
    assert len(set(knots)) > 1
    assert knots == sorted(knots)


def test_a_refined_table_stays_within_its_limit():
    model, lengths = model_of("schnet"), torch.linspace(1, 4, 5000)
    builder, worst = model.tables._builder, 0.0
    for _ in range(60):
        with torch.no_grad():
            for block in model.interactions:
                block.filter.first.weight.mul_(1.02)
        found = model.tables(networks_of(model), lengths)
        if found is None:
            break
        for network in networks_of(model):
            value, _ = measure(builder.basis, network, builder.envelope, found[0])
            worst = max(worst, float(value))
    # roughness may double, and a dozen steps may pass, before the grid follows
    assert worst < 4 * LIMITS[torch.float32][0]


def test_loaded_weights_get_a_grid_of_their_own():
    model, sharp = model_of("schnet"), model_of("schnet")
    lengths = torch.linspace(1, 4, 5000)
    with torch.no_grad():
        for block in sharp.interactions:
            block.filter.first.weight.mul_(8)
    before, _ = model.tables(networks_of(model), lengths)
    model.load_state_dict(sharp.state_dict())
    after, _ = model.tables(networks_of(model), lengths)
    assert after.knots > before.knots
