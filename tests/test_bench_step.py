"""The benchmark of a distillation step refuses to time what differs, and its numbers are what their names say."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from fastkd_kernels import global_structure_loss, linear_cka, local_structure_loss

from bench.common import Timing
from bench.models.shapes import SHAPES
from bench.step import __main__ as command
from bench.step import cases, goals, measure, plain, run, steps
from bench.step.setup import CACHED_BATCHES, Workbench

CPU = torch.device("cpu")
FAST = ["--device", "cpu", "--quick", "--pairs", "painn_small", "--repeats", "3"]


def workbench(pair: str, dtype: torch.dtype = torch.float64, shape: str = "") -> Workbench:
    chosen = cases.PAIRS[pair]
    found = dataclasses.replace(SHAPES[shape or chosen.shapes[0]], copies=2)
    return Workbench.of(chosen, found, dtype, CPU, 1, small=True)


def test_a_pair_is_measured_with_every_kind_of_step(capsys, tmp_path):
    threads, file = torch.get_num_threads(), tmp_path / "s.json"
    assert command.main([*FAST, "--terms", "n2n", "lsp", "--json", str(file)]) == 0
    assert torch.get_num_threads() == threads
    assert capsys.readouterr().out.count("painn_small ") == 2
    written = json.loads(file.read_text())
    assert [(row["pair"], row["terms"]) for row in written["rows"]] == [("painn_small", "n2n"), ("painn_small", "lsp")]
    for row in written["rows"]:
        assert row["error"]["float64"] < 1e-9
        assert row["tiny"]
        assert min(row[name]["median"] for name in ("own", "given", "cached", "plain", "teacher", "live", "plain_live")) > 0
        assert row["repeats"] == row["slow_repeats"] == 3
        assert min(row[f"{name}_peak_bytes"] for name in ("own", "cached", "plain")) > 0
    assert command.main(["--markdown", str(file)]) == 0
    assert capsys.readouterr().out.count("| tiny PaiNN 256 × 6 → PaiNN 128 × 4 |") == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", cases.PAIRS)
def test_plain_terms_are_the_same_functions(name, dtype):
    bench = workbench(name, dtype)
    for terms in cases.PAIRS[name].terms:
        verdict = steps.check(bench, terms, 1)
        assert not verdict.reason, terms.name
        assert verdict.error < (1e-9 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("wrong", ["loss", "gradient", "sums", "missing"])
def test_what_differs_is_not_timed(wrong, monkeypatch, capsys, tmp_path):
    if wrong == "loss":
        monkeypatch.setattr(
            plain, "project", lambda projection, x: torch.nn.functional.linear(x, projection.weight, projection.bias) + 1e-6
        )
    elif wrong == "gradient":
        # the loss is right, but nothing comes back through a part of it
        halved = lambda projection, x: torch.nn.functional.linear(x.detach() / 2 + x / 2, projection.weight, projection.bias)  # noqa: E731
        monkeypatch.setattr(plain, "project", halved)
    elif wrong == "missing":
        cut = lambda projection, x: torch.nn.functional.linear(x.detach(), projection.weight, projection.bias)  # noqa: E731
        monkeypatch.setattr(plain, "project", cut)
    else:
        before = plain.reduced
        wrong_sum = lambda *a: dataclasses.replace(before(*a), edge_sum=before(*a).edge_sum * (1 + 1e-6))  # noqa: E731
        monkeypatch.setattr(plain, "reduced", wrong_sum)
    terms, pair = ("e2n", "gemnet_painn") if wrong == "sums" else ("n2n", "painn_schnet")
    file = tmp_path / "s.json"
    asked = ["--device", "cpu", "--quick", "--pairs", pair, "--terms", terms, "--repeats", "3", "--json", str(file)]
    assert command.main(asked) == 1
    printed = capsys.readouterr().out
    assert "no time is printed" in printed
    assert " ms" not in printed
    written = json.loads(file.read_text())
    assert written["rows"] == []
    assert any(reason.startswith(f"{pair} {terms}") for reason in written["failed"])


def test_steps_leave_the_weights_alone_and_do_what_they_say():
    bench = workbench("gemnet_painn", torch.float32)
    terms = cases.PAIRS["gemnet_painn"].terms[-1]
    calls = steps.make_calls(bench, terms, 1)
    before = {name: value.clone() for name, value in bench.student.state_dict().items()}
    asked = []
    real = bench.teacher._ask
    bench.teacher._ask = lambda *args, **options: (asked.append(args), real(*args, **options))[1]
    for name, call in (calls.fast | calls.slow).items():
        asked.clear()
        call(bench.fresh())
        assert len(asked) == (1 if name in calls.slow and name != "own" else 0), name
        reached = [parameter for parameter in calls.ours.parameters() if parameter.grad is not None]
        if name != "teacher":
            assert any(parameter.grad is not None for parameter in bench.student.parameters())
        calls.ours.zero_grad(set_to_none=True)
        bench.student.zero_grad(set_to_none=True)
        assert bool(reached) == (name not in ("own", "teacher")), name
    for name, value in bench.student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_step_gathers_from_all_over_the_cache():
    bench = workbench("painn_small")
    drawn = torch.stack([bench.fresh().structure_index for _ in range(200)])
    graphs = bench.batch.num_graphs
    assert set(drawn.flatten().tolist()) == set(range(CACHED_BATCHES * graphs))
    assert torch.equal(drawn % graphs, torch.arange(graphs).expand_as(drawn))
    cache = bench.cache(frozenset({"node"}))
    assert len(cache.store.layout) == CACHED_BATCHES * graphs
    assert torch.equal(cache(bench.fresh()).node, bench.said.node)


def test_structure_losses_in_plain_torch():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, width, generator=generator, dtype=torch.float64) for width in (5, 7))
    torch.testing.assert_close(plain.cka(x, y), linear_cka(x, y), rtol=1e-12, atol=0)
    graph = workbench("painn_small", shape="slab").batch.graph(5.0).csr
    a, b = (torch.randn(graph.num_nodes, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(plain.lsp(a, b, graph.edge_src, graph.edge_dst), local_structure_loss(a, b, graph), rtol=1e-12, atol=0)
    ptr = torch.tensor([0, 5, 12])
    torch.testing.assert_close(plain.gsp(x, y, ptr), global_structure_loss(x, y, ptr), rtol=1e-12, atol=0)


def test_sums_over_edges_take_less_memory_than_an_outer_product():
    bench = workbench("gemnet_painn", torch.float32, "organic")
    calls = steps.sums_alone(bench)
    ours, theirs = calls["ours"](bench.batch), calls["plain"](bench.batch)
    torch.testing.assert_close(ours["edge_sum"], theirs.edge_sum)
    torch.testing.assert_close(ours["edge_vector_sum"], theirs.edge_vector_sum)
    peaks = {name: run.peak_bytes(lambda call=call: call(bench.batch), CPU) for name, call in calls.items()}
    edges, width = bench.teacher(bench.batch, frozenset({"edge"})).edge.shape
    assert peaks["plain"] >= 12 * edges * width
    assert peaks["ours"] < 12 * edges * width / 2


def test_rounds_are_paired_and_take_turns():
    order, clock = [], iter(range(10**6))
    calls = {"a": lambda _: order.append("a"), "b": lambda _: order.append("b"), "c": lambda _: order.append("c")}
    found = measure.in_turns(calls, lambda: None, CPU, seconds=math.inf, fewest=1, most=3)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}
    assert len(measure.in_turns(calls, lambda: next(clock), CPU, seconds=0.0, fewest=4, most=9)["a"]) == 4
    assert measure.paired([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == Timing(3.0, 2.0, 4.0)


def test_numbers_of_a_row():
    fast = {"own": [10.0, 20.0, 30.0], "given": [11.0, 22.0, 33.0], "cached": [11.5, 23.0, 34.5], "plain": [13.5, 27.0, 40.5]}
    slow = {"own": [10.0], "teacher": [90.0], "live": [105.0], "plain_live": [210.0]}
    parts = {"gather": [0.5, 0.6, 0.7], "terms": [1.15, 2.3, 3.45], "plain_terms": [3.45, 4.6, 6.9]}
    row = run._numbers(fast, slow, parts)
    assert row["own"].median == 20.0
    assert row["cached_ratio"].median == pytest.approx(1.15)
    assert row["terms_share"].median == pytest.approx(2 / 23)
    assert row["gather_seconds"].median == pytest.approx(1.0)
    assert row["live_ratio"].median == pytest.approx(1.05)
    assert row["plain_live_ratio"].median == 2.0
    assert row["alone_share"] == pytest.approx(0.1)
    assert row["alone"]["gather"]["median"] == 0.6
    assert row["plain_terms"] == 2.0


def row(**values):
    times = {"median": 1.0, "low": 0.9, "high": 1.1}
    names = {"cached_ratio": 1.05, "live_ratio": 1.05, "terms_share": 0.051}
    found = {name: times | {"median": value} for name, value in names.items()}
    about = {"pair": "painn_small", "terms": "n2n", "shape": "ethanol", "threads": 1, "tiny": False, "memory": 1.11}
    return {**found, **about, **values}


def test_goals_are_printed_beside_what_was_found():
    found = {goal.name: goals.verdict(goal, row()) for goal in goals.GOALS}
    assert found == {"cached": "met", "live": "met", "terms": "MISSED", "memory": "MISSED"}
    assert {goals.verdict(goal, row(tiny=True)) for goal in goals.GOALS} == {""}
    assert goals.verdict(goals.GOALS[-1], row(memory=None)) == ""
    report = goals.report([row(), row(terms_share=Timing(0.04, 0.03, 0.05), memory=None)])
    assert "≤ 1.1: met in all 2 rows; worst 1.050 (painn_small n2n, ethanol, 1 thread)" in report
    assert "≤ 0.05: MISSED in 1 of 2 rows; worst 0.051" in report
    assert "MISSED in 1 of 1 rows; worst 1.110" in report
    assert goals.report([row(tiny=True)]) == ""


def test_what_makes_no_sense_is_refused(capsys):
    for arguments, message in (
        (["--pairs", "nobody"], "no pair begins with 'nobody'"),
        (["--clock", "cpu", "--device", "cpu", "--threads", "2"], "--clock cpu counts the work of all threads"),
    ):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert message in capsys.readouterr().err
