"""What only the Triton backend of painn_radial promises: what was asked for and no more, pieces of buckets, corners, the same bits."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from fastkd_kernels.cfconv.cases import random_pairs
from fastkd_kernels.painn_radial import op, tiles
from fastkd_kernels.radial_conv import tiles as radial_tiles
from fastkd_kernels.radial_conv.cases import GRID, random_lengths
from fastkd_kernels.radial_conv.places import RadialIndex
from fastkd_kernels.radial_conv.spline import SplineGrid
from fastkd_kernels.registry import Shape, random_graph
from torch import Tensor

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter only")
both_units = pytest.mark.parametrize("paired", [False, True], ids=["edges", "pairs"])
all_kinds = pytest.mark.parametrize(
    ("paired", "first"), list(itertools.product([False, True], repeat=2)), ids=["edges", "edges-first", "pairs", "pairs-first"]
)

ALL, ALL_SECOND = [True] * 5, [True] * 7
#: All but the table's, whose kernel has a program for each interval between knots and is slow in the interpreter.
NO_TABLE = [True] * 6 + [False]
SMALL = Shape(4, 11, 3)


class Setting:
    """Random tensors, and the index of both backends; ``first``: without vectors."""

    def __init__(
        self, shape: Shape, paired: bool, dtype: torch.dtype = torch.float64, first: bool = False, length: float | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(5)
        pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
        nodes, width, units = shape.nodes, shape.width, graph.num_edges if pairs is None else pairs.num_pairs

        def made(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

        lengths = random_lengths(units, dtype, generator) if length is None else torch.full((units,), length, dtype=dtype)
        self.index = {name: RadialIndex.from_lengths(lengths, GRID, graph, pairs, backend=name) for name in ("triton", "reference")}
        phi, vector, direction, table = made(nodes, 3 * width), made(nodes, 3, width), made(units, 3), made(GRID.rows, 3 * width)
        self.inputs = (phi, None if first else vector, lengths, direction, table)
        self.cotangents = (made(nodes, width), made(nodes, 3, width))
        self.tangents = (made(nodes, 3 * width), None if first else made(nodes, 3, width), made(units), made(units, 3))

    def message(self, backend: str) -> tuple[Tensor, ...]:
        return tuple(op._message(*self.inputs, *self.index[backend].arguments, False, backend))

    def backward(self, backend: str, needs: list[bool] = ALL) -> tuple[Tensor, ...]:
        return tuple(op._backward(*self.cotangents, *self.inputs, *self.index[backend].arguments, needs, backend))

    def double_backward(self, backend: str, needs: list[bool] = ALL_SECOND, tangents: Any = None) -> tuple[Tensor, ...]:
        arguments = (*(tangents or self.tangents), *self.cotangents, *self.inputs, *self.index[backend].arguments)
        return tuple(op._double_backward(*arguments, needs, backend))

    def compare(self, function: Any, **limits: float) -> None:
        got, want = function("triton"), function("reference")
        for ours, exact in zip(got, want, strict=True):
            # what was not asked for has no rows
            torch.testing.assert_close(ours, exact, **limits)


@pytest.mark.triton
@interpreted
@all_kinds
def test_no_gradient_but_what_is_needed(paired: bool, first: bool) -> None:
    s = Setting(SMALL, paired, first=first)
    alone = [[number == wanted for number in range(5)] for wanted in range(5)]
    for needs in [*alone, [True, True, False, False, False], [False, False, True, True, False]]:
        s.compare(lambda backend, needs=needs: s.backward(backend, needs))


def _each_tangent_alone(s: Setting, needs: list[bool]) -> None:
    for kept, tangent in enumerate(s.tangents):
        if tangent is not None:
            only = tuple(tangent if number == kept else None for number in range(4))
            s.compare(lambda backend, only=only: s.double_backward(backend, needs, only))


@pytest.mark.triton
@interpreted
@all_kinds
def test_second_pass_of_some_tangents(paired: bool, first: bool) -> None:
    s = Setting(SMALL, paired, first=first)
    _each_tangent_alone(s, NO_TABLE)
    wanted = ((0,), (3,), (4,), (5,), (1, 2), (4, 5))
    for needs in ([number in numbers for number in range(7)] for numbers in wanted):
        s.compare(lambda backend, needs=needs: s.double_backward(backend, needs))


@pytest.mark.slow
@pytest.mark.triton
@interpreted
@all_kinds
def test_second_pass_of_some_tangents_onto_the_table(paired: bool, first: bool) -> None:
    _each_tangent_alone(Setting(SMALL, paired, first=first), [False] * 6 + [True])


@pytest.mark.triton
@interpreted
@all_kinds
@pytest.mark.parametrize("shape", [Shape(1, 3, 1), Shape(3, 0, 3), Shape(0, 0, 2), Shape(2, 4, 0)], ids=str)
def test_corners(paired: bool, first: bool, shape: Shape) -> None:
    s = Setting(shape, paired, first=first)
    s.compare(s.message)
    s.compare(lambda backend: s.backward(backend, NO_TABLE[2:]))
    s.compare(s.double_backward)


@pytest.mark.slow
@pytest.mark.triton
@interpreted
@all_kinds
@pytest.mark.parametrize("shape", [Shape(3, 7, 31), Shape(4, 12, 129), Shape(9, 130, 5), Shape(2, 90, 65)], ids=str)
def test_several_tiles(paired: bool, first: bool, shape: Shape) -> None:
    s = Setting(shape, paired, first=first)
    for function in (s.message, s.backward, s.double_backward):
        s.compare(function)


@pytest.mark.triton
@interpreted
@both_units
def test_bfloat16_is_rounded_once(paired: bool) -> None:
    # sums of the reference are float32 too, so that the two differ by no more than the last place
    s = Setting(SMALL, paired, torch.bfloat16)
    for function in (s.message, s.double_backward):
        s.compare(function, rtol=2**-7, atol=1e-4)


@pytest.mark.triton
@interpreted
@both_units
def test_a_full_bucket_in_pieces(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All units between the same two knots; 11 in 5 pieces leave one ragged and one empty."""
    monkeypatch.setattr(radial_tiles, "pieces", lambda units, intervals: 5)
    s = Setting(SMALL, paired, length=0.77)
    only_table = [False] * 6 + [True]
    s.compare(lambda backend: s.double_backward(backend, only_table))


@pytest.mark.triton
@interpreted
@both_units
def test_all_units_beyond_the_cutoff(paired: bool) -> None:
    s = Setting(SMALL, paired, length=GRID.cutoff)
    # what lies beyond must not be read: it may be anything
    s.inputs = (*s.inputs[:4], torch.full_like(s.inputs[4], float("nan")))
    results = [*s.message("triton"), *s.backward("triton"), *s.double_backward("triton")]
    assert not any(bool(result.any()) for result in results)


@pytest.mark.triton
@interpreted
@both_units
def test_same_bits_whatever_lay_in_memory(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    s, runs = Setting(Shape(3, 40, 5), paired, torch.float32), []
    makers = ((torch, "empty"), (torch.Tensor, "new_empty"), (torch, "empty_like"))
    for rubbish in (float("nan"), 3.0):
        with monkeypatch.context() as patch:
            for owner, name in makers:
                patch.setattr(owner, name, _filled(getattr(owner, name), rubbish))
            runs.append([*s.message("triton"), *s.backward("triton", NO_TABLE[2:]), *s.double_backward("triton")])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def _filled(real: Any, rubbish: float) -> Any:
    def make(*args: Any, **options: Any) -> Tensor:
        made: Tensor = real(*args, **options)
        return made.fill_(rubbish) if made.is_floating_point() else made

    return make


def test_tiles_follow_from_sizes() -> None:
    rows = SplineGrid(cutoff=5.0).rows
    for (width, itemsize), elements in itertools.product(
        ((1, 4), (64, 4), (128, 2), (128, 8), (129, 4)), (tiles.TILE, tiles.GRADIENT_TILE)
    ):
        tile = tiles.node_tile(width, rows, itemsize, elements)
        # three blocks side by side leave whole sectors of memory, and no more than these
        assert tile["BLOCK_F"] <= 32
        assert 1 <= tile["BLOCK_E"] * tile["BLOCK_F"] <= elements
