"""GPU kernels. A program owns a tile of nodes and features and visits it once: ``context_kernel``, ``update_kernel`` and, for each, the
gradient (``_backward``) and the gradient of the gradient (``_double_backward``).

Names as in ``op.py``. ``HAS_`` says which cotangents and tangents are there, ``NEEDS_`` which outputs are wanted; the pointer of what is
not is never used. All arithmetic is in float32, or float64 for float64. Scales and epsilon are constants of a model and compiled in: a
run-time float is only float32. Addresses are int64: 6 · nodes · width passes 2³¹ in real batches.
"""

import triton
import triton.language as tl

# a batch's size must not make Triton compile again
_SIZES = ["N"]


@triton.jit
def _places(N, F, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr):
    """Nodes [BLOCK_N, 1], features [1, BLOCK_F], and which of the pairs exist: the last tiles are ragged."""
    n = (tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    f = (tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F))[None, :]
    return n, f, (n < N) & (f < F)


@triton.jit
def _row(pointer, place, exists, ACC: tl.constexpr):
    return tl.load(pointer + place, mask=exists, other=0.0).to(ACC)


@triton.jit
def _rows(pointer, place, stride, exists, ACC: tl.constexpr):
    """The components x, y and z, ``stride`` apart."""
    x = tl.load(pointer + place, mask=exists, other=0.0).to(ACC)
    y = tl.load(pointer + place + stride, mask=exists, other=0.0).to(ACC)
    z = tl.load(pointer + place + 2 * stride, mask=exists, other=0.0).to(ACC)
    return x, y, z


@triton.jit
def _store_rows(pointer, place, stride, exists, x, y, z):
    tl.store(pointer + place, x, mask=exists)
    tl.store(pointer + place + stride, y, mask=exists)
    tl.store(pointer + place + 2 * stride, z, mask=exists)


@triton.jit(do_not_specialize=_SIZES)
def context_kernel(
    scalar_ptr, mixed_ptr, out_ptr, N, F, C, EPSILON: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if scalar_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, f, exists = _places(N, F, BLOCK_N, BLOCK_F)
    x, y, z = _rows(mixed_ptr, n * 3 * C + (C - F) + f, C, exists, ACC)
    tl.store(out_ptr + n * 2 * F + f, _row(scalar_ptr, n * F + f, exists, ACC), mask=exists)
    tl.store(out_ptr + n * 2 * F + F + f, tl.sqrt(x * x + y * y + z * z + EPSILON), mask=exists)


@triton.jit(do_not_specialize=_SIZES)
def context_backward_kernel(
    grad_ptr, mixed_ptr, by_scalar_ptr, by_mixed_ptr, N, F, C, EPSILON: tl.constexpr,
    NEEDS_SCALAR: tl.constexpr, NEEDS_MIXED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, f, exists = _places(N, F, BLOCK_N, BLOCK_F)
    if NEEDS_SCALAR:
        tl.store(by_scalar_ptr + n * F + f, _row(grad_ptr, n * 2 * F + f, exists, ACC), mask=exists)
    if NEEDS_MIXED:
        place = n * 3 * C + (C - F) + f
        x, y, z = _rows(mixed_ptr, place, C, exists, ACC)
        slope = _row(grad_ptr, n * 2 * F + F + f, exists, ACC) / tl.sqrt(x * x + y * y + z * z + EPSILON)
        _store_rows(by_mixed_ptr, place, C, exists, slope * x, slope * y, slope * z)
        if C > F:
            none = tl.zeros_like(slope)
            _store_rows(by_mixed_ptr, n * 3 * C + f, C, exists, none, none, none)


@triton.jit(do_not_specialize=_SIZES)
def context_double_backward_kernel(
    t_scalar_ptr, t_mixed_ptr, grad_ptr, mixed_ptr, by_grad_ptr, by_mixed_ptr, N, F, C, EPSILON: tl.constexpr,
    HAS_T_SCALAR: tl.constexpr, HAS_T_MIXED: tl.constexpr, NEEDS_GRAD: tl.constexpr, NEEDS_MIXED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, f, exists = _places(N, F, BLOCK_N, BLOCK_F)
    place = n * 3 * C + (C - F) + f
    none = tl.zeros((BLOCK_N, BLOCK_F), dtype=ACC)
    along, by_x, by_y, by_z = none, none, none, none
    if HAS_T_MIXED:
        x, y, z = _rows(mixed_ptr, place, C, exists, ACC)
        t_x, t_y, t_z = _rows(t_mixed_ptr, place, C, exists, ACC)
        inverse = 1.0 / tl.sqrt(x * x + y * y + z * z + EPSILON)
        x, y, z = x * inverse, y * inverse, z * inverse
        along = t_x * x + t_y * y + t_z * z
        slope = _row(grad_ptr, n * 2 * F + F + f, exists, ACC) * inverse
        by_x, by_y, by_z = slope * (t_x - along * x), slope * (t_y - along * y), slope * (t_z - along * z)
    if NEEDS_GRAD:
        first = _row(t_scalar_ptr, n * F + f, exists, ACC) if HAS_T_SCALAR else none
        tl.store(by_grad_ptr + n * 2 * F + f, first, mask=exists)
        tl.store(by_grad_ptr + n * 2 * F + F + f, along, mask=exists)
    if NEEDS_MIXED:
        _store_rows(by_mixed_ptr, place, C, exists, by_x, by_y, by_z)
        if C > F:
            _store_rows(by_mixed_ptr, n * 3 * C + f, C, exists, none, none, none)


@triton.jit(do_not_specialize=_SIZES)
def update_kernel(
    gates_ptr, mixed_ptr, out_scalar_ptr, out_vector_ptr, N, F,
    DOT_FACTOR: tl.constexpr, SCALAR_SCALE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if gates_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, f, exists = _places(N, F, BLOCK_N, BLOCK_F)
    a, b, c = _rows(gates_ptr, n * 3 * F + f, F, exists, ACC)
    u_x, u_y, u_z = _rows(mixed_ptr, n * 6 * F + f, 2 * F, exists, ACC)
    v_x, v_y, v_z = _rows(mixed_ptr, n * 6 * F + F + f, 2 * F, exists, ACC)
    dot = u_x * v_x + u_y * v_y + u_z * v_z
    tl.store(out_scalar_ptr + n * F + f, SCALAR_SCALE * a + DOT_FACTOR * (b * dot), mask=exists)
    _store_rows(out_vector_ptr, n * 3 * F + f, F, exists, c * u_x, c * u_y, c * u_z)


@triton.jit(do_not_specialize=_SIZES)
def update_backward_kernel(
    grad_scalar_ptr, grad_vector_ptr, gates_ptr, mixed_ptr, by_gates_ptr, by_mixed_ptr, N, F,
    HAS_SCALAR: tl.constexpr, HAS_VECTOR: tl.constexpr, NEEDS_GATES: tl.constexpr, NEEDS_MIXED: tl.constexpr,
    DOT_FACTOR: tl.constexpr, SCALAR_SCALE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if gates_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, f, exists = _places(N, F, BLOCK_N, BLOCK_F)
    g = tl.zeros((BLOCK_N, BLOCK_F), dtype=ACC)
    h_x, h_y, h_z = g, g, g
    if HAS_SCALAR:
        g = _row(grad_scalar_ptr, n * F + f, exists, ACC)
    if HAS_VECTOR:
        h_x, h_y, h_z = _rows(grad_vector_ptr, n * 3 * F + f, F, exists, ACC)
    u_x, u_y, u_z = _rows(mixed_ptr, n * 6 * F + f, 2 * F, exists, ACC)
    v_x, v_y, v_z = _rows(mixed_ptr, n * 6 * F + F + f, 2 * F, exists, ACC)
    if NEEDS_GATES:
        by_b = DOT_FACTOR * (g * (u_x * v_x + u_y * v_y + u_z * v_z))
        by_c = h_x * u_x + h_y * u_y + h_z * u_z
        _store_rows(by_gates_ptr, n * 3 * F + f, F, exists, SCALAR_SCALE * g, by_b, by_c)
    if NEEDS_MIXED:
        weight = DOT_FACTOR * (g * _row(gates_ptr, n * 3 * F + F + f, exists, ACC))
        c = _row(gates_ptr, n * 3 * F + 2 * F + f, exists, ACC)
        _store_rows(by_mixed_ptr, n * 6 * F + f, 2 * F, exists, weight * v_x + c * h_x, weight * v_y + c * h_y, weight * v_z + c * h_z)
        _store_rows(by_mixed_ptr, n * 6 * F + F + f, 2 * F, exists, weight * u_x, weight * u_y, weight * u_z)


@triton.jit(do_not_specialize=_SIZES)
def update_double_backward_kernel(
    t_gates_ptr, t_mixed_ptr, grad_scalar_ptr, grad_vector_ptr, gates_ptr, mixed_ptr,
    by_scalar_ptr, by_vector_ptr, by_gates_ptr, by_mixed_ptr, N, F,
    HAS_T_GATES: tl.constexpr, HAS_T_MIXED: tl.constexpr, HAS_SCALAR: tl.constexpr, HAS_VECTOR: tl.constexpr,
    NEEDS_SCALAR: tl.constexpr, NEEDS_VECTOR: tl.constexpr, NEEDS_GATES: tl.constexpr, NEEDS_MIXED: tl.constexpr,
    DOT_FACTOR: tl.constexpr, SCALAR_SCALE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if gates_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, f, exists = _places(N, F, BLOCK_N, BLOCK_F)
    of_gates, of_u, of_v = n * 3 * F + f, n * 6 * F + f, n * 6 * F + F + f
    none = tl.zeros((BLOCK_N, BLOCK_F), dtype=ACC)
    g, h_x, h_y, h_z, da, db, dc = none, none, none, none, none, none, none
    du_x, du_y, du_z, dv_x, dv_y, dv_z = none, none, none, none, none, none
    if HAS_SCALAR:
        g = _row(grad_scalar_ptr, n * F + f, exists, ACC)
    if HAS_VECTOR:
        h_x, h_y, h_z = _rows(grad_vector_ptr, n * 3 * F + f, F, exists, ACC)
    if HAS_T_GATES:
        da, db, dc = _rows(t_gates_ptr, of_gates, F, exists, ACC)
    if HAS_T_MIXED:
        du_x, du_y, du_z = _rows(t_mixed_ptr, of_u, 2 * F, exists, ACC)
        dv_x, dv_y, dv_z = _rows(t_mixed_ptr, of_v, 2 * F, exists, ACC)
    b = _row(gates_ptr, of_gates + F, exists, ACC)
    u_x, u_y, u_z = _rows(mixed_ptr, of_u, 2 * F, exists, ACC)
    v_x, v_y, v_z = _rows(mixed_ptr, of_v, 2 * F, exists, ACC)
    d_dot = du_x * v_x + du_y * v_y + du_z * v_z + u_x * dv_x + u_y * dv_y + u_z * dv_z
    if NEEDS_SCALAR:
        dot = u_x * v_x + u_y * v_y + u_z * v_z
        tl.store(by_scalar_ptr + n * F + f, SCALAR_SCALE * da + DOT_FACTOR * (db * dot + b * d_dot), mask=exists)
    if NEEDS_VECTOR:
        c = _row(gates_ptr, of_gates + 2 * F, exists, ACC)
        _store_rows(by_vector_ptr, n * 3 * F + f, F, exists, dc * u_x + c * du_x, dc * u_y + c * du_y, dc * u_z + c * du_z)
    if NEEDS_GATES:
        _store_rows(by_gates_ptr, of_gates, F, exists, none, DOT_FACTOR * (g * d_dot), h_x * du_x + h_y * du_y + h_z * du_z)
    if NEEDS_MIXED:
        weight, d_weight = DOT_FACTOR * (g * b), DOT_FACTOR * (g * db)
        _store_rows(
            by_mixed_ptr, of_u, 2 * F, exists,
            d_weight * v_x + weight * dv_x + dc * h_x,
            d_weight * v_y + weight * dv_y + dc * h_y,
            d_weight * v_z + weight * dv_z + dc * h_z,
        )  # fmt: skip
        _store_rows(
            by_mixed_ptr,
            of_v,
            2 * F,
            exists,
            d_weight * u_x + weight * du_x,
            d_weight * u_y + weight * du_y,
            d_weight * u_z + weight * du_z,
        )
