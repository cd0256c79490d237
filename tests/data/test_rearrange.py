"""Copies of a batch: every field, every graph, and what a model makes of them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from fastkd_kernels import CSRGraph

from fastkd.config import ModelConfig
from fastkd.data.batch import Batch
from fastkd.data.batching import Pieces, collate
from fastkd.data.rearrange import PER_ATOM, PER_STRUCTURE, repeat_structures
from fastkd.data.structure import Structure
from fastkd.models import build_model

CUTOFFS = (2.5, 4.0)


def structure(atoms: int, seed: int, *, periodic: bool = False) -> Structure:
    generator = torch.Generator().manual_seed(seed)
    positions = 1.6 * torch.randn(atoms, 3, generator=generator, dtype=torch.float64)
    cell = {"cell": 5.0 * torch.eye(3, dtype=torch.float64).numpy(), "pbc": torch.ones(3, dtype=torch.bool).numpy()} if periodic else {}
    numbers = torch.randint(1, 9, (atoms,), generator=generator)
    more = {"tags": torch.randint(0, 3, (atoms,), generator=generator).numpy(), "fixed": (torch.arange(atoms) % 3 == 1).numpy()}
    forces = torch.randn(atoms, 3, generator=generator).numpy()
    return Structure(numbers.numpy(), positions.numpy(), energy=float(seed), forces=forces, **cell, **more)


def batch_of(structures: list[Structure]) -> Batch:
    pieces = [Pieces.of(one, number, CUTOFFS) for number, one in enumerate(structures)]
    batch = collate(pieces, torch.float64)
    return replace(batch, weight=torch.rand(batch.num_graphs, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


MIXED = [structure(5, 1), structure(1, 2), structure(7, 3, periodic=True)]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("structures", [MIXED, [structure(1, 4)], []], ids=["mixed", "one atom", "none"])
def test_copies_are_the_batch_laid_end_to_end(structures: list[Structure], times: int) -> None:
    if not structures:
        batch = replace(batch_of(MIXED[:1]), **empty_fields(batch_of(MIXED[:1])))
        assert repeat_structures(batch, times).num_atoms == 0
        return
    batch = batch_of(structures)
    copies, wanted = repeat_structures(batch, times), batch_of(structures * times)
    for name in ("atomic_numbers", "positions", "forces", "tags", "fixed", "atom_ptr", "graph_index", "cell", "pbc", "energy", "labelled"):
        one, two = getattr(copies, name), getattr(wanted, name)
        assert (one is None) == (two is None), name
        assert one is None or torch.equal(one, two), name
    assert torch.equal(copies.structure_index, batch.structure_index.repeat(times))
    assert torch.equal(copies.weight, batch.weight.repeat(times))
    for cutoff in CUTOFFS:
        mine, theirs = copies.graph(cutoff), wanted.graph(cutoff)
        for one, two in zip(mine.csr.tensors, theirs.csr.tensors, strict=True):
            assert torch.equal(one, two)
        assert torch.equal(mine.edge_shift, theirs.edge_shift)
        assert torch.equal(mine.pair, theirs.pair)
        assert (mine.pairs is None) == (theirs.pairs is None)
        if mine.pairs is not None and theirs.pairs is not None:
            assert torch.equal(mine.pairs.pair_edges, theirs.pairs.pair_edges)
        # one edge of each pair, whichever
        assert torch.equal(mine.pair[mine.pair_edge], torch.arange(mine.pair_edge.shape[0]))


def test_no_field_is_forgotten() -> None:
    others = {"atom_ptr", "graph_index", "graphs", "bonds", "hessian_rows"}
    assert {item.name for item in fields(Batch)} == {*PER_ATOM, *PER_STRUCTURE} | others


def empty_fields(batch: Batch) -> dict[str, object]:
    """All fields of a batch without structures."""
    none = {name: getattr(batch, name)[:0] for name in ("atomic_numbers", "positions", "forces", "tags", "fixed", "graph_index")}
    none |= {name: getattr(batch, name)[:0] for name in ("cell", "pbc", "energy", "labelled", "structure_index", "weight")}
    empty = torch.zeros(0, dtype=torch.int64)
    graph = batch.graph(CUTOFFS[0])
    csr = CSRGraph.from_edges(empty, empty, 0)
    graphs = {CUTOFFS[0]: replace(graph, csr=csr, edge_shift=graph.edge_shift[:0], pair=empty, pair_edge=empty)}
    return {**none, "atom_ptr": torch.zeros(1, dtype=torch.int64), "graphs": graphs}


def test_a_batch_without_directions_back_has_no_pairs() -> None:
    batch = batch_of([structure(4, 5)])
    graph = batch.graph(CUTOFFS[0])
    half = graph.csr.edge_src < graph.csr.edge_dst
    csr = CSRGraph.from_edges(graph.csr.edge_src[half], graph.csr.edge_dst[half], batch.num_atoms)
    numbers = torch.arange(csr.num_edges)
    lone = replace(graph, csr=csr, edge_shift=graph.edge_shift[half], pair=numbers, pair_edge=numbers)
    copies = repeat_structures(replace(batch, graphs={CUTOFFS[0]: lone}), 2)
    assert copies.graph(CUTOFFS[0]).pairs is None


def test_a_model_says_the_same_of_every_copy() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(kind="painn", width=8, layers=2, cutoff=4.0)).double()
    model.know_elements({int(z) for one in MIXED for z in one.atomic_numbers})
    batch = batch_of(MIXED)
    one, three = model(batch), model(repeat_structures(batch, 3))
    torch.testing.assert_close(three.energy, one.energy.repeat(3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(three.forces, one.forces.repeat(3, 1), rtol=1e-12, atol=1e-12)
