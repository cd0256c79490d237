"""Small molecules with harmonic labels, batches made by hand, and a job to train on them: no files, no data package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.config import Config
from fastkd.config_loading import load_config, validate
from fastkd.data.batch import Batch, NeighborGraph
from fastkd.distill import Balance, build_terms
from fastkd.engine.ema import Average
from fastkd.engine.evaluate import predict
from fastkd.engine.loop import Job, validation_errors
from fastkd.engine.schedule import Schedule
from fastkd.engine.step import Trainee, make_optimizer, trainable
from fastkd.models import Potential, build_model
from fastkd.teachers import LiveTeacher, Offer, Teacher

ATOMS = 5
CUTOFF = 5.0


def neighbors(positions: Tensor, graph_index: Tensor, cutoff: float) -> NeighborGraph:
    """All pairs closer than the cutoff, sorted by destination."""
    close = (torch.cdist(positions, positions) < cutoff) & (graph_index[:, None] == graph_index[None, :])
    close.fill_diagonal_(False)
    dst, src = close.nonzero(as_tuple=True)
    key = torch.minimum(src, dst) * len(positions) + torch.maximum(src, dst)
    _, pair = torch.unique(key, return_inverse=True)
    pair_edge = torch.empty(int(pair.max()) + 1, dtype=torch.int64)
    pair_edge[pair.flip(0)] = torch.arange(len(pair)).flip(0)
    csr = CSRGraph.from_edges(src, dst, len(positions))
    return NeighborGraph(csr, cutoff, torch.zeros(len(src), 3, dtype=torch.int64), pair, pair_edge)


def make_batch(structures: Tensor, labelled: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Batch:
    """Structure k is a pentagon of carbons and hydrogens, rattled by the k-th seed, with E = 0.1 Σ_pairs (r − 2)² − 3 and its forces."""
    positions, energies, forces = [], [], []
    ideal = torch.tensor([[1.5, 0, 0], [0.4, 1.4, 0], [-1.2, 0.8, 0.3], [-1.2, -0.9, 0], [0.5, -1.4, -0.3]], dtype=torch.float64)
    for number in structures.tolist():
        shift = 0.1 * torch.randn(ATOMS, 3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        place = (ideal + shift).requires_grad_()
        energy = 0.1 * ((torch.pdist(place) - 2.0) ** 2).sum() - 3.0
        (gradient,) = torch.autograd.grad(energy, place)
        positions.append(place.detach())
        energies.append(energy.detach())
        forces.append(-gradient)
    graphs = len(structures)
    graph_index = torch.arange(graphs).repeat_interleave(ATOMS)
    place = torch.cat(positions)
    labelled = torch.ones(graphs, dtype=torch.bool) if labelled is None else labelled
    mask = labelled.double()
    return Batch(
        atomic_numbers=torch.tensor([6, 6, 1, 1, 1]).repeat(graphs),
        positions=place.to(dtype),
        atom_ptr=torch.arange(graphs + 1) * ATOMS,
        graph_index=graph_index,
        cell=torch.zeros(graphs, 3, 3, dtype=dtype),
        pbc=torch.zeros(graphs, 3, dtype=torch.bool),
        energy=torch.stack(energies) * mask,
        forces=(torch.cat(forces) * mask[graph_index][:, None]).to(dtype),
        labelled=labelled,
        structure_index=structures,
        graphs={CUTOFF: neighbors(place, graph_index, CUTOFF)},
    )


class Stream:
    """Endless random batches, some structures without labels; its state is its generator's."""

    def __init__(self, seed: int, *, unlabelled: bool) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.unlabelled = unlabelled

    def __next__(self) -> Batch:
        structures = torch.randperm(12, generator=self.generator)[:4]
        return make_batch(structures, structures < 6 if self.unlabelled else None)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def make_config(folder: Path, *options: str) -> Config:
    """A tiny run in a folder."""
    base: dict[str, Any] = {
        "run": {"dir": str(folder), "threads": 1},
        "model": {"width": 8, "layers": 2, "radial": 6, "cutoff": CUTOFF},
        "train": {"steps": 12, "warmup": 2, "evaluate_every": 3, "checkpoint_every": 4, "learning_rate": 1e-2},
    }
    return load_overridden(validate(base), options)


def load_overridden(config: Config, options: tuple[str, ...]) -> Config:
    from fastkd.config_loading import apply_override, to_tree

    tree = to_tree(config)
    for option in options:
        apply_override(tree, option)
    return validate(tree)


def seeded_model(width: int, seed: int) -> Potential:
    from fastkd.config import ModelConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(ModelConfig(width=width, layers=2, radial=6, cutoff=CUTOFF))


def make_job(folder: Path, *options: str) -> Job:
    """A job with a student of 8 features and, if there are terms, a teacher of 12 and a stream with unlabelled structures."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(folder, *options)
    student = seeded_model(8, config.run.seed).train()
    terms = source = None
    if config.distill.terms:
        teacher = Teacher(seeded_model(12, 99))
        terms = build_terms(config.distill, Offer.of(student, "student"), teacher.offer, seed=config.run.seed)
        source = LiveTeacher(teacher, terms.needs)
    validation = [make_batch(torch.arange(100, 104))]
    balance = None
    if terms is not None:
        bar = validation_errors(predict(teacher, validation).metrics(), config.loss)
        balance = Balance.of(config.distill, terms, list(student.parameters()), bar)
    parameters = trainable(student, terms)
    trainee = Trainee(
        student,
        terms,
        source,
        make_optimizer(parameters, config.train),
        Average(parameters, config.train.ema_decay),
        config.loss,
        config.train.clip,
        balance=balance,
    )
    return Job("test", config, trainee, Schedule(config.train), Stream(config.run.seed, unlabelled=bool(terms)), validation, threads=1)


def same(one: Any, other: Any, path: str = "") -> None:
    """Equal to the bit, but for clock times."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            if key != "seconds":
                same(one[key], other[key], f"{path}/{key}")
    else:
        assert one == other, path


__all__ = ["ATOMS", "CUTOFF", "Stream", "load_config", "make_batch", "make_config", "make_job", "neighbors", "same", "seeded_model"]
