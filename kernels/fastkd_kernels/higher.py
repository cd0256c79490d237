"""Orders beyond the last fused derivative: plain torch, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def through_reference(function: Callable[..., tuple[Any, ...]], tensors: Any, cotangents: Any, needs: list[bool]) -> list[Tensor | None]:
    """Gradients of ⟨cotangents, function(tensors)⟩ by the tensors that are needed, differentiable again where autograd records.

    Args:
        function: plain torch, from the tensors to a tuple of tensors, some of which may be None.
        tensors: some of which may be None.
        cotangents: of the outputs; None for none.
        needs: which gradients are wanted.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, so that an input that stands in two places is told apart; whatever is needed may yet not require grad by itself
        inputs: list[Any] = [None if t is None else t.view_as(t) for t in tensors]
        inputs = [t.requires_grad_() if need and not t.requires_grad else t for t, need in zip(inputs, needs, strict=True)]
        outputs = function(*inputs)
        used = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o is not None and c is not None and o.requires_grad]
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        if not used or not wanted:
            return [None] * len(needs)
        grads = torch.autograd.grad([o for o, _ in used], wanted, [c for _, c in used], create_graph=create_graph, allow_unused=True)
    found = iter(grads)
    return [next(found) if need else None for need in needs]
