"""How to call the projected loss on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from typing import Any

import torch

from ..registry import AotKernel, OpCase, Sample, Shape, random_tensor
from . import reference
from .kinds import KINDS, Kind
from .op import projected_loss

OPERATORS = ("projected_rows", "projected_rows_backward", "projected_rows_second")


def _sample(kind: Kind, shape: Shape, dtype: torch.dtype, generator: torch.Generator, *, weighted: bool) -> Sample:
    # the projection widens, as a student's does; inputs of unit variance give residuals on both sides of Huber's corner
    count, channels, width = shape.nodes, shape.width, 2 * shape.width + 1
    x = random_tensor(count, channels, dtype=dtype, generator=generator)
    weight = random_tensor(width, channels, dtype=torch.float64, generator=generator).mul(channels**-0.5).to(dtype)
    bias = random_tensor(width, dtype=dtype, generator=generator)
    target = random_tensor(count, width, dtype=dtype, generator=generator)
    node_weight = random_tensor(count, dtype=dtype, generator=generator).abs()
    return Sample((x, weight, bias, target), (kind, node_weight) if weighted else (kind,))


def _case(kind: Kind, *, weighted: bool = False) -> OpCase:
    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        return _sample(kind, shape, dtype, generator, weighted=weighted)

    name = f"projected_loss[{kind}{', weighted' if weighted else ''}]"
    return OpCase(name, projected_loss, reference.projected_loss, make, OPERATORS, smooth=kind == "mse")


CASES: tuple[OpCase, ...] = (*(_case(kind) for kind in KINDS), _case("mse", weighted=True))


def _kernel(name: str, outputs: tuple[str, ...], *, kind: int = 0, dtype: str = "fp32", tiled: bool = False) -> AotKernel:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, f"projected_rows_{name}_kernel")

    accumulator = "fp64" if dtype == "fp64" else "fp32"
    pointers = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "target_ptr"), f"*{dtype}")
    twice = name.startswith("bwd2")
    if name != "fwd":
        pointers["upstream_ptr"] = f"*{accumulator}"
    if twice:
        pointers |= dict.fromkeys(("dx_ptr", "dweight_ptr", "dbias_ptr", "dtarget_ptr"), f"*{dtype}")
    parts = {output: f"*{accumulator if output.endswith(('part_ptr', 'slopes_ptr')) or name == 'fwd' else dtype}" for output in outputs}
    signature = pointers | parts | dict.fromkeys(("N", "C", "D"), "i32")
    if name.endswith("weight"):
        signature["rows_each"] = "i32"
    double = dtype == "fp64"
    # the tiles of `triton_launch` for a wide model, written out because that module needs triton
    constants: dict[str, Any] = {
        "KIND": kind,
        "HAS_BIAS": True,
        "BLOCK_N": 16 if double or twice else 32,
        "BLOCK_D": 32,
        "BLOCK_C": 32 if twice and not double else 16,
    }
    if twice:
        constants |= dict.fromkeys(("HAS_DX", "HAS_DWEIGHT", "HAS_DBIAS", "HAS_DTARGET"), True)
    if name == "bwd2_input":
        constants["NEED_X"] = True
    if tiled:
        constants["BLOCK_OUT"] = 32 if double else 64 if twice else 128
    constants["WIDEN"] = False
    # Huber's loss on sm_90 only
    reason = (
        "a register or two: ptxas keeps to 80 registers so that three blocks share a multiprocessor" if name == "fwd" and kind == 2 else ""
    )
    title = f"projected_rows_{name}[{KINDS[kind]}, {dtype}]"
    return AotKernel(title, load, signature, constants, num_warps=4 if double and not twice else 8, spill_reason=reason)


def _kernels(kind: int, dtype: str) -> tuple[AotKernel, ...]:
    return (
        _kernel("fwd", ("losses_ptr",), kind=kind, dtype=dtype),
        _kernel("bwd_input", ("grad_ptr",), kind=kind, dtype=dtype, tiled=True),
        _kernel("bwd_weight", ("weight_part_ptr", "bias_part_ptr"), kind=kind, dtype=dtype, tiled=True),
        _kernel("bwd_target", ("grad_ptr",), kind=kind, dtype=dtype),
        _kernel("bwd2_input", ("grad_ptr", "slopes_ptr"), kind=kind, dtype=dtype, tiled=True),
        _kernel("bwd2_weight", ("weight_part_ptr", "bias_part_ptr"), kind=kind, dtype=dtype, tiled=True),
        _kernel("bwd2_target", ("grad_ptr",), kind=kind, dtype=dtype),
    )


KERNELS: tuple[AotKernel, ...] = (
    *(kernel for kind in range(len(KINDS)) for kernel in _kernels(kind, "fp32")),
    *_kernels(0, "bf16"),
    *_kernels(0, "fp64"),
)
