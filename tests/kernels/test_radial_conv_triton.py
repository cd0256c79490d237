"""What only the Triton backend of radial_conv promises: every order of its primitives, the fused second pass, pieces of buckets, corners."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from fastkd_kernels.cfconv.cases import random_pairs
from fastkd_kernels.radial_conv import op, tiles
from fastkd_kernels.radial_conv.cases import GRID, random_lengths
from fastkd_kernels.radial_conv.op import radial_conv
from fastkd_kernels.radial_conv.places import RadialIndex
from fastkd_kernels.radial_conv.spline import SplineGrid
from fastkd_kernels.registry import Shape, random_graph
from torch import Tensor

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter only")
both_kinds = pytest.mark.parametrize("paired", [False, True], ids=["edges", "pairs"])


class Setting:
    """Random tensors, and the index of both backends."""

    def __init__(self, shape: Shape, paired: bool, dtype: torch.dtype = torch.float64, length: float | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
        units = graph.num_edges if pairs is None else pairs.num_pairs
        self.length = random_lengths(units, dtype, generator) if length is None else torch.full((units,), length, dtype=dtype)
        self.index = {
            backend: RadialIndex.from_lengths(self.length, GRID, graph, pairs, backend=backend) for backend in ("triton", "reference")
        }
        self.x, self.g, self.v = (torch.randn(shape.nodes, shape.width, generator=generator, dtype=dtype) for _ in range(3))
        self.table = torch.randn(GRID.rows, shape.width, generator=generator, dtype=dtype)
        self.c = torch.randn(units, generator=generator, dtype=dtype)

    def compare(self, function: Any) -> None:
        """``function(*index)`` on both backends."""
        got, want = (function(backend, *self.index[backend].arguments) for backend in ("triton", "reference"))
        torch.testing.assert_close(got, want)


@pytest.mark.triton
@interpreted
@both_kinds
@pytest.mark.parametrize("order", range(5))
def test_primitives_at_every_order(paired: bool, order: int) -> None:
    s = Setting(Shape(5, 30, 5), paired)
    for c in (None, s.c):
        s.compare(lambda backend, *index, c=c: op._conv(c, s.x, s.length, s.table, *index, order, False, backend))
        s.compare(lambda backend, *index, c=c: op._knots(c, s.x, s.g, s.length, *index, GRID.rows, order, backend))
    s.compare(lambda backend, *index: op._dot(s.x, s.g, s.length, s.table, *index, order, backend))


@pytest.mark.triton
@interpreted
@both_kinds
@pytest.mark.parametrize("shape", [Shape(1, 3, 2), Shape(6, 41, 5), Shape(4, 12, 129), Shape(3, 0, 3)], ids=str)
def test_fused_second_pass(paired: bool, shape: Shape) -> None:
    s = Setting(shape, paired)
    s.compare(lambda backend, *index: op._double_backward(s.x, s.g, s.v, s.c, s.length, s.table, *index, backend))


@pytest.mark.triton
@interpreted
@both_kinds
def test_training_on_forces_takes_the_fused_pass(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    s, calls, real = Setting(Shape(6, 40, 5), paired), [], op._double_backward

    def counted(*args: Any) -> Any:
        calls.append(args[-1])
        return real(*args)

    monkeypatch.setattr(op, "_double_backward", counted)
    found = []
    for index in s.index.values():
        table = s.table.clone().requires_grad_()
        length = s.length.clone().requires_grad_()
        x = s.x.clone().requires_grad_()
        # the force depends on the second layer's gradient by its input, and that is where three passes become one
        energy = (radial_conv(radial_conv(x, length, table, index).sin(), length, table, index) * s.g).sum()
        (force,) = torch.autograd.grad(energy, length, create_graph=True)
        (energy + force.square().sum()).backward(inputs=[x, table])
        found.append((x.grad, table.grad))
    torch.testing.assert_close(*found)
    assert "triton" in calls


@pytest.mark.triton
@interpreted
@both_kinds
@pytest.mark.parametrize("number", [1, 7])
def test_a_full_bucket_in_pieces(paired: bool, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All units between the same two knots; 11 in 7 pieces leave one ragged and some empty."""
    monkeypatch.setattr(tiles, "pieces", lambda units, intervals: number)
    s = Setting(Shape(4, 11, 3), paired, length=0.77)
    s.compare(lambda backend, *index: op._double_backward(s.x, s.g, s.v, s.c, s.length, s.table, *index, backend)[2])


@pytest.mark.triton
@interpreted
@both_kinds
def test_all_units_beyond_the_cutoff(paired: bool) -> None:
    s = Setting(Shape(4, 20, 3), paired, length=GRID.cutoff)
    # what lies beyond must not be read: it may be anything
    table = torch.full_like(s.table, float("nan"))
    index = s.index["triton"].arguments
    results = [
        op._conv(None, s.x, s.length, table, *index, 0, False, "triton"),
        op._dot(s.x, s.g, s.length, table, *index, 2, "triton"),
        *op._backward(s.x, s.g, s.length, table, *index, True, True, "triton"),
        *op._double_backward(s.x, s.g, s.v, s.c, s.length, table, *index, "triton"),
    ]
    assert not any(bool(result.any()) for result in results)


@pytest.mark.triton
@interpreted
@both_kinds
def test_same_bits_twice(paired: bool) -> None:
    s = Setting(Shape(5, 60, 7), paired, torch.float32)

    def run() -> list[Tensor]:
        index = s.index["triton"].arguments
        first = op._backward(s.x, s.g, s.length, s.table, *index, True, True, "triton")
        return [*first, *op._double_backward(s.x, s.g, s.v, s.c, s.length, s.table, *index, "triton")]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_tiles_follow_from_sizes() -> None:
    rows = SplineGrid(cutoff=5.0).rows
    for width, itemsize in ((1, 4), (64, 4), (128, 2), (128, 4), (128, 8), (129, 4)):
        tile = tiles.node_tile(width, rows, itemsize)
        assert rows * itemsize * tile["BLOCK_F"] <= tiles.SLICE_BYTES
        assert tile["BLOCK_E"] * tile["BLOCK_F"] <= tiles.TILE
    # a table too long for the cache still gets whole sectors of memory
    assert tiles.node_tile(128, 10000, 4)["BLOCK_F"] == 32
    assert tiles.pieces(0, 160) == 1
    assert tiles.pieces(10**9, 160) == tiles.MAX_PIECES
    assert tiles.pieces(4 * tiles.PIECE_UNITS * 160, 160) == 4
