"""What only a GPU can show: every op on the device, the same bits twice, no wait for the device, CUDA graphs, and a run that trains."""

import pytest
import torch
from fastkd_kernels.registry import Shape, all_cases
from fastkd_kernels.testing import SHAPES, call, errors, sample
from fastkd_kernels.tolerances import relative_error

from bench.kernels.cases import BenchOp, make_problem
from bench.kernels.gate import difference
from bench.kernels.measure import capture, peak_bytes
from bench.kernels.providers import compile_step
from bench.kernels.shapes import BenchShape
from tests.kernels.memory import CEILINGS, find_case, problem_for

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CASES = list(all_cases())
LARGE = Shape(500, 12_000, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_three_orders(case, dtype):
    for shape in (*SHAPES, LARGE):
        found = errors(case, shape, dtype, "triton", device="cuda")
        assert found.ok, str(found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_bits_twice(case):
    made = sample(case, LARGE, torch.float32, device="cuda")
    assert all(torch.equal(a, b) for a, b in zip(call(case, made, "triton"), call(case, made, "triton"), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward_does_not_wait_for_the_device(case):
    made = sample(case, LARGE, torch.float32, device="cuda")
    call(case, made, "triton")  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(case, made, "triton")
    finally:
        torch.cuda.set_sync_debug_mode(before)


def training(case):
    """A problem of some size on the device, and one step of training on forces by our Triton kernels."""
    problem = make_problem(BenchOp(case.name, ()), case, BenchShape("large", LARGE), torch.float32, torch.device("cuda"), 0)

    def function(*inputs):
        return case.function(*inputs, *problem.extra, backend="triton")

    return problem, function


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_training_step_in_a_cuda_graph(case):
    """Captured once and replayed on other numbers in the same memory; a wait for the device could not be captured."""
    problem, function = training(case)

    def step():
        return problem.step(function, "force_training")

    step()  # compiles
    graph, captured = capture(step, torch.device("cuda"))
    with torch.no_grad():
        for tensor in problem.inputs:
            tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    torch.cuda.synchronize()
    eager = step()
    for got, want in zip(captured, eager, strict=True):
        assert (got is None) == (want is None)
        # the matrix products of torch may choose another algorithm where their workspace differs
        assert got is None or relative_error(got, want) < 1e-6


@pytest.mark.parametrize("ceiling", CEILINGS, ids=lambda ceiling: ceiling.name)
def test_peak_of_training_on_forces(ceiling):
    case = find_case(ceiling.name)
    if case is None:
        pytest.skip(f"this version has no {ceiling.name}")
    shape = Shape(50, 400_000, 64)
    problem = problem_for(ceiling, case, shape, "cuda")

    def step():
        return problem.step(lambda *inputs: case.function(*inputs, *problem.extra), "force_training")

    step()  # compiles
    # a node with thousands of edges is summed in pieces, which have to be kept for a moment
    assert peak_bytes(step, torch.device("cuda")) <= (ceiling.peak(shape.width) + 2) * shape.edges * 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor uses what torch deprecates
def test_a_compiled_training_step():
    problem, function = training(find_case("cfconv"))
    compiled = compile_step(function, problem, "force_training")
    assert difference(compiled(), problem.step(function, "force_training")) < 1e-6


def test_another_stream():
    """Kernels run on the current stream, after what was put there before."""
    problem, function = training(find_case("cfconv"))
    want = problem.step(function, "force_training")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(20_000_000)
        for tensor in problem.inputs:
            tensor.mul_(2)
    with torch.cuda.stream(stream):
        got = problem.step(function, "forward")
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(got[0], 4 * want[0].detach())


def test_offsets_beyond_two_to_the_31():
    from fastkd_kernels import CSRGraph, edge_to_node

    edges, width = 2_200_000, 1024  # 2.25e9 elements
    graph = CSRGraph.from_edges(torch.zeros(edges, dtype=torch.int64), torch.arange(edges) % 7, 7).to("cuda")
    values = torch.zeros(edges, width, dtype=torch.bfloat16, device="cuda")
    values[-1] = 1.0
    total = edge_to_node(values, graph)
    assert float(total.sum()) == width
    assert float(total[(edges - 1) % 7, 0]) == 1.0


def test_a_student_trains_on_the_device(tmp_path):
    fastkd_run = pytest.importorskip("fastkd.engine.run")
    from fastkd.config_loading import load_config

    options = ["run.device=cuda", f"run.dir={tmp_path / 'run'}", "compare.seeds=[0]", "train.steps=20", "train.evaluate_every=10"]
    fastkd_run.run(load_config(None, [*options, "data.test_size=20", "run.report=false"]))
    assert (tmp_path / "run" / "student.safetensors").exists()
