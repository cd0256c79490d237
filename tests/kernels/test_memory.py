"""No operator stores what it need not: peak memory of a step of training on forces, in numbers per edge."""

from __future__ import annotations

import pytest
import torch
from fastkd_kernels.registry import Shape

from bench.kernels.measure import peak_bytes
from tests.kernels.memory import CEILINGS, Ceiling, find_case, problem_for, record

#: So few nodes, and so many edges, that all that is not on edges, and scratch memory of a fixed size, is little per edge.
SHAPE = Shape(4, 60_000, 12)
BYTES = 4


@pytest.mark.parametrize("ceiling", CEILINGS, ids=lambda ceiling: ceiling.name)
def test_peak_of_training_on_forces(ceiling: Ceiling) -> None:
    case = find_case(ceiling.name)
    if case is None:
        pytest.skip(f"this version has no {ceiling.name}")
    problem = problem_for(ceiling, case, SHAPE)
    ours = record(lambda: problem.step(lambda *x: case.function(*x, *problem.extra), "force_training"))
    eager = record(lambda: problem.step(lambda *x: case.reference(*x, *problem.extra), "force_training"))
    edge = SHAPE.edges * BYTES
    found = f"{ours.peak / edge:.1f} numbers per edge at once, the largest tensor {ours.largest / edge:.1f} by {ours.largest_name}"
    assert ours.peak <= (ceiling.peak(SHAPE.width) + 0.5) * edge, found
    assert ours.largest <= (ceiling.largest(SHAPE.width) + 0.5) * edge, found
    # plain torch breaks it, so the ceiling says something
    assert eager.peak > 1.5 * ceiling.peak(SHAPE.width) * edge


@pytest.mark.parametrize("name", ["cfconv", "edge_to_node_both", "painn_message"])
def test_the_profiler_sees_the_same_peak(name: str) -> None:
    ceiling = next(one for one in CEILINGS if one.name == name)
    case = find_case(name)
    assert case is not None
    problem = problem_for(ceiling, case, SHAPE)

    def call() -> object:
        return problem.step(lambda *x: case.function(*x, *problem.extra), "force_training")

    call()
    assert record(call).peak == pytest.approx(peak_bytes(call, torch.device("cpu")), rel=0.01)


def test_the_recorder_counts_what_is_alive_together() -> None:
    given = torch.ones(1000)

    def call() -> object:
        one = given * 2
        two = one[:500] + 1
        view = two.view(5, 100)
        del one
        return torch.empty(2000), view

    recorder = record(call)
    assert recorder.peak == BYTES * 2500
    assert recorder.largest_name == "aten.empty.memory_format [2000]"
    assert recorder.live == 0


def test_the_recorder_sees_what_an_operator_allocates() -> None:
    case = find_case("edge_to_node_both")
    assert case is not None
    problem = problem_for(CEILINGS[1], case, SHAPE)
    strided = problem.inputs[0].detach().T.contiguous().T
    recorder = record(lambda: case.function(strided, problem.inputs[1].detach(), *problem.extra))
    # the copy that makes the rows contiguous is made inside
    assert recorder.largest == SHAPE.edges * SHAPE.width * BYTES
