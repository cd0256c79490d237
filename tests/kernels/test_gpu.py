"""What only a GPU can show: every op on the device, the same bits twice, no wait for the device, and a run that trains there."""

import pytest
import torch
from fastkd_kernels.registry import Shape, all_cases
from fastkd_kernels.testing import SHAPES, call, errors, sample

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
