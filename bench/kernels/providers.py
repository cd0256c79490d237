"""Who computes an op: ours, plain torch, plain torch compiled, and the peers that are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bench.kernels.cases import Problem, step
from bench.kernels.peers import PEERS, UnavailableError, reason_of

Call = Callable[[], tuple[Tensor | None, ...]]
OURS, REFERENCE, COMPILED = "ours", "reference", "compiled"


def peers_of(problem: Problem) -> list[str]:
    """Names of the peers that have this op, installed or not."""
    return [peer for op, peer in PEERS if op == problem.op.name]


def make_call(name: str, problem: Problem, mode: str) -> Call:
    """One step of a mode by a provider.

    Raises:
        UnavailableError: with the reason, if this provider cannot be had here.
    """
    if name == COMPILED:
        return _compiled(problem, mode)
    function = _function(name, problem)
    return lambda: problem.step(function, mode)


def _function(name: str, problem: Problem) -> Callable[..., Any]:
    if name == OURS:
        return lambda *inputs: problem.case.function(*inputs, *problem.extra)
    if name == REFERENCE:
        return lambda *inputs: problem.case.reference(*inputs, *problem.extra)
    return PEERS[problem.op.name, name](problem)


def _compiled(problem: Problem, mode: str) -> Call:
    try:
        torch.compiler.reset()
        return compile_step(_function(REFERENCE, problem), problem, mode)
    except Exception as error:
        # inductor raises what it likes; the others are still timed
        raise UnavailableError(reason_of(error)) from error


def compile_step(function: Callable[..., Any], problem: Problem, mode: str) -> Call:
    """A whole step, traced with `make_fx` and then compiled: torch.compile itself cannot differentiate twice."""

    def whole(inputs: list[Tensor], cotangents: list[Tensor], tangents: list[Tensor]) -> tuple[Tensor | None, ...]:
        inputs = [tensor.detach().requires_grad_(number in problem.leaves) for number, tensor in enumerate(inputs)]
        cotangents = [tensor.detach().requires_grad_() for tensor in cotangents]
        return step(function, inputs, cotangents, tangents, problem.leaves, problem.first, mode)

    arguments = [[tensor.detach() for tensor in tensors] for tensors in (problem.inputs, problem.cotangents, problem.tangents)]
    compiled = torch.compile(make_fx(whole)(*arguments), dynamic=False)

    def call() -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            result: tuple[Tensor | None, ...] = compiled(*arguments)
        return result

    call()  # compiles
    return call
