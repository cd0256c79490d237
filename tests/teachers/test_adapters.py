"""Adapters against the packages themselves: same energies and forces as their own calculators, features as declared, a student that learns.

Each is skipped where its package is not installed: ``pip install 'fastkd[so3lr]'`` and so on (docs/distillation.md, Teachers).
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from fastkd.errors import CheckpointError, ConfigError, DataError
from fastkd.teachers import load_teacher
from fastkd.teachers.loading import ADAPTERS
from fastkd.teachers.sample import sample_batch
from tests.kernels import peer_packages

from .peers import a_student_learns, agrees_with_calculator, batch_of, energies_of_atoms_add_up, rattled

# warnings of other people's packages are theirs
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

MOLECULES = [rattled(molecule(name), seed=k) for k, name in enumerate(("CH3CH2OH", "H2O", "CH3SH"))]
CRYSTALS = [rattled(bulk("LiF", "rocksalt", a=4.03), seed=1), rattled(bulk("Si") * (2, 1, 1), seed=2)]


def started(name: str, structures, **options):
    teacher = load_teacher(name, options=options)
    teacher.start(batch_of(teacher, structures))
    return teacher


class TestSO3LR:
    @pytest.fixture(scope="class")
    @classmethod
    def teacher(cls):
        pytest.importorskip("so3krates_torch")
        return started("so3lr", MOLECULES)

    def test_it_says_what_its_calculator_says(self, teacher) -> None:
        from so3krates_torch.calculator.so3 import SO3LRCalculator

        agrees_with_calculator(teacher, SO3LRCalculator(default_dtype="float32"), MOLECULES, energy=2e-5, forces=2e-5)

    def test_a_periodic_box_too_in_float64(self) -> None:
        pytest.importorskip("so3krates_torch")
        from so3krates_torch.calculator.so3 import SO3LRCalculator

        box = rattled(molecule("CH3OH", cell=[6.0, 6.5, 7.0], pbc=True), seed=4)
        teacher = load_teacher("so3lr", dtype=torch.float64)
        default = torch.get_default_dtype()
        try:
            agrees_with_calculator(teacher, SO3LRCalculator(default_dtype="float64"), [box], energy=1e-10, forces=1e-9)
        finally:
            torch.set_default_dtype(default)  # the calculator changes it

    def test_features_and_energies_of_atoms(self, teacher) -> None:
        assert teacher.offer.widths == {"node": 128, "vector": 1}
        assert teacher.offer.outputs >= {"energy", "forces", "atom_energy"}
        energies_of_atoms_add_up(teacher, MOLECULES, 2e-3)
        assert teacher.licence.startswith("MIT")

    def test_elements_that_it_was_not_trained_on_are_not_known(self, teacher) -> None:
        assert teacher.known_element.nonzero().flatten().tolist() == [1, 6, 7, 8, 9, 15, 16, 17]

    def test_a_student_learns_from_it(self, tmp_path: Path) -> None:
        pytest.importorskip("so3krates_torch")
        terms = ["energy", "forces", "atom_energy", "n2n", "v2v"]
        assert a_student_learns(tmp_path, "so3lr", MOLECULES[:2], terms)["licence"].startswith("MIT")


class TestSevenNet:
    STRUCTURES = (*CRYSTALS, MOLECULES[1])

    @pytest.fixture(scope="class")
    @classmethod
    def teacher(cls):
        pytest.importorskip("sevenn")
        return started("sevennet", cls.STRUCTURES)

    def test_it_says_what_its_calculator_says(self, teacher) -> None:
        from sevenn.calculator import SevenNetCalculator

        agrees_with_calculator(teacher, SevenNetCalculator("7net-0", device="cpu"), self.STRUCTURES, energy=2e-5, forces=5e-5)

    def test_features_and_energies_of_atoms(self, teacher) -> None:
        assert teacher.offer.widths == {"node": 128}
        energies_of_atoms_add_up(teacher, self.STRUCTURES, 1e-4)
        assert int(teacher.known_element.sum()) == 89
        assert teacher.licence

    def test_the_node_feature_is_what_the_readout_reads(self, teacher) -> None:
        seen = []
        handle = teacher.module.reduce_input_to_hidden.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
        node = teacher(batch_of(teacher, self.STRUCTURES), frozenset({"node"})).node
        handle.remove()
        assert torch.equal(node, seen[0])

    def test_without_forces_nothing_is_differentiated(self, teacher, monkeypatch) -> None:
        monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: pytest.fail("a gradient was taken"))
        teacher(batch_of(teacher, self.STRUCTURES), frozenset({"energy", "node", "atom_energy"}))

    def test_a_student_learns_from_it(self, tmp_path: Path) -> None:
        pytest.importorskip("sevenn")
        card = a_student_learns(tmp_path, "sevennet", CRYSTALS[:1], ["energy", "forces", "atom_energy", "n2n"])
        assert "SevenNet" in card["model"]


class TestCHGNet:
    @pytest.fixture(scope="class")
    @classmethod
    def teacher(cls):
        pytest.importorskip("chgnet")
        return started("chgnet", CRYSTALS)

    def test_it_says_what_its_calculator_says(self, teacher) -> None:
        from chgnet.model.dynamics import CHGNetCalculator

        calculator = CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore")
        agrees_with_calculator(teacher, calculator, CRYSTALS, energy=2e-5, forces=2e-5)
        got = teacher(batch_of(teacher, CRYSTALS), frozenset({"stress"}))
        for k, atoms in enumerate(CRYSTALS):
            np.testing.assert_allclose(got.stress[k].numpy(), atoms.calc.get_property("stress", atoms), atol=2e-6)

    def test_features_and_energies_of_atoms(self, teacher) -> None:
        assert teacher.offer.widths == {"node": 64, "graph": 64}
        output = teacher(batch_of(teacher, CRYSTALS), frozenset({"node", "graph_feature"}))
        assert output.graph_feature.shape == (2, 64)
        assert output.node.shape == (sum(map(len, CRYSTALS)), 64)
        energies_of_atoms_add_up(teacher, CRYSTALS, 1e-4)
        assert "BSD" in teacher.licence

    def test_molecules_and_double_precision_are_refused(self, teacher) -> None:
        with pytest.raises(DataError, match="crystals only"):
            teacher(batch_of(teacher, MOLECULES), frozenset({"energy"}))
        with pytest.raises(ConfigError, match=r"works in torch\.float32 only"):
            load_teacher("chgnet", dtype=torch.float64)

    def test_a_student_learns_from_it(self, tmp_path: Path) -> None:
        pytest.importorskip("chgnet")
        card = a_student_learns(tmp_path, "chgnet", CRYSTALS[:1], ["energy", "forces", "atom_energy", "n2n"])
        assert "BSD" in card["licence"]


class TestMACE:
    """A small untrained model: the package ships no weights."""

    @pytest.fixture(scope="class")
    @classmethod
    def checkpoint(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        pytest.importorskip("mace")
        from e3nn import o3
        from mace import modules

        blocks = modules.interaction_classes
        torch.manual_seed(0)
        model = modules.ScaleShiftMACE(
            r_max=4.0,
            num_bessel=6,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=blocks["RealAgnosticResidualInteractionBlock"],
            num_interactions=2,
            num_elements=4,
            hidden_irreps=o3.Irreps("8x0e+8x1o"),
            MLP_irreps=o3.Irreps("8x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.array([-13.6, -1029.0, -2042.0, -10800.0]),
            avg_num_neighbors=4.0,
            atomic_numbers=[1, 6, 8, 16],
            correlation=2,
            radial_type="bessel",
            atomic_inter_scale=2.0,
            atomic_inter_shift=0.1,
        ).double()
        path = tmp_path_factory.mktemp("mace") / "small.model"
        torch.save(model, path)
        return str(path)

    def test_it_says_what_its_calculator_says(self, checkpoint) -> None:
        from mace.calculators import MACECalculator

        structures = [*MOLECULES, rattled(molecule("CH3OH", cell=[5.0, 5.5, 6.0], pbc=True), seed=4)]
        teacher = started(f"mace:{checkpoint}", MOLECULES, trust_pickle=True)
        model = torch.load(checkpoint, weights_only=False)
        default = torch.get_default_dtype()
        try:
            calculator = MACECalculator(models=[model], device="cpu", default_dtype="float64")
            agrees_with_calculator(teacher, calculator, structures, energy=1e-9, forces=1e-9)
        finally:
            torch.set_default_dtype(default)  # the calculator changes it
        assert teacher.offer.widths == {"node": 8, "vector": 8}
        energies_of_atoms_add_up(teacher, MOLECULES, 1e-8)

    def test_a_pickle_has_to_be_trusted(self, checkpoint) -> None:
        with pytest.raises(ConfigError, match=r"can run any code; .*trust_pickle=true"):
            load_teacher(f"mace:{checkpoint}")

    def test_a_student_learns_from_it(self, tmp_path: Path, checkpoint) -> None:
        terms = ["energy", "forces", "atom_energy", "n2n", "v2v"]
        options = {"trust_pickle": True, "licence": "ASL"}
        assert a_student_learns(tmp_path, f"mace:{checkpoint}", MOLECULES[:2], terms, options)["licence"] == "ASL"


class TestSchNetPack:
    """A small untrained model: the package ships no weights."""

    REFERENCE = -7.5

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        pytest.importorskip("matscipy")
        package = peer_packages.schnetpack()
        vars(sys.modules["schnetpack"]).setdefault("__version__", "2")
        from schnetpack import atomistic, nn, transform
        from schnetpack.model import NeuralNetworkPotential

        torch.manual_seed(0)
        radial = nn.GaussianRBF(n_rbf=8, cutoff=3.5)
        offsets = transform.AddOffsets("energy", add_mean=True)
        offsets.mean = torch.tensor([cls.REFERENCE], dtype=torch.float64)
        model = NeuralNetworkPotential(
            package.PaiNN(n_atom_basis=12, n_interactions=2, radial_basis=radial, cutoff_fn=nn.CosineCutoff(3.5)),
            input_modules=[atomistic.PairwiseDistances()],
            output_modules=[atomistic.Atomwise(n_in=12, output_key="energy"), atomistic.Forces(energy_key="energy", force_key="forces")],
            postprocessors=[offsets],
        )
        return model.double().eval()

    @pytest.fixture(scope="class")
    @classmethod
    def checkpoint(cls, model, tmp_path_factory) -> str:
        path = tmp_path_factory.mktemp("schnetpack") / "best_model"
        torch.save(model, path)
        return str(path)

    def test_it_says_what_the_package_says_with_its_own_neighbour_list(self, model, checkpoint) -> None:
        from schnetpack import transform

        structures = [*MOLECULES, rattled(molecule("CH3OH", cell=[5.0, 5.5, 6.0], pbc=True), seed=4)]
        teacher = started(f"schnetpack:{checkpoint}", structures, trust_pickle=True)
        assert teacher.offer.widths == {"node": 12, "vector": 12}
        batch = batch_of(teacher, structures)
        got = teacher(batch, frozenset({"energy", "forces"}))
        for k, atoms in enumerate(structures):
            one = {
                "_atomic_numbers": torch.tensor(atoms.numbers),
                "_positions": torch.tensor(atoms.positions),
                "_cell": torch.tensor(np.array(atoms.cell))[None],
                "_pbc": torch.tensor(atoms.pbc)[None],
                "_n_atoms": torch.tensor([len(atoms)]),
                "_idx_m": torch.zeros(len(atoms), dtype=torch.int64),
            }
            one = transform.ASENeighborList(cutoff=3.5)({**one, "_cell": one["_cell"][0], "_pbc": one["_pbc"][0]})
            want = model({**one, "_cell": one["_cell"][None], "_pbc": one["_pbc"][None]})
            first, last = int(batch.atom_ptr[k]), int(batch.atom_ptr[k + 1])
            torch.testing.assert_close(got.energy[k], want["energy"].detach().reshape(()), rtol=1e-11, atol=1e-10)
            torch.testing.assert_close(got.forces[first:last], want["forces"].detach(), rtol=1e-9, atol=1e-11)
        assert torch.equal(teacher.reference_energy, torch.full((119,), self.REFERENCE, dtype=torch.float64))

    def test_its_units_are_those_that_the_user_names(self, model, checkpoint) -> None:
        ours = load_teacher(f"schnetpack:{checkpoint}", options={"trust_pickle": True, "energy_unit": "kcal/mol"})
        plain = load_teacher(f"schnetpack:{checkpoint}", options={"trust_pickle": True})
        batch = batch_of(plain, MOLECULES)
        kcal = 0.0433641
        a, b = (t(batch, frozenset({"energy", "forces"})) for t in (ours, plain))
        torch.testing.assert_close(a.energy, b.energy * kcal, rtol=1e-5, atol=0)
        torch.testing.assert_close(a.forces, b.forces * kcal, rtol=1e-5, atol=1e-12)

    def test_a_student_learns_from_it(self, tmp_path: Path, model, checkpoint) -> None:
        options = {"trust_pickle": True, "licence": "CC0"}
        assert (
            a_student_learns(tmp_path, f"schnetpack:{checkpoint}", MOLECULES[:2], ["energy", "forces", "n2n", "v2v"], options)["licence"]
            == "CC0"
        )


class TestFairchem:
    """The package ships no weights: that the right calculator is made with the right arguments, and asked for labels."""

    @pytest.mark.parametrize("generation", [1, 2])
    def test_the_packages_own_calculator_is_asked(self, generation: int, monkeypatch, tmp_path: Path) -> None:
        import importlib.util

        from .foreign import lennard_jones

        made = {}

        class OCPCalculator:
            def __new__(cls, **given):
                made.update(given)
                return lennard_jones()

        class FAIRChemCalculator:
            def __new__(cls, predictor, task_name):
                made.update(predictor=predictor, task=task_name)
                return lennard_jones()

        modules = {
            "fairchem.core.common.relaxation.ase_utils": SimpleNamespace(OCPCalculator=OCPCalculator),
            "fairchem.core.units.mlip_unit": SimpleNamespace(load_predict_unit=lambda path, device: (path, device)),
            "fairchem.core": SimpleNamespace(FAIRChemCalculator=FAIRChemCalculator),
        }
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *a: (generation == 2 or None) if name == "fairchem.core.calculate" else name == "fairchem" or find(name, *a),
        )
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        checkpoint = tmp_path / "model.pt"
        checkpoint.write_text("weights")
        teacher = load_teacher(f"fairchem:{checkpoint}", options={"task": "omol", "licence": "FAIR Chemistry License"})
        expected = {1: {"checkpoint_path": str(checkpoint), "cpu": True}, 2: {"predictor": (str(checkpoint), "cpu"), "task": "omol"}}
        assert made == expected[generation]
        assert teacher.licence == "FAIR Chemistry License"
        assert teacher(batch_of(teacher, MOLECULES), frozenset({"energy", "forces"})).forces.shape == (sum(map(len, MOLECULES)), 3)


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_missing_package_is_named_with_what_installs_it(name: str, monkeypatch, tmp_path: Path) -> None:
    for package in (
        "so3krates_torch",
        "sevenn",
        "sevenn._keys",
        "chgnet",
        "chgnet.model",
        "mace",
        "mace.modules",
        "fairchem",
        "fairchem.core",
    ):
        monkeypatch.setitem(sys.modules, package, None)
    checkpoint = tmp_path / "model"
    checkpoint.write_text("no pickle")
    path = name if not ADAPTERS[name][2] else f"{name}:{checkpoint}"
    if name == "schnetpack":  # it is the pickle that imports the package
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_teacher(path, options={"trust_pickle": True})
        return
    with pytest.raises(ConfigError, match=rf"pip install 'fastkd\[{name}\]'"):
        load_teacher(path)


def test_the_sample_has_different_counts_of_everything() -> None:
    for periodic in (False, True):
        batch = sample_batch(torch.ones(119, dtype=torch.bool), 4.0, periodic=periodic)
        counts = {batch.num_atoms, batch.graph(4.0).num_edges, batch.num_graphs}
        assert len(counts) == 3


@pytest.mark.parametrize("name", ["chgnet", "sevennet"])
def test_a_file_for_an_adapter_with_weights_of_its_own_has_to_be_trusted_too(name: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pth"
    checkpoint.write_bytes(b"no pickle")
    with pytest.raises(ConfigError, match=r"can run any code; .*trust_pickle=true"):
        load_teacher(name, options={"checkpoint": str(checkpoint)})
