"""The benchmarks refuse to print speeds of wrong results, and measure what they say."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from fastkd_kernels.registry import OpCase, Shape, all_cases

from bench import bench_patches, cache_reads, gpu
from bench.kernels import __main__ as command
from bench.kernels import cases, gate, goals, measure, run, shapes
from bench.kernels.floors import FLOORS, Size, floor_bytes

CPU = torch.device("cpu")
CASE = next(case for case in all_cases() if case.name == "cfconv")
FAST = ["--device", "cpu", "--ops", "cfconv", "--shapes", "small", "--seconds", "0.01", "--providers", "nobody"]


def broken(case: OpCase, order: int) -> OpCase:
    """The same op with a wrong value, or with a wrong gradient, or with a wrong gradient of the gradient."""

    def function(*args, backend=None):
        y = case.function(*args, backend=backend)
        if order == 0:
            return y * (1 + 1e-3)
        x = args[0]
        # zero, with a derivative that is not
        wrong = (x - x.detach()).sum() if order == 1 else (x - x.detach()).square().sum()
        return y + 1e-2 * wrong

    return dataclasses.replace(case, function=function)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_wrong_op_gets_no_speed(order, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cases, "all_cases", lambda: [broken(CASE, order)])
    assert command.main([*FAST, "--json", str(tmp_path / "b.json")]) == 1
    printed = capsys.readouterr().out
    assert "no speed is printed" in printed
    assert "×" not in printed
    assert " ms" not in printed
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["rows"] == []
    assert len(written["failed"]) == 1


def test_an_op_that_is_wrong_only_at_the_measured_size_gets_no_speed(monkeypatch, capsys):
    def function(x, weight, graph, *, backend=None):
        y = CASE.function(x, weight, graph, backend=backend)
        return y * 2 if graph.num_edges == shapes.SHAPES["small"].size.edges else y

    monkeypatch.setattr(cases, "all_cases", lambda: [dataclasses.replace(CASE, function=function)])
    assert command.main([*FAST, "--modes", "forward"]) == 1
    printed = capsys.readouterr().out
    assert "differs from the reference by 1.0e+00" in printed
    assert "×" not in printed


def test_an_op_that_raises_is_reported(monkeypatch, capsys):
    def function(*args, backend=None):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(cases, "all_cases", lambda: [dataclasses.replace(CASE, function=function)])
    assert command.main(FAST) == 1
    assert "out of luck" in capsys.readouterr().out


def test_a_right_op_is_measured_in_every_mode(capsys, tmp_path):
    assert command.main([*FAST, "--json", str(tmp_path / "b.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("×") == 3
    written = json.loads((tmp_path / "b.json").read_text())
    assert {row["mode"] for row in written["rows"] if row["provider"] == "ours"} == set(cases.MODES)
    assert written["provenance"].keys() >= {"device", "versions", "commit", "seed", "threads"}
    for row in written["rows"]:
        assert row["error"] < 1e-5
        assert row["low"] <= row["median"] <= row["high"]
        assert row["share_of_copy"] == pytest.approx(row["floor_bytes"] / row["median"] / written["copy_bandwidth"])


def test_a_budget_that_is_spent_leaves_rows_out():
    session = run.run(run.Options(CPU, ops=("cfconv",), budget=-1.0), say=lambda text: None)
    assert session.rows == []
    assert session.skipped == ["cfconv: out of time"]


def test_peak_memory_counts_what_is_alive_together():
    def call():
        one = torch.empty(1000)
        two = torch.ones(500)
        del one
        return torch.empty(2000), two

    assert measure.peak_bytes(call, CPU) == 4 * 2500


def test_floors_are_those_of_the_tables_of_the_design():
    megabytes = {name: [part / 1e6 for part in FLOORS[name](Size(50_000, 1_000_000, 128, 4))] for name in ("cfconv", "painn_message")}
    assert megabytes["cfconv"] == pytest.approx([567, 1109, 1690], rel=0.015)
    assert megabytes["painn_message"][0] == pytest.approx(1808, rel=1e-3)
    assert FLOORS["edge_to_node_both"](Size(20_000, 500_000, 512, 4))[0] / 1e6 == pytest.approx(1194, rel=1e-3)
    assert FLOORS["linear_cka"](Size(5_000, 0, 512, 4))[0] / 1e6 == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_no_floor_is_above_reading_and_writing_every_tensor_once(name):
    found = {op.name: (op, case) for op, case in cases.find_ops((name,))}
    op, case = found[name]
    if case is None:
        pytest.skip("this version does not have the op")
    shape = shapes.BenchShape("one", Shape(40, 200, 16))
    problem = cases.make_problem(dataclasses.replace(op, regraph=None), case, shape, torch.float32, CPU, 0)
    floats = sum(tensor.nbytes for tensor in (*problem.inputs, *problem.cotangents))
    indices = sum(item.nbytes for item in problem.extra if isinstance(item, torch.Tensor)) + 8 * 8 * (40 + 200)
    size = Size(40, 200, 16, 4)
    assert floor_bytes(name, size, "forward") <= floats + indices
    assert floor_bytes(name, size, "force") <= 3 * floats + 2 * indices
    assert floor_bytes(name, size, "force_training") <= 6 * floats + 3 * indices


@pytest.mark.parametrize("kind", ["local", "random", "skewed", "giant"])
def test_graphs_have_their_size(kind):
    src, dst = shapes.make_edges(kind, Shape(50, 400, 1), 0, CPU)
    for index in (src, dst):
        assert index.shape == (400,)
        assert 0 <= int(index.min()) <= int(index.max()) < 50
    degree = torch.bincount(dst, minlength=50)
    assert {"local": degree.max() == 8, "random": degree.max() < 30, "skewed": degree.max() > 40, "giant": degree.max() == 400}[kind]


def test_a_missing_gradient_is_a_difference():
    one = torch.ones(3)
    assert gate.difference((None,), (one,)) == pytest.approx(1.0)
    assert gate.difference((one,), (None,)) == pytest.approx(1.0)
    assert gate.difference((None, one), (None, one)) == 0
    assert gate.difference((one * float("nan"),), (one,)) == float("inf")


def test_goals_say_what_was_found():
    def row(provider, **values):
        about = {"op": "cfconv", "shape": "md", "mode": "forward", "provider": provider, "median": 1.0, "peak_bytes": 10}
        return {**about, "share_of_copy": 0.9, "ours_faster": 4.0, **values}

    rows = [row("ours", peak_bytes=1), row("compiled"), row("reference")]
    assert "90%  reached" in goals.Goal("cfconv", "md", "forward", "copy", 0.8).line(rows)
    assert "4.0×  MISSED" in goals.Goal("cfconv", "md", "forward", "compiled", 5).line(rows)
    assert "90%  reached" in goals.Goal("cfconv", "md", "forward", "memory", 0.9).line(rows)
    assert "not measured" in goals.Goal("cfconv", "md", "forward", "pyg", 5).line(rows)


def test_the_gpu_command_goes_on_after_a_part_that_fails_or_hangs(tmp_path, monkeypatch, capsys):
    def parts(out, device, shares):
        yield gpu.Part("fails", (sys.executable, "-c", "print('so it goes'); raise SystemExit(3)"), 20.0)
        yield gpu.Part("hangs", (sys.executable, "-c", "import time; time.sleep(60)"), 0.5)
        yield gpu.Part("absent", ("false",), 5.0, needs="no_such_module")
        yield gpu.Part("ends", (sys.executable, "-c", "pass"), 20.0)

    monkeypatch.setattr(gpu, "parts", parts)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    done = {part["name"]: part for part in json.loads((tmp_path / "summary.json").read_text())["parts"]}
    assert done["fails"]["rc"] == 3
    assert done["hangs"]["note"].startswith("stopped after")
    assert done["absent"]["note"] == "no_such_module is not installed"
    assert done["ends"]["rc"] == 0
    assert "so it goes" in (tmp_path / "fails.log").read_text()
    assert "so it goes" in capsys.readouterr().out


def test_the_parts_of_the_gpu_command(tmp_path):
    found = {part.name: part for part in gpu.parts(tmp_path, "cuda", (170.0, 100.0, 250.0))}
    assert "tests/kernels/test_gpu.py" in found["pytest"].command
    assert {"check", "bench-cfconv", "bench-painn_message", "bench-edge_to_node_both", "models", "step"} <= set(found)
    assert len({part.command for part in found.values()}) == len(found)


# other packages' models, plain and patched


@pytest.fixture
def small_peer(monkeypatch):
    pytest.importorskip("torch_geometric", reason="needs the extra `peers`")
    from tests.kernels.peer_models import pyg_schnet

    monkeypatch.setattr(bench_patches, "ENTRIES", {"small": bench_patches.Entry("small SchNet", "pyg_schnet", pyg_schnet, (4, 5))})


@pytest.mark.peers
def test_a_patched_model_is_measured(small_peer, capsys, tmp_path):
    threads = torch.get_num_threads()
    assert bench_patches.main(["--repeats", "1", "--json", str(tmp_path / "p.json")]) == 0
    assert re.search(r"small SchNet .* 9 .* ms .* ms .*\dx", capsys.readouterr().out)
    (row,) = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert row["ratio"] == row["plain"]["median"] / row["patched"]["median"]
    assert (row["replaced"], torch.get_num_threads()) == (3, threads)


@pytest.mark.peers
@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_a_wrong_patch_gets_no_speed(wrong, small_peer, monkeypatch, capsys):
    def patch(model):
        if wrong == "value":
            model.interactions[0].conv.register_forward_hook(lambda module, args, y: y * (1 + 1e-6))
        else:
            model.lin1.weight.register_hook(lambda gradient: gradient * (1 + 1e-6))
        return SimpleNamespace(replaced=())

    monkeypatch.setattr(bench_patches, "patch", patch)
    assert bench_patches.main(["--repeats", "1"]) == 1
    printed = capsys.readouterr().out
    assert "nothing is timed" in printed
    assert " ms (" not in printed


@pytest.mark.peers
def test_a_missing_package_is_left_out(small_peer, monkeypatch, capsys):
    def build():
        pytest.skip("needs something: make peers")

    entry = dataclasses.replace(bench_patches.ENTRIES["small"], build=build)
    monkeypatch.setattr(bench_patches, "ENTRIES", {"small": entry})
    assert bench_patches.main([]) == 0
    assert "left out: needs something: make peers" in capsys.readouterr().err


def test_reads_of_a_cache_are_compared_bit_by_bit(tmp_path, monkeypatch, capsys):
    out = tmp_path / "reads.json"
    words = ["--structures", "150", "--batches", "5", "--width", "4", "--shard-mb", "0", "--out", str(out)]
    cache_reads.main(words)
    found = json.loads(out.read_text())
    assert set(found["medians_ms"]) == {"shards", "virtual", "memory"}
    assert (found["shards"], found["structures"]) == (3, 150)
    assert all(len(times) == 5 and min(times) > 0 for times in found["times_ms"].values())
    assert "× shards" in capsys.readouterr().out
    # one wrong number, and there is no time
    take = cache_reads.VirtualStore.take
    monkeypatch.setattr(cache_reads.VirtualStore, "take", lambda self, name, rows: take(self, name, rows) + (name == "node"))
    with pytest.raises(ValueError, match="different things"):
        cache_reads.main(words)
