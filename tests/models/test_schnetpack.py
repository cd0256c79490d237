"""SchNetPack's PaiNN: trained weights on real data, variants, live models, and what is refused."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastkd.cli import main
from fastkd.data.batching import Pieces, collate
from fastkd.data.structure import Structure
from fastkd.data.units import ENERGY_UNITS
from fastkd.errors import CheckpointError, DataError
from fastkd.models import PaiNN, PaiNNOptions, load_model, save_model
from fastkd.models.convert_command import Request, convert_checkpoint
from fastkd.models.schnetpack import load_painn

from .structures import batch_of, make_model, random_molecule

KCAL = ENERGY_UNITS["kcal/mol"]
CUTOFF = 3.0
R = "representation."


def synthetic(width=8, layers=2, radial=6, *, basis="gaussian", shared_filters=False, shared_blocks=False, dtype=torch.float64, seed=0):
    """A state dict of the layout, with random weights."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return 0.3 * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    centres = torch.linspace(0, CUTOFF, radial)
    state = {"representation.cutoff_fn.cutoff": torch.tensor([CUTOFF]), "representation.embedding.weight": random(100, width)}
    if basis == "gaussian":
        state |= {"representation.radial_basis.offsets": centres, "representation.radial_basis.widths": centres[1].repeat(radial)}
    else:
        state["representation.radial_basis.freqs"] = torch.arange(1, radial + 1) * torch.pi / CUTOFF
    filters = 3 * width * (1 if shared_filters else layers)
    state |= {"representation.filter_net.weight": random(filters, radial), "representation.filter_net.bias": random(filters)}
    for number in range(layers):
        if shared_blocks and number:
            names = [name for name in state if name.startswith((R + "interactions.0.", R + "mixing.0."))]
            state |= {name.replace(".0.", f".{number}.", 1): state[name] for name in names}
            continue
        for net, start, inputs in (("interatomic", "interactions", width), ("intraatomic", "mixing", 2 * width)):
            for layer, shape in enumerate(((width, inputs), (3 * width, width))):
                name = f"representation.{start}.{number}.{net}_context_net.{layer}"
                state |= {f"{name}.weight": random(*shape), f"{name}.bias": random(shape[0])}
        state[f"representation.mixing.{number}.mu_channel_mix.weight"] = random(2 * width, width)
    for layer, shape in enumerate(((width // 2, width), (1, width // 2))):
        state |= {f"output_modules.0.outnet.{layer}.weight": random(*shape), f"output_modules.0.outnet.{layer}.bias": random(shape[0])}
    return state


def offsets(mean=-2.5):
    return {"postprocessors.1.mean": torch.tensor([mean], dtype=torch.float64), "postprocessors.1.atomref": torch.arange(100.0)}


# real data


def data_folder():
    folder = Path(os.environ.get("FASTKD_DATA", ""))
    if not os.environ.get("FASTKD_DATA") or not (folder / "rmd17_ethanol.npz").is_file():
        pytest.skip("needs the folder of rMD17 ethanol and SchNetPack's trained models in FASTKD_DATA")
    return folder


@pytest.mark.parametrize(("number", "expected"), [(1, 7.347), (2, 7.243)])
def test_the_trained_models_have_their_force_error_on_rmd17_ethanol(number, expected, tmp_path, capsys):
    folder = data_folder()
    file = folder / "teachers" / f"schnetpack_painn_rmd17_ethanol_{number}.npz"
    arguments = ["--energy-unit", "kcal/mol", "--elements", "H", "C", "O"]
    assert main(["convert", "checkpoint", str(file), str(tmp_path), *arguments]) == 0
    assert "589,057" in capsys.readouterr().out
    model = load_model(tmp_path)
    with np.load(folder / "rmd17_ethanol.npz") as data:
        frames, numbers = data["test_01"], data["atomic_numbers"].astype(np.int64)
        positions, energies, forces = (data[name] for name in ("positions", "energy", "forces"))
    energy_errors, force_errors = [], []
    for first in range(0, len(frames), 100):
        structures = [Structure(numbers, positions[i], energy=energies[i], forces=forces[i]) for i in frames[first : first + 100]]
        batch = collate([Pieces.of(structure, i, (model.cutoff,)) for i, structure in enumerate(structures)])
        prediction = model(batch)
        energy_errors.append((prediction.energy - batch.energy).abs())
        force_errors.append((prediction.forces - batch.forces).abs())
    # what the live SchNetPack model with these weights has too, in meV/Å, over all components
    assert 1e3 * torch.cat(force_errors).mean().item() == pytest.approx(expected, abs=0.002)
    # meV; the labels are total energies of 4.2 keV, so that offsets and units are right as well
    assert 1e3 * torch.cat(energy_errors).mean().item() < 2.0


# variants


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"basis": "bessel"},
        {"shared_filters": True},
        {"shared_blocks": True},
        {"shared_filters": True, "shared_blocks": True, "layers": 3},
    ],
    ids=lambda variant: "_".join(variant) or "plain",
)
def test_variants_are_kept_and_survive_a_checkpoint(variant, tmp_path):
    foreign = load_painn(synthetic(**variant), energy_unit="eV", epsilon=1e-6)
    model = foreign.model
    options = model.options
    assert (options.shared_filters, options.shared_blocks) == (variant.get("shared_filters", False), variant.get("shared_blocks", False))
    assert options.basis == variant.get("basis", "gaussian")
    assert options.norm_epsilon == 1e-6
    assert (options.first_element, options.last_element, options.envelope) == (0, 99, "cosine")
    if options.shared_blocks:
        assert model.updates[1] is model.updates[0]
    assert (model.messages[1].filter is model.messages[0].filter) == options.shared_filters
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.options == options
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    batch = batch_of(random_molecule(9, 1), cutoff=CUTOFF)
    assert torch.equal(loaded(batch).forces, model(batch).forces)


def test_units_references_and_elements():
    state = synthetic()
    batch = batch_of(random_molecule(9, 1), random_molecule(4, 2), cutoff=CUTOFF)
    plain = load_painn(state, energy_unit="eV").model(batch)
    foreign = load_painn({**state, **offsets()}, energy_unit="kcal/mol", elements=["H", "C", "N", "O"])
    assert foreign.model.known_element.nonzero().flatten().tolist() == [1, 6, 7, 8]
    assert "kcal/mol" in foreign.notes[0]
    per_atom = foreign.model(batch)
    references = torch.zeros(2, dtype=torch.float64).index_add(0, batch.graph_index, -2.5 + batch.atomic_numbers.double())
    torch.testing.assert_close(per_atom.energy, KCAL * (plain.energy + references))
    torch.testing.assert_close(per_atom.forces, KCAL * plain.forces)
    whole = load_painn({**state, "postprocessors.1.mean": torch.tensor(-2.5)}, energy_unit="kcal/mol", extensive_mean=False).model(batch)
    torch.testing.assert_close(whole.energy, KCAL * (plain.energy - 2.5))


@pytest.mark.parametrize("basis", ["gaussian", "bessel"])
def test_lengths_in_another_unit(basis):
    state = synthetic(basis=basis)
    ours, in_nm = (load_painn(state, energy_unit="eV", length_unit=unit).model for unit in ("Å", "nm"))
    numbers, positions = random_molecule(9, 1)
    batch = batch_of((numbers, positions), cutoff=CUTOFF)
    scaled = replace(batch, positions=10 * positions, graphs={10 * CUTOFF: batch.graph(CUTOFF)})
    a, b = ours(batch), in_nm(scaled)
    torch.testing.assert_close(a.energy, b.energy, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(a.forces, 10 * b.forces, rtol=1e-9, atol=1e-10)


# files


def test_files_of_its_trainer_and_others(tmp_path, capsys):
    state = {**synthetic(), **offsets()}
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "last.ckpt")
    torch.save(state, tmp_path / "state.pt")
    np.savez(tmp_path / "state.npz", train_idx=np.arange(3), **{name: value.numpy() for name, value in state.items()})
    models = [convert_checkpoint(tmp_path / name, Request(energy_unit="eV")).model for name in ("last.ckpt", "state.pt", "state.npz")]
    batch = batch_of(random_molecule(9, 1), cutoff=CUTOFF)
    energies = [model(batch).energy for model in models]
    assert torch.equal(energies[0], energies[1])
    assert torch.equal(energies[0], energies[2])
    for arguments, message in [
        ([], "does not say in which unit it was trained: give --energy-unit, one of eV"),
        (["--energy-unit", "kcal"], "Did you mean kcal/mol?"),
        (["--energy-unit", "eV", "--elements", "Xx"], "no such element"),
        (["--energy-unit", "eV", "--no-ema"], "SchNetPack has neither"),
    ]:
        assert main(["convert", "checkpoint", str(tmp_path / "state.pt"), str(tmp_path / "out"), *arguments]) == 2
        assert message in capsys.readouterr().err
    for arguments in (["convert", "checkpoint", str(tmp_path / "state.npz"), "--inspect"], ["inspect", str(tmp_path / "state.pt")]):
        assert main(arguments) == 0
        assert "as if in eV; a conversion needs --energy-unit" in capsys.readouterr().out
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    assert main(["convert", "checkpoint", str(tmp_path / "other.npz"), "--inspect"]) == 2
    assert "no state dict we know" in capsys.readouterr().err


def changed(**changes):
    return {name: value for name, value in {**synthetic(), **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no state dict of a SchNetPack PaiNN"),
        (changed(**{R + "cutoff_fn.eps": torch.zeros(1)}), "only CosineCutoff.*cutoff_fn.eps"),
        (changed(**{R + "cutoff_fn.cutoff": None}), "only CosineCutoff"),
        (changed(**{R + "radial_basis.offsets": torch.linspace(0.5, CUTOFF, 6)}), "only GaussianRBF with centres from 0"),
        (changed(**{R + "radial_basis.offsets": None}), "only GaussianRBF and BesselRBF"),
        (changed(**{R + "filter_net.bias": None}), "filter_net.bias is missing"),
        (changed(**{R + "mixing.1.mu_channel_mix.weight": None}), r"1 missing: 'mixing\.1\.mu_channel_mix\.weight'"),
        (changed(**{R + "electronic_embeddings.0.weight": torch.zeros(2)}), r"unexpected tensor 'electronic_embeddings\.0\.weight'"),
        (changed(**{"output_modules.2.outnet.0.weight": torch.zeros(2, 2)}), "2 output modules"),
        (changed(**{"output_modules.0.outnet.0.weight": torch.zeros(8, 8)}), r"8 → 4 → 1.*outnet\.0\.weight \[8, 8\]"),
        (changed(**{"postprocessors.0.scale": torch.ones(1)}), "only one AddOffsets"),
        (changed(**{R + "interactions.0.interatomic_context_net.0.weight": torch.zeros(3, 8)}), "does not fit"),
    ],
)
def test_what_is_not_supported_is_named(state, message):
    with pytest.raises(CheckpointError, match=message):
        load_painn(state, energy_unit="eV")


def test_unknown_units_and_bessel_of_another_cutoff():
    with pytest.raises(DataError, match="unknown energy unit 'kcal'"):
        load_painn(synthetic(), energy_unit="kcal")
    state = synthetic(basis="bessel")
    state[R + "radial_basis.freqs"] = state[R + "radial_basis.freqs"] * 1.5
    with pytest.raises(CheckpointError, match="different cutoffs"):
        load_painn(state, energy_unit="eV")


# live models


@pytest.fixture(scope="module")
def packages():
    """`schnetpack.nn` and `schnetpack.representation`."""
    import importlib

    from tests.kernels import peer_packages

    representation = peer_packages.schnetpack()
    return importlib.import_module("schnetpack.nn"), representation


def live(packages, state, *, basis="gaussian", layers=2, epsilon=1e-8, **shared):
    parts, representation = packages
    width, radial = state[R + "embedding.weight"].shape[1], state[R + "filter_net.weight"].shape[1]
    radial_basis = (parts.GaussianRBF if basis == "gaussian" else parts.BesselRBF)(radial, float(state[R + "cutoff_fn.cutoff"]))
    cutoff = parts.CosineCutoff(float(state[R + "cutoff_fn.cutoff"]))
    names = {"shared_filters": "shared_filters", "shared_blocks": "shared_interactions"}
    model = representation.PaiNN(
        width, layers, radial_basis, cutoff, epsilon=epsilon, **{names[name]: value for name, value in shared.items()}
    )
    head = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1)).double()
    model.double().load_state_dict({name.removeprefix(R): value for name, value in state.items() if name.startswith(R)})
    pairs = {
        f"{ours}.{kind}": state[f"output_modules.0.outnet.{theirs}.{kind}"]
        for theirs, ours in ((0, 0), (1, 2))
        for kind in ("weight", "bias")
    }
    head.load_state_dict(pairs)
    # its constants are made in float32; with the same numbers in float64 both must agree to the last digits
    if basis == "gaussian":
        centres = torch.linspace(0, float(model.cutoff_fn.cutoff), radial, dtype=torch.float64)
        model.radial_basis.offsets, model.radial_basis.widths = centres, torch.full_like(centres, float(centres[1]))
    else:
        model.radial_basis.freqs = torch.arange(1, radial + 1, dtype=torch.float64) * torch.pi / float(model.cutoff_fn.cutoff)
    return model, head


def live_outputs(model, head, batch, cutoff):
    csr, positions = batch.graph(cutoff).csr, batch.positions.clone().requires_grad_(True)
    vector = positions[csr.edge_src] - positions[csr.edge_dst]
    inputs = {"_atomic_numbers": batch.atomic_numbers, "_Rij": vector, "_idx_i": csr.edge_dst, "_idx_j": csr.edge_src}
    # the vectors it begins with take the default dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        out = model(inputs)
    finally:
        torch.set_default_dtype(before)
    energies = head(out["scalar_representation"]).squeeze(-1)
    (gradient,) = torch.autograd.grad(energies.sum(), positions)
    return energies.detach(), -gradient, out["scalar_representation"].detach(), out["vector_representation"].detach()


def compare(foreign, outputs, batch, ev=1.0):
    energies, forces, scalar, vector = outputs
    prediction = foreign.model.double()(batch)
    for got, want in (
        (prediction.atom_energy, ev * energies),
        (prediction.forces, ev * forces),
        (prediction.features.node, scalar),
        (prediction.features.vector, vector),
    ):
        assert ((got - want).abs().max() / want.abs().max()).item() < 1e-9


@pytest.mark.peers
@pytest.mark.parametrize("epsilon", [1e-8, 1e-3])
@pytest.mark.parametrize(
    "variant",
    [{}, {"basis": "bessel"}, {"shared_filters": True}, {"shared_blocks": True, "layers": 3}],
    ids=lambda variant: "_".join(variant) or "plain",
)
def test_live_models_agree_features_included(packages, variant, epsilon):
    state = synthetic(**variant)
    batch = batch_of(random_molecule(12, 1), random_molecule(5, 2), cutoff=CUTOFF)
    outputs = live_outputs(*live(packages, state, epsilon=epsilon, **variant), batch, CUTOFF)
    compare(load_painn(state, energy_unit="eV", epsilon=epsilon), outputs, batch)


@pytest.mark.peers
@pytest.mark.parametrize("number", [1, 2])
def test_the_trained_models_are_the_live_ones(packages, number):
    folder = data_folder()
    with np.load(folder / "teachers" / f"schnetpack_painn_rmd17_ethanol_{number}.npz") as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith(("representation.", "output_modules."))}
    with np.load(folder / "rmd17_ethanol.npz") as data:
        numbers = torch.from_numpy(data["atomic_numbers"].astype(np.int64))
        molecules = [(numbers, torch.from_numpy(data["positions"][i]).double()) for i in data["test_01"][:20]]
    batch = batch_of(*molecules, cutoff=5.0)
    outputs = live_outputs(*live(packages, state, layers=3), batch, 5.0)
    compare(load_painn(state, energy_unit="kcal/mol"), outputs, batch, KCAL)


# options that came with it


def test_epsilon_and_sharing_are_options_of_ours_too():
    torch.manual_seed(0)
    model = PaiNN(PaiNNOptions(width=8, layers=3, radial=6, shared_filters=True, shared_blocks=True))
    plain = PaiNN(PaiNNOptions(width=8, layers=3, radial=6))
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in (("shared", model), ("plain", plain))}
    block = sum(p.numel() for p in plain.messages[0].parameters()) + sum(p.numel() for p in plain.updates[0].parameters())
    assert count["plain"] - count["shared"] == 2 * block
    batch = batch_of(random_molecule(6, 0), cutoff=5.0)
    model.double()(batch).energy.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "norm_mix" not in name)
    one, other = make_model("painn"), make_model("painn")
    other.updates[0].norm_epsilon = 0.1
    batch = batch_of(random_molecule(6, 0))
    assert not torch.allclose(one(batch).energy, other(batch).energy)
