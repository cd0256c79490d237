"""DimeNet++: what the tests of all models do not say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastkd.config import ModelConfig
from fastkd.data.triplets import find_triplets
from fastkd.errors import CheckpointError, DataError
from fastkd.models import DimeNetPP, DimeNetPPOptions, build_model
from fastkd.models.dimenet_pp import glorot_orthogonal
from fastkd.models.dimenet_pp_weights import load_dimenet_pp_ocp, load_dimenet_pp_tensorflow
from fastkd.models.ocp_graph import ocp_graph
from tests import parity

from .structures import CUTOFF, OPTIONS, batch_of, make_model, random_molecule
from .tensor_bundle_writer import write_bundle

PARITY = sorted((Path(__file__).parents[1] / "fixtures" / "parity").glob("ocp_dimenetpp_*.safetensors"))


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize(
    ("options", "count"),
    # of PyTorch Geometric's and OCP's models, whose tables of elements have 95 rows where ours have 119
    [(DimeNetPPOptions(), 1_885_830), (DimeNetPPOptions.ocp(), 1_810_182)],
)
def test_number_of_parameters(options, count):
    assert sum(parameter.numel() for parameter in DimeNetPP(options).parameters()) == count + (119 - 95) * options.width


def brute_force_triplets(graph):
    source, target, shift = (part.tolist() for part in (graph.csr.edge_src, graph.csr.edge_dst, graph.edge_shift))
    found = set()
    for out in range(len(source)):
        for into in range(len(source)):
            total = [a + b for a, b in zip(shift[out], shift[into], strict=True)]
            if target[into] == source[out] and (source[into] != target[out] or any(total)):
                found.add((into, out))
    return found


@pytest.mark.parametrize("periodic", [False, True])
def test_triplets(periodic):
    _, x = random_molecule(5, 4)
    # a cell so small that an atom meets several images of another, and its own
    cell = 3.1 * torch.eye(3, dtype=torch.float64) if periodic else 50 * torch.eye(3, dtype=torch.float64)
    graph = ocp_graph(x, cell[None], torch.tensor([5]), 3.3, 0, symmetric=False)
    triplets = find_triplets(graph.csr, graph.edge_shift)
    pairs = list(zip(triplets.edge_in.tolist(), triplets.edge_out.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == brute_force_triplets(graph)
    own = graph.csr.edge_src[triplets.edge_in] == graph.csr.edge_dst[triplets.edge_out]
    assert own.any() == periodic
    assert triplets.edge_out.tolist() == sorted(triplets.edge_out.tolist())
    assert graph.triplets is graph.triplets


def test_features_and_energy():
    model, batch = make_model("dimenet_pp"), batch_of(random_molecule(6, 1), random_molecule(4, 2))
    prediction = model(batch)
    features, options = prediction.features, model.options
    assert len(features.layers) == model.num_blocks + 1 == 3
    assert all(layer.shape == (10, options.output_width) for layer in features.layers)
    assert features.node is features.layers[-1]
    assert features.edge.shape == (batch.graph(CUTOFF).num_edges, options.width)
    assert model.feature_widths == {"node": options.output_width, "edge": options.width, "atom_energy": 1}
    want = sum(layer @ output.last.weight[0] for layer, output in zip(features.layers, model.outputs, strict=True))
    torch.testing.assert_close(prediction.atom_energy, want * model.energy_scale)
    # the last block's messages are what the last output block sums
    last, csr = model.outputs[-1], batch.graph(CUTOFF).csr
    length = batch.edge_vectors(batch.graph(CUTOFF)).norm(dim=1)
    gated = torch.zeros(10, options.width, dtype=torch.float64).index_add(
        0, csr.edge_dst, last.gate(model._distance_basis(length)) * features.edge
    )
    torch.testing.assert_close(last.dense(last.up(gated)), features.node)


def test_distance_basis_is_the_papers():
    model = make_model("dimenet_pp")
    length = torch.linspace(0.4, CUTOFF, 9, dtype=torch.float64)[:, None]
    x, p = length / CUTOFF, model.options.envelope_exponent + 1
    envelope = 1 / x - (p + 1) * (p + 2) / 2 * x ** (p - 1) + p * (p + 2) * x**p - p * (p + 1) / 2 * x ** (p + 1)
    torch.testing.assert_close(model._distance_basis(length[:, 0]), envelope * torch.sin(model.frequencies * x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bend", [0.0, 1e-9, 1e-4])
def test_collinear_atoms_have_exact_finite_forces(bend):
    model, numbers, h = make_model("dimenet_pp"), torch.tensor([8, 6, 8, 1]), 1e-5
    x = torch.tensor([[-1.2, 0, 0], [0, bend, 0], [1.2, 0, 0], [2.3, 0, 0]], dtype=torch.float64)
    positions = x.clone().requires_grad_()
    forces = model(replace(batch_of((numbers, x)), positions=positions)).forces
    (curvature,) = torch.autograd.grad(forces.square().sum(), positions)
    assert torch.isfinite(forces).all()
    assert torch.isfinite(curvature).all()
    for atom, axis in [(1, 0), (1, 1), (2, 2), (3, 1)]:
        step = torch.zeros_like(x)
        step[atom, axis] = h
        plus, minus = (model(batch_of((numbers, x + sign * step))) for sign in (1, -1))
        slope = (plus.energy - minus.energy).item() / (2 * h)
        assert -slope == pytest.approx(forces[atom, axis].item(), rel=1e-6, abs=1e-8)
        bent = (plus.forces.square().sum() - minus.forces.square().sum()).item() / (2 * h)
        assert bent == pytest.approx(curvature[atom, axis].item(), rel=1e-5, abs=1e-6)


def test_coinciding_atoms_have_finite_forces():
    x = torch.tensor([[0.0, 0, 0], [0.0, 0, 0], [1.1, 0, 0]], dtype=torch.float64)
    batch = batch_of((torch.tensor([8, 6, 1]), x + torch.tensor([[0.0], [0.5], [0.0]])))
    model = make_model("dimenet_pp")
    prediction = model(replace(batch, positions=x))
    (prediction.energy.sum() + prediction.forces.square().mean()).backward()
    assert torch.isfinite(prediction.energy).all()
    assert torch.isfinite(prediction.forces).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_forces_without_angles_are_ocps_choice_and_can_be_left():
    options = OPTIONS["dimenet_pp_ocp"]
    assert not options.angle_forces
    partial = make_model("dimenet_pp_ocp")
    whole = DimeNetPP(replace(options, angle_forces=True)).double()
    whole.load_state_dict(partial.state_dict())
    (z, x), h = random_molecule(7, 5), 1e-5
    first, second = partial(batch_of((z, x))), whole(batch_of((z, x)))
    torch.testing.assert_close(first.energy, second.energy, rtol=0, atol=0)
    step = torch.zeros_like(x)
    step[3, 1] = h
    plus, minus = (whole(batch_of((z, x + sign * step)), forces=False).energy.item() for sign in (1, -1))
    slope = -(plus - minus) / (2 * h)
    assert second.forces[3, 1].item() == pytest.approx(slope, rel=1e-6)
    assert abs(first.forces[3, 1].item() - slope) > 1e-3 * abs(slope)
    torch.testing.assert_close(first.forces.sum(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["dimenet_pp", "dimenet_pp_ocp"])
def test_geometry_of_one_derivative_is_the_one_of_all(name):
    # with positions that require a gradient every order is kept, without them the first alone
    model = make_model(name)
    batch = batch_of(random_molecule(9, 1), random_molecule(6, 2), random_molecule(1, 3))
    found = []
    for everything in (False, True):
        model.zero_grad()
        prediction = model(replace(batch, positions=batch.positions.clone().requires_grad_(everything)))
        (prediction.energy.sum() + prediction.forces.square().sum()).backward()
        found.append([prediction.energy, prediction.forces, *(p.grad for p in model.parameters())])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_gradients_of_weights_can_be_differentiated_without_positions():
    # a step of meta-learning, or a Hessian by weights: orders in the weights are not cut
    model = make_model("dimenet_pp")
    batch = batch_of(random_molecule(7, 1))
    weights = [model.interactions[0].spherical[0].weight, model.interactions[1].neighbor[0].weight, model.frequencies]
    found = []
    for everything in (False, True):
        prediction = model(replace(batch, positions=batch.positions.clone().requires_grad_(everything)))
        first = torch.autograd.grad(prediction.forces.square().sum(), weights, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), weights))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


def test_no_blocks_and_a_basis_of_one():
    options = replace(OPTIONS["dimenet_pp"], layers=0, degrees=1, radial=1)
    prediction = DimeNetPP(options)(batch_of(random_molecule(5, 1), dtype=torch.float32))
    assert len(prediction.features.layers) == 1
    prediction = DimeNetPP(replace(options, layers=1))(batch_of(random_molecule(5, 1), dtype=torch.float32))
    assert torch.isfinite(prediction.forces).all()
    with pytest.raises(ValueError, match="degrees"):
        DimeNetPP(replace(options, degrees=0))


def test_initial_weights():
    torch.manual_seed(0)
    for shape in ((64, 64), (30, 80), (80, 30)):
        weight = torch.empty(shape, dtype=torch.float64)
        glorot_orthogonal(weight)
        assert weight.var().item() == pytest.approx(2 / sum(shape), rel=1e-12)
        small = weight @ weight.T if shape[0] <= shape[1] else weight.T @ weight
        torch.testing.assert_close(small, small[0, 0] * torch.eye(len(small), dtype=torch.float64))
    zero, other = (DimeNetPP(replace(OPTIONS["dimenet_pp"], output_init=init)) for init in ("zeros", "glorot_orthogonal"))
    assert not any(output.last.weight.any() for output in zero.outputs)
    assert all(output.last.weight.any() for output in other.outputs)


def test_build_model_takes_the_papers_proportions():
    options = build_model(ModelConfig(kind="dimenet_pp", width=16, layers=1, radial=4, cutoff=4.0)).options
    assert (options.width, options.triplet_width, options.output_width, options.layers, options.radial) == (16, 8, 32, 1, 4)


# OCP's model


@pytest.mark.parametrize("path", PARITY, ids=lambda path: path.stem)
def test_every_output_of_the_reference_agrees(path):
    file = parity.read(path)
    comparisons = parity.compare(file)
    assert {item.output for item in comparisons} == set(file.outputs) == {"energy", "forces"}
    assert max(item.relative for item in comparisons) < 1e-12  # three digits inside the tolerance


def test_what_tells_the_reference_from_its_neighbours():
    """Each choice of the reference shows in the numbers: without it they differ."""
    file = parity.read(PARITY[1])
    foreign = load_dimenet_pp_ocp(file.config, file.state)
    batch = parity.make_batch(file.inputs, foreign)
    for change, output in (({"rounded_basis": False}, "energy"), ({"angle_forces": True}, "forces")):
        model = DimeNetPP(replace(foreign.model.options, **change)).double()
        model.load_state_dict(foreign.model.state_dict())
        assert relative(getattr(model(batch), output).detach(), file.outputs[output]) > 1e-9


@pytest.mark.parametrize(
    ("config", "message"),
    [({"hidden_channels": 16}, "does not fit"), ({"num_spherical": 6}, "does not fit"), ({"num_blocks": 3}, "does not fit")],
)
def test_sizes_that_do_not_fit(config, message):
    file = parity.read(PARITY[0])
    with pytest.raises(CheckpointError, match=message):
        load_dimenet_pp_ocp({**file.config, **config}, file.state)


# The authors' checkpoints


def as_tensorflow(model):
    """Tensors under the names that `tf.train.Checkpoint` gives to the authors' model."""
    named = {"rbf_layer/frequencies": model.frequencies, "emb_block/embeddings": model.embedding.weight[:95]}

    def dense(name, layer):
        named[f"{name}/kernel"] = layer.weight.T
        if layer.bias is not None:
            named[f"{name}/bias"] = layer.bias

    dense("emb_block/dense_rbf", model.embed.radial[0])
    dense("emb_block/dense", model.embed.combine)
    for i, block in enumerate(model.outputs):
        dense(f"output_blocks/{i}/dense_rbf", block.gate)
        dense(f"output_blocks/{i}/up_projection", block.up)
        for j, layer in enumerate(block.dense):
            dense(f"output_blocks/{i}/dense_layers/{j}", layer[0])
        dense(f"output_blocks/{i}/dense_final", block.last)
    for i, block in enumerate(model.interactions):
        for k in (0, 1):
            dense(f"int_blocks/{i}/dense_rbf{k + 1}", block.radial[k])
            dense(f"int_blocks/{i}/dense_sbf{k + 1}", block.spherical[k])
        dense(f"int_blocks/{i}/dense_ji", block.direct[0])
        dense(f"int_blocks/{i}/dense_kj", block.neighbor[0])
        dense(f"int_blocks/{i}/down_projection", block.down[0])
        dense(f"int_blocks/{i}/up_projection", block.up[0])
        dense(f"int_blocks/{i}/final_before_skip", block.skip[0])
        for kind, layers in (("before", block.before), ("after", block.after)):
            for j, layer in enumerate(layers):
                for k in (0, 1):
                    dense(f"int_blocks/{i}/layers_{kind}_skip/{j}/dense_{k + 1}", layer.dense[k][0])
    tensors = {f"{name}/.ATTRIBUTES/VARIABLE_VALUE": np.ascontiguousarray(value.detach().numpy()) for name, value in named.items()}
    # what else may lie in such a file
    average = "emb_block/dense/bias/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE"
    return tensors | {average: np.zeros(8, "f4"), "save_counter/.ATTRIBUTES/VARIABLE_VALUE": np.array(3)}


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    model = DimeNetPP(replace(OPTIONS["dimenet_pp"], after_skip=3, output_layers=2, rounded_basis=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_tensorflow_checkpoint(teacher, tmp_path):
    write_bundle(tmp_path / "ckpt", as_tensorflow(teacher))
    loaded = load_dimenet_pp_tensorflow(tmp_path / "ckpt", cutoff=CUTOFF)
    assert loaded.options == teacher.options
    assert loaded.known_element.nonzero().flatten().tolist() == [1, 6, 7, 8, 9]
    batch = batch_of(random_molecule(7, 3), dtype=torch.float32)
    ours, want = loaded(batch), teacher(batch)
    assert torch.equal(ours.energy, want.energy)
    assert torch.equal(ours.forces, want.forces)
    batch.atomic_numbers[2] = 17
    with pytest.raises(DataError, match="holds Cl"):
        loaded(batch)
    assert load_dimenet_pp_tensorflow(tmp_path, cutoff=CUTOFF, elements=[1, 17]).known_element[17]


def test_tensorflow_checkpoints_that_do_not_fit(teacher, tmp_path):
    tensors, suffix = as_tensorflow(teacher), "/.ATTRIBUTES/VARIABLE_VALUE"

    def load(**changes):
        changed = {**tensors, **changes}
        write_bundle(tmp_path / "ckpt", {name: value for name, value in changed.items() if value is not None})
        return load_dimenet_pp_tensorflow(tmp_path / "ckpt", cutoff=CUTOFF)

    with pytest.raises(CheckpointError, match=r"missing.*interactions\.1\.down\.0\.weight"):
        load(**{f"int_blocks/1/down_projection/kernel{suffix}": None})
    with pytest.raises(CheckpointError, match="unexpected tensor 'int_blocks/0/dense_new/weight'"):
        load(**{f"int_blocks/0/dense_new/kernel{suffix}": np.ones((2, 2), "f4")})
    with pytest.raises(CheckpointError, match="size mismatch"):
        load(**{f"int_blocks/0/dense_ji/bias{suffix}": np.ones(3, "f4")})
    # DimeNet, the older model, has none of the pairs of matrices
    with pytest.raises(CheckpointError, match=r"no checkpoint of a DimeNet\+\+.*lin_sbf1"):
        load(**{f"int_blocks/{i}/dense_sbf1/kernel{suffix}": None for i in range(2)})
    with pytest.raises(CheckpointError, match="size mismatch"):
        load(**{f"output_blocks/{i}/dense_final/kernel{suffix}": np.ones((7, 12), "f4") for i in range(3)})
