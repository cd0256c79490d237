"""Radial bases and envelopes as torch operators: one meaning, three backends, derivatives of every order.

Value, gradient and gradient of gradient of a basis are one operator each, in the distances and in the parameters; the derivatives of the
envelope alone are one operator with an order. Third and higher derivatives are the automatic ones of the closed forms in plain torch (`jets`).

Example:
    >>> rows = radial_basis(edge_length, "bessel", cutoff=6.0, size=8, envelope="polynomial", envelope_exponent=5)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import backends
from . import jets, reference
from .kinds import BASES, CONSTANTS_SCHEMA, ENVELOPES, BasisKind, Constants, EnvelopeKind

Grads = tuple[Tensor, ...]


def radial_basis(
    edge_length: Tensor,
    kind: BasisKind,
    cutoff: float,
    size: int,
    *,
    envelope: EnvelopeKind | None = None,
    envelope_exponent: int = 5,
    centres: Tensor | None = None,
    gamma: Tensor | None = None,
    frequencies: Tensor | None = None,
    start: float = 0.0,
    alpha: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """``size`` functions of each distance d, times an envelope that takes them to zero at the cutoff c.

    - ``gaussian``: exp(−γ_r (d − μ_r)²).
    - ``bessel``: √(2/c) sin(w_r d) / d; value and derivatives at d = 0 are the limits.
    - ``exp_normal``: exp(−γ_r (exp(α (start − d)) − μ_r)²).

    Without parameters these are the usual ones, see `radial_parameters`. A parameter that is given may be trained: all derivatives in it
    are there. At and beyond the cutoff an envelope makes the function and all its derivatives exactly zero, whatever d is.

    Args:
        edge_length: distances, ≥ 0, [E] Å, any floating dtype.
        kind: of the functions.
        cutoff: c, Å.
        size: R, number of functions.
        envelope: see the function `radial_envelope`; None for none.
        envelope_exponent: of the polynomial envelope.
        centres: μ of ``gaussian``, in Å, and of ``exp_normal``, where it is a number between 0 and 1; [R].
        gamma: γ of ``gaussian``, in 1/Å², and of ``exp_normal`` (there usually called β), [R], or [] for all alike.
        frequencies: w of ``bessel``, in 1/Å, [R].
        start: Å; where even centres begin, and the distance at which the variable of ``exp_normal`` is 1.
        alpha: α of ``exp_normal``, 1/Å; 5 / (c − start) if None.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [E, R]; differentiable to every order in ``edge_length`` and in the parameters.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, a parameter does not belong to the kind, or a name is unknown.

    Source: Schütt et al. 2017 (SchNet), Gasteiger et al. 2020 (DimeNet, eq. 7), Unke and Meuwly 2019 (PhysNet, eq. 7).
    """
    if kind not in BASES:
        raise ValueError(f"radial_basis knows the kinds {', '.join(BASES)}, got {kind!r}")
    _check_envelope("radial_basis", envelope, cutoff, envelope_exponent)
    _check_length("radial_basis", edge_length)
    if not start < cutoff:
        raise ValueError(f"radial_basis needs start < cutoff, got {start} and {cutoff}")
    given = {"centres": centres, "gamma": gamma, "frequencies": frequencies}
    own = ("frequencies",) if kind == "bessel" else ("centres", "gamma")
    foreign = [name for name, tensor in given.items() if tensor is not None and name not in own]
    if foreign:
        raise ValueError(f"a {kind} basis has no {' and no '.join(foreign)}; it has {' and '.join(own)}")
    first, second = (given[name] for name in (own * 2)[:2])
    if first is None or second is None:
        usual = radial_parameters(kind, cutoff, size, start=start, alpha=alpha, dtype=edge_length.dtype, device=edge_length.device)
        first, second = (tensor if tensor is not None else other for tensor, other in zip((first, second), usual, strict=True))
    if second.dim() == 0:
        second = second.expand(size)
    for name, tensor in zip(own, (first, second), strict=False):
        if tensor.shape != (size,) or tensor.dtype != edge_length.dtype or tensor.device != edge_length.device:
            raise ValueError(
                f"radial_basis needs {name} [{size}] of {edge_length.dtype} on {edge_length.device} as edge_length is, "
                f"got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )
    if kind == "bessel":
        second = first.detach()  # takes no part
    rate = 5 / (cutoff - start) if alpha is None else alpha
    constants = Constants(kind, float(cutoff), float(rate), float(start), envelope or "none", envelope_exponent)
    rows: Tensor = basis(edge_length, first, second, *constants, backends.resolve(backend, edge_length))
    return rows


def radial_parameters(
    kind: BasisKind,
    cutoff: float,
    size: int,
    *,
    start: float = 0.0,
    alpha: float | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """The parameters that `radial_basis` takes where none are given, to begin training with or to keep.

    - ``gaussian``: centres evenly from ``start`` to the cutoff, γ = 1 / 2Δ² with their distance Δ.
    - ``bessel``: frequencies rπ / c, r = 1 … R, twice.
    - ``exp_normal``: centres evenly from exp(α (start − c)) to 1, γ = (2/R · (1 − exp(α (start − c))))⁻², as in PhysNet. TorchMD-Net begins
      at exp(start − c), whatever α is; for that pass centres and gamma.

    Args:
        kind: of the basis.
        cutoff: c, Å.
        size: R.
        start: Å.
        alpha: 1/Å; 5 / (c − start) if None.
        dtype: of the parameters, which are computed in float64; torch's default if None.
        device: of the parameters.

    Returns:
        (centres [R], gamma [R]), or (frequencies [R], frequencies [R]).

    Raises:
        ValueError: if ``size`` is too small for the kind.
    """
    if size < 1 or (kind == "gaussian" and size < 2):
        raise ValueError(f"a {kind} basis without given parameters cannot have {size} functions")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if kind == "bessel":
        exact = torch.arange(1, size + 1, dtype=torch.float64, device=device) * (math.pi / cutoff)
        frequencies = exact.to(dtype)
        return frequencies, frequencies
    if kind == "gaussian":
        low, high, gamma = float(start), float(cutoff), 0.5 * ((size - 1) / (cutoff - start)) ** 2
    else:
        rate = 5 / (cutoff - start) if alpha is None else alpha
        low, high = math.exp(rate * (start - cutoff)), 1.0
        gamma = (2 / size * (1 - low)) ** -2
    centres = torch.linspace(low, high, size, dtype=torch.float64, device=device).to(dtype)
    return centres, torch.full((size,), gamma, dtype=dtype, device=device)


def radial_envelope(edge_length: Tensor, kind: EnvelopeKind, cutoff: float, exponent: int = 5, *, backend: str | None = None) -> Tensor:
    """A factor that goes from 1 at d = 0 to 0 at the cutoff c; with x = d / c

    - ``polynomial``: 1 − (p+1)(p+2)/2 xᵖ + p(p+2) xᵖ⁺¹ − p(p+1)/2 xᵖ⁺². Two derivatives are continuous at c.
    - ``cosine``: ½ (1 + cos πx). One derivative is.
    - ``exponential``: exp(−x² / (1 − x²)). All are.

    At and beyond the cutoff it and all its derivatives are exactly zero, whatever d is; NaN stays NaN.

    Args:
        edge_length: distances, ≥ 0, [E] Å, any floating dtype.
        kind: of the envelope.
        cutoff: c, Å.
        exponent: p ≥ 2, of the polynomial.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [E]; differentiable to every order.

    Raises:
        ValueError: if ``edge_length`` is not [E] of a floating dtype, or an argument is out of range or unknown.

    Source: Gasteiger et al. 2020 (DimeNet, eq. 8), Behler 2011, Unke et al. 2021 (SpookyNet).
    """
    _check_envelope("radial_envelope", kind, cutoff, exponent)
    _check_length("radial_envelope", edge_length)
    factor: Tensor = envelope_order(edge_length, kind, float(cutoff), exponent, 0, backends.resolve(backend, edge_length))
    return factor


def _check_envelope(function: str, kind: str | None, cutoff: float, exponent: int) -> None:
    if kind is not None and kind not in ENVELOPES[1:]:
        raise ValueError(f"{function} knows the envelopes {', '.join(ENVELOPES[1:])}, got {kind!r}")
    if kind == "polynomial" and (exponent < 2 or int(exponent) != exponent):
        raise ValueError(f"{function} needs a whole exponent of at least 2 for a polynomial envelope, got {exponent}")
    if not cutoff > 0:
        raise ValueError(f"{function} needs a positive cutoff, got {cutoff}")


def _check_length(function: str, edge_length: Tensor) -> None:
    if edge_length.dim() != 1 or not edge_length.is_floating_point():
        raise ValueError(f"{function} needs edge_length [E] of a floating dtype, got {list(edge_length.shape)} {edge_length.dtype}")


# The operators. Names: d distances [E], p and q parameters [R], g the cotangent of the basis [E, R]; h [E], a [R] and b [R] those of the
# gradients by d, p and q. `needs` are flags, one an output; what is not needed comes back empty.


def _value_reference(d: Tensor, p: Tensor, q: Tensor, *constants: Any) -> Tensor:
    return reference.radial_basis(d, p, q, Constants(*constants))


def _value_numba(*args: Any) -> Tensor:
    from .numba_launch import value

    return value(*args)


def _value_triton(*args: Any) -> Tensor:
    from .triton_launch import value

    return value(*args)


def _kept(grads: Grads, needs: list[bool]) -> Grads:
    return tuple(grad if need else grad.new_empty((0,) * grad.dim()) for grad, need in zip(grads, needs, strict=True))


def _backward_fake(*args: Any) -> Grads:
    return _kept(tuple(tensor.new_empty(tensor.shape) for tensor in args[1:4]), args[-1])


def _backward_reference(g: Tensor, d: Tensor, p: Tensor, q: Tensor, *rest: Any) -> Grads:
    return _kept(jets.backward(g, d, p, q, Constants(*rest[:-1])), rest[-1])


def _backward_numba(*args: Any) -> Grads:
    from .numba_launch import backward

    return backward(*args)


def _backward_triton(*args: Any) -> Grads:
    from .triton_launch import backward

    return backward(*args)


def _double_backward_fake(*args: Any) -> Grads:
    return _kept(tuple(tensor.new_empty(tensor.shape) for tensor in args[3:7]), args[-1])


def _double_backward_reference(*args: Any) -> Grads:
    h, a, b, g, d, p, q, *constants, needs = args
    return _kept(jets.double_backward(h, a, b, g, d, p, q, Constants(*constants)), needs)


def _double_backward_numba(*args: Any) -> Grads:
    from .numba_launch import double_backward

    return double_backward(*args)


def _double_backward_triton(*args: Any) -> Grads:
    from .triton_launch import double_backward

    return double_backward(*args)


def _envelope_numba(*args: Any) -> Tensor:
    from .numba_launch import envelope as launch

    return launch(*args)


def _envelope_triton(*args: Any) -> Tensor:
    from .triton_launch import envelope as launch

    return launch(*args)


def _envelope_reference(*args: Any) -> Tensor:
    d, kind, cutoff, exponent, order = args
    return jets.envelope_derivative(d, kind, cutoff, exponent, order)


basis = backends.define_op(
    "radial_basis",
    f"(Tensor d, Tensor p, Tensor q, {CONSTANTS_SCHEMA}) -> Tensor",
    fake=lambda d, p, q, *constants: d.new_empty(d.shape[0], p.shape[0]),
    reference=_value_reference,
    numba=_value_numba,
    triton=_value_triton,
)
basis_backward = backends.define_op(
    "radial_basis_backward",
    f"(Tensor g, Tensor d, Tensor p, Tensor q, {CONSTANTS_SCHEMA}, bool[] needs) -> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    numba=_backward_numba,
    triton=_backward_triton,
)
basis_double_backward = backends.define_op(
    "radial_basis_double_backward",
    f"(Tensor? h, Tensor? a, Tensor? b, Tensor g, Tensor d, Tensor p, Tensor q, {CONSTANTS_SCHEMA}, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    fake=_double_backward_fake,
    reference=_double_backward_reference,
    numba=_double_backward_numba,
    triton=_double_backward_triton,
)
#: The envelope's derivative of order 0, 1 or 2.
envelope_order = backends.define_op(
    "radial_envelope",
    "(Tensor d, str kind, float cutoff, int exponent, int order) -> Tensor",
    fake=lambda d, *rest: d.new_empty(d.shape),
    reference=_envelope_reference,
    numba=_envelope_numba,
    triton=_envelope_triton,
)


# Derivatives


def _basis_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:-1]
    ctx.backend = inputs[-1]


def _basis_autograd(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:3])
    grads = basis_backward(g, *ctx.saved_tensors, *ctx.rest, needs, ctx.backend)
    return (*_wanted(grads, needs), *(None,) * 7)


def _wanted(grads: Grads, needs: list[bool]) -> tuple[Tensor | None, ...]:
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Grads) -> None:
    ctx.save_for_backward(*inputs[:4])
    *ctx.rest, ctx.given, ctx.backend = inputs[4:]
    ctx.set_materialize_grads(False)


def _backward_autograd(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
    # what was not asked for is an empty tensor, and so is whatever may have been sent back through it
    wanted = [tangent if given else None for tangent, given in zip(tangents, ctx.given, strict=True)]
    if all(tangent is None for tangent in wanted):
        return (None,) * 12
    needs = list(ctx.needs_input_grad[:4])
    grads = basis_double_backward(*wanted, *ctx.saved_tensors, *ctx.rest, needs, ctx.backend)
    return (*_wanted(grads, needs), *(None,) * 8)


def _double_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Grads) -> None:
    ctx.save_for_backward(*inputs[:7])
    *ctx.rest, ctx.given, _ = inputs[7:]
    ctx.set_materialize_grads(False)


def _double_backward_autograd(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
    """The third order: the double backward again in plain torch, differentiated by autograd."""
    create_graph = torch.is_grad_enabled()
    needs = ctx.needs_input_grad[:7]
    with torch.enable_grad():
        # views, so that an input that stands in two places is told apart
        inputs: list[Any] = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
        h, a, b, g, d, p, q = inputs
        outputs = jets.double_backward(h, a, b, g, d, p, q, Constants(*ctx.rest))
        pairs = [
            (output, cotangent)
            for output, cotangent, given in zip(outputs, cotangents, ctx.given, strict=True)
            if given and cotangent is not None and output.requires_grad
        ]
        if not pairs:
            return (None,) * 15
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        grads = torch.autograd.grad([o for o, _ in pairs], wanted, [c for _, c in pairs], create_graph=create_graph, allow_unused=True)
    found = iter(grads)
    return (*(next(found) if need else None for need in needs), *(None,) * 8)


def _envelope_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    d, *ctx.rest, ctx.order, ctx.backend = inputs
    ctx.save_for_backward(d)


def _envelope_autograd(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (d,) = ctx.saved_tensors
    if ctx.order < 2:
        return g * envelope_order(d, *ctx.rest, ctx.order + 1, ctx.backend), *(None,) * 5
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # the graph of the input is kept, so that autograd can go on
        view = d.view_as(d) if d.requires_grad else d.detach().requires_grad_()
        kind, cutoff, exponent = ctx.rest
        second = jets.envelope_derivative(view, kind, cutoff, exponent, 2)
        if not second.requires_grad:
            return torch.zeros_like(g), *(None,) * 5
        (third,) = torch.autograd.grad(second, view, g, create_graph=create_graph)
    return third, *(None,) * 5


basis.register_autograd(_basis_autograd, setup_context=_basis_setup)
basis_backward.register_autograd(_backward_autograd, setup_context=_backward_setup)
basis_double_backward.register_autograd(_double_backward_autograd, setup_context=_double_backward_setup)
envelope_order.register_autograd(_envelope_autograd, setup_context=_envelope_setup)
