"""The ahead-of-time compiler: what it reads from compilers, what it refuses, and that kernels compile."""

import json
import os
from collections import Counter
from dataclasses import replace

import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402 - after the check that triton is there
from fastkd_kernels import aot  # noqa: E402
from fastkd_kernels.registry import AotKernel, all_kernels  # noqa: E402

needs_compiler = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter does not compile")


@triton.jit
def double_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, 2 * tl.load(x_ptr + i, mask=i < size, other=0), mask=i < size)


@triton.jit
def spilling_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    # every number is needed twice, and one warp has not the registers to keep them
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, x / tl.sum(x, axis=0))


SIGNATURE = {"x_ptr": "*fp32", "out_ptr": "*fp32", "size": "i32"}
DOUBLE = AotKernel("double", lambda: double_kernel, SIGNATURE, {"BLOCK": 128})
SPILLING = AotKernel("spilling", lambda: spilling_kernel, SIGNATURE, {"BLOCK": 8192}, num_warps=1)


@pytest.fixture(autouse=True)
def clean_cache(tmp_path):
    with aot.cache_directory(tmp_path / "cache"):
        yield


def test_cuobjdump_is_read():
    text = "Resource usage:\n Function f:\n  REG:72 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:416 TEXTURE:0\n"
    assert aot.parse_cuobjdump(text) == (72, 24)


def test_ptxas_is_read():
    assert aot.parse_ptxas("ptxas info    : f\n    64 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n") == 32


def test_amd_assembly_is_read():
    text = ".group_segment_fixed_size: 4096\n .sgpr_count: 50\n .sgpr_spill_count: 1\n .vgpr_count:     26\n .vgpr_spill_count: 2\n"
    assert aot.amd_usage(text) == aot.Usage(registers=26, shared=4096, spills=12)


def test_a_report_of_another_form_is_not_taken_for_zero():
    with pytest.raises(ValueError, match="nothing like"):
        aot.parse_cuobjdump("REGISTERS 5")


def test_spills_need_a_reason():
    assert aot.Result("k", "sm_90", spills=8).failed
    assert not aot.Result("k", "sm_90", spills=8, spill_reason="one row a thread").failed
    assert not aot.Result("k", "sm_90").failed
    assert aot.Result("k", "sm_90", error="no", spill_reason="one row a thread").failed


@needs_compiler
@pytest.mark.parametrize("target", aot.TARGETS)
def test_a_kernel_compiles(target):
    result = aot.compile_kernel(DOUBLE, target)
    assert not result.failed, result.error
    assert 0 < result.registers < 64
    assert result.spills == 0
    assert result.binary > 1000
    assert result.seconds > 0


@needs_compiler
@pytest.mark.parametrize(("target", "block"), [("sm_90", 8192), ("gfx942", 32768)])
def test_spills_are_seen(target, block):
    kernel = replace(SPILLING, constants={"BLOCK": block})
    result = aot.compile_kernel(kernel, target)
    assert not result.error
    assert result.spills > 0
    assert result.failed
    assert not aot.compile_kernel(replace(kernel, spill_reason="this test"), target).failed


@needs_compiler
def test_errors_are_results():
    result = aot.compile_kernel(replace(DOUBLE, constants={"BLOCK": 100}), "sm_90")
    assert result.failed
    assert "power of 2" in result.error
    result = aot.compile_kernel(replace(DOUBLE, constants={}), "sm_90")
    assert "x_ptr, out_ptr, size, BLOCK" in result.error


@needs_compiler
def test_numbers_may_be_known_multiples():
    assert aot.source(replace(DOUBLE, signature=SIGNATURE | {"size": "i32:16"})).attrs.keys() == {(0,), (1,), (2,)}
    assert aot.source(DOUBLE).attrs.keys() == {(0,), (1,)}


def test_interpreting_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert aot.main([]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_missing_triton_is_refused(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    assert aot.main([]) == 2
    assert "triton is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "match"), [(["--targets", "sm90"], "unknown target 'sm90'"), (["--only", "nothing"], "'nothing'")])
def test_wrong_arguments_are_named(monkeypatch, capsys, arguments, match):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert aot.main(arguments) == 2
    assert match in capsys.readouterr().err


@needs_compiler
def test_the_command_line(monkeypatch, tmp_path, capsys):
    kernels = [DOUBLE, replace(DOUBLE, name="broken", constants={"BLOCK": 100})]
    monkeypatch.setattr(aot, "all_kernels", lambda: iter(kernels))
    assert aot.main(["--only", "double", "--targets", "sm_80", "--json", str(tmp_path / "out.json")]) == 0
    assert "1 compilations" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert entry["kernel"] == "double"
    assert entry["registers"] > 0
    assert aot.main(["--targets", "sm_80"]) == 1
    assert "failed" in capsys.readouterr().out


@needs_compiler
def test_every_kernel_is_described_once_and_in_full():
    kernels = list(all_kernels())
    assert kernels
    assert max(Counter(kernel.name for kernel in kernels).values()) == 1
    for kernel in kernels:
        aot.source(kernel)


@needs_compiler
@pytest.mark.parametrize("name", ["segment_sum[order, F3, fp32]", "node_to_edge[both, D128, fp32]"])
def test_our_kernels_compile(name):
    (kernel,) = (kernel for kernel in all_kernels() if kernel.name == name)
    for result in aot.compile_all([kernel], ["sm_90", "gfx942"]):
        assert not result.failed, result


@needs_compiler
def test_several_processes_give_the_same_results_in_the_same_order():
    kernels = [kernel for kernel in all_kernels() if kernel.name.startswith("node_to_edge")][:2]
    targets = ["sm_90", "gfx942"]
    seen = []
    for jobs in (1, 2):
        results = aot.compile_all(kernels, targets, seen.append, jobs)
        assert [(result.kernel, result.target) for result in results] == [(kernel.name, target) for kernel in kernels for target in targets]
    alone, together = ([replace(result, seconds=0.0) for result in half] for half in (seen[:4], seen[4:]))
    assert alone == together


@needs_compiler
def test_a_compiling_process_that_dies_is_an_error_with_advice(monkeypatch):
    monkeypatch.setattr(aot, "compile_kernel", lambda *task: os._exit(1))
    kernels = list(all_kernels())[:4]
    with pytest.raises(aot.CompilerError, match="--jobs 1"):
        aot.compile_all(kernels, ["sm_90"], jobs=2)


@needs_compiler
@pytest.mark.slow
def test_all_kernels_compile_for_all_targets():
    failed = [result for result in aot.compile_all(all_kernels(), aot.TARGETS) if result.failed]
    assert not failed
