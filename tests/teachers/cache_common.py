"""A teacher that says random numbers in every shape, its structures, and caches of what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastkd.data.batch import Batch
from fastkd.teachers.cache_build import CachePlan, build_shards, join
from fastkd.teachers.cache_dtypes import dtypes_of
from fastkd.teachers.cache_key import CacheKey
from fastkd.teachers.output import TeacherOutput
from tests.distill.common import radius_graph

CUTOFF = 3.0
NEEDS = frozenset(
    {
        "energy",
        "forces",
        "atom_energy",
        "node",
        "vector",
        "edge",
        "edge_sum",
        "edge_vector_sum",
        "degree",
        "node@regular_1",
        "graph_feature",
    }
)
#: What PaiNN has of it.
PAINN = NEEDS - {"graph_feature"}


def structure(number: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """1 to 6 atoms; of every fourth structure they are too far apart for an edge."""
    generator = torch.Generator().manual_seed(number)
    atoms = 1 + int(torch.randint(6, (), generator=generator))
    spread = 9.0 if number % 4 == 3 else 1.3
    place = spread * torch.arange(atoms)[:, None] * torch.tensor([1.0, 0.2, 0.0]) + 0.2 * torch.rand(atoms, 3, generator=generator)
    return torch.tensor([1, 6, 8])[torch.randint(3, (atoms,), generator=generator)], place.to(dtype)


def make_batch(numbers: Sequence[int], dtype: torch.dtype = torch.float32) -> Batch:
    parts = [structure(number, dtype) for number in numbers]
    counts = torch.tensor([len(kinds) for kinds, _ in parts])
    positions, index = torch.cat([place for _, place in parts]), torch.repeat_interleave(counts)
    return Batch(
        atomic_numbers=torch.cat([kinds for kinds, _ in parts]),
        positions=positions,
        atom_ptr=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        graph_index=index,
        cell=torch.zeros(len(parts), 3, 3, dtype=dtype),
        pbc=torch.zeros(len(parts), 3, dtype=torch.bool),
        energy=torch.zeros(len(parts), dtype=torch.float64),
        forces=torch.zeros_like(positions),
        labelled=torch.zeros(len(parts), dtype=torch.bool),
        structure_index=torch.tensor(numbers),
        graphs={CUTOFF: radius_graph(positions, index, CUTOFF)},
    )


class Chatty:
    """Says random numbers that depend on the structure alone, in every shape there is; counts how often it was asked."""

    hash, cutoff, dtype, device = "c" * 64, CUTOFF, torch.float32, torch.device("cpu")
    offer = type("Offer", (), {"edge_rule": "all"})()

    def __init__(self, scale: float = 1.0) -> None:
        self.asked: list[int] = []
        self.scale = scale

    def ask(self, batch: Batch, needs: frozenset[str]) -> TeacherOutput:
        return self(batch, needs)

    def __call__(self, batch: Batch, needs: frozenset[str]) -> TeacherOutput:
        self.asked += batch.structure_index.tolist()
        graph = batch.graph(CUTOFF)
        rows: dict[str, list[torch.Tensor]] = {}
        edges = graph.csr.edge_ptr[batch.atom_ptr].diff().tolist()
        for number, atoms, count in zip(batch.structure_index.tolist(), batch.atom_ptr.diff().tolist(), edges, strict=True):
            generator = torch.Generator().manual_seed(number)
            shapes = {"energy": (1,), "graph_feature": (1, 5), "forces": (atoms, 3), "atom_energy": (atoms,), "node": (atoms, 7)}
            shapes |= {"vector": (atoms, 3, 4), "edge_sum": (atoms, 6), "edge_vector_sum": (atoms, 3, 6), "node@regular_1": (atoms, 2)}
            shapes |= {"edge": (count, 6), "edge_direction": (count, 3)}
            for name, shape in shapes.items():
                dtype = torch.float64 if name == "energy" else torch.float32
                rows.setdefault(name, []).append(self.scale * torch.randn(shape, generator=generator, dtype=dtype))
        found: dict[str, Any] = {name: torch.cat(parts) for name, parts in rows.items()}
        layers = {"node@regular_1": found.pop("node@regular_1")}
        degree = graph.csr.edge_ptr.diff()
        return TeacherOutput(graph=graph.csr, cutoff=CUTOFF, degree=degree, edge_shift=graph.edge_shift, layers=layers, **found)


def make_plan(path: Path, numbers: Sequence[int], *, needs: frozenset[str] = NEEDS, dtype: Any = "own", teacher: Any = None) -> CachePlan:
    key = CacheKey.of(teacher or Chatty(), dtypes_of(dtype, needs), data="d" * 64, data_dtype="float32")  # type: ignore[arg-type]
    return CachePlan(key, path, tuple(tuple(numbers[first : first + 3]) for first in range(0, len(numbers), 3)))


def built(path: Path, numbers: Sequence[int], teacher: Any = None, **options: Any) -> Path:
    plan = make_plan(path, numbers, **options)
    build_shards(plan, teacher or Chatty(), make_batch)
    return join(plan)


def assert_same(found: TeacherOutput, wanted: TeacherOutput, needs: frozenset[str] = NEEDS) -> None:
    for need in needs:
        assert found.get(need).dtype == wanted.get(need).dtype, need
        assert torch.equal(found.get(need), wanted.get(need)), need
    assert torch.equal(found.graph.edge_src, wanted.graph.edge_src)
    assert torch.equal(found.graph.edge_dst, wanted.graph.edge_dst)
    for name in ("edge_direction", "edge_shift"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
