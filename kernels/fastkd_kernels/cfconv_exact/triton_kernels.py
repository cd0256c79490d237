"""GPU kernels of cfconv_exact: ``reduce`` onto nodes, ``dots`` onto edges, ``second`` and ``first`` for the network's two layers.

Each makes the rows of its tile of edges again (`triton_rows`) and keeps none. Units are edges here: where lengths belong to pairs,
``index_ptr`` says to which (HAS_PAIRS), and both directions make the filter. F, H and K are the widths of features, hidden layer and
basis; ``ACC`` the dtype of every sum, float64 if DOUBLE. Addresses are int64. No atomics: a node, an edge or a part of a sum has one program.
"""

import triton
import triton.language as tl

from .triton_rows import act_jets, cut_jets, filters, first_layer, hidden_rows, phi_jets


@triton.jit
def _lengths(length_ptr, index_ptr, edge, inside, REACH: tl.constexpr, HAS_PAIRS: tl.constexpr):
    """Row of the lengths, and the length in float64; half the cutoff where there is no edge."""
    row = edge
    if HAS_PAIRS:
        row = tl.load(index_ptr + edge, mask=inside, other=0)
    return row, tl.load(length_ptr + row, mask=inside, other=0.5 * REACH).to(tl.float64)


@triton.jit
def cfconv_exact_reduce_kernel(
    a_ptr, b_ptr, u_ptr, length_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, other_ptr, ptr_ptr, order_ptr, index_ptr, out_ptr, F, H, K,
    LOW: tl.constexpr, ORDER: tl.constexpr, HAS_PAIRS: tl.constexpr, ACT: tl.constexpr, ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr,
    REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """out[node] = Σ over its edges of W ∘ a[other] (LOW = 0) + u W′ ∘ b[other] (ORDER = 1); a program owns a node and some features."""
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F
    stop = tl.load(ptr_ptr + node + 1)
    total = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    for start in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        position = start + tl.arange(0, BLOCK_E)
        # the last tile of a node is ragged
        inside = position < stop
        edge = tl.load(order_ptr + position, mask=inside, other=0)
        other = tl.load(other_ptr + edge, mask=inside, other=0)
        row, d = _lengths(length_ptr, index_ptr, edge, inside, REACH, HAS_PAIRS)
        c, c1, c2 = cut_jets(d, ENVELOPE, EXPONENT, REACH, ACC)
        w, s, _ = filters(
            d, c, c1, c2, f, w1_ptr, b1_ptr, w2_ptr, b2_ptr, F, H, K, LOW, ORDER, ACT, BASIS, FIRST, INVERSE, SCALE, DECAY,
            BLOCK_E, BLOCK_F, BLOCK_H, BLOCK_K, ACC,
        )  # fmt: skip
        tile = inside[:, None] & in_width[None, :]
        at = other[:, None] * F + f[None, :]
        if LOW == 0:
            total += w * tl.load(a_ptr + at, mask=tile, other=0.0).to(ACC)
        if ORDER >= 1:
            u = tl.load(u_ptr + row, mask=inside, other=0.0).to(ACC)
            total += u[:, None] * s * tl.load(b_ptr + at, mask=tile, other=0.0).to(ACC)
    tl.store(out_ptr + node * F + f, tl.sum(total, axis=0), mask=in_width)


@triton.jit
def cfconv_exact_dots_kernel(
    g_ptr, a_ptr, b_ptr, u_ptr, length_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, src_ptr, dst_ptr, index_ptr, out_ptr, E, F, H, K,
    LOW: tl.constexpr, ORDER: tl.constexpr, HAS_PAIRS: tl.constexpr, ACT: tl.constexpr, ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr,
    REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """out[edge] = Σ_f g[dst] ∘ (W′ ∘ a[src] (LOW = 1) + u W″ ∘ b[src] (ORDER = 2)); a program owns a tile of edges."""
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    edge = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    inside = edge < E
    i = tl.load(dst_ptr + edge, mask=inside, other=0)
    j = tl.load(src_ptr + edge, mask=inside, other=0)
    row, d = _lengths(length_ptr, index_ptr, edge, inside, REACH, HAS_PAIRS)
    c, c1, c2 = cut_jets(d, ENVELOPE, EXPONENT, REACH, ACC)
    total = tl.zeros((BLOCK_E,), dtype=ACC)
    for first in range(0, F, BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)
        _, s, t = filters(
            d, c, c1, c2, f, w1_ptr, b1_ptr, w2_ptr, b2_ptr, F, H, K, LOW, ORDER, ACT, BASIS, FIRST, INVERSE, SCALE, DECAY,
            BLOCK_E, BLOCK_F, BLOCK_H, BLOCK_K, ACC,
        )  # fmt: skip
        tile = inside[:, None] & (f < F)[None, :]
        g = tl.load(g_ptr + i[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC)
        if LOW <= 1:
            total += tl.sum(s * g * tl.load(a_ptr + j[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC), axis=1)
        if ORDER >= 2:
            u = tl.load(u_ptr + row, mask=inside, other=0.0).to(ACC)
            total += u * tl.sum(t * g * tl.load(b_ptr + j[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC), axis=1)
    tl.store(out_ptr + edge, total, mask=inside)


@triton.jit
def cfconv_exact_second_kernel(
    g_ptr, a_ptr, b_ptr, u_ptr, length_ptr, w1_ptr, b1_ptr, src_ptr, dst_ptr, index_ptr, weight_part_ptr, bias_part_ptr,
    E, F, H, K, edges_each,
    LOW: tl.constexpr, ORDER: tl.constexpr, HAS_PAIRS: tl.constexpr, ACT: tl.constexpr, ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr,
    REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Gradient of w2 [parts, F, H] and b2 [parts, F], to be summed over parts: a program owns a tile of it and a part of the edges.

    The cotangents are g[dst] ∘ a[src] of W (LOW = 0) and u g[dst] ∘ b[src] of W′ (ORDER = 1).
    """
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    f = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    h = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    part = tl.program_id(2).to(tl.int64)
    in_width = f < F
    total = tl.zeros((BLOCK_F, BLOCK_H), dtype=ACC)
    column = tl.zeros((BLOCK_F,), dtype=ACC)
    for start in range(0, edges_each, BLOCK_E):
        edge = part * edges_each + start + tl.arange(0, BLOCK_E)
        inside = edge < E
        i = tl.load(dst_ptr + edge, mask=inside, other=0)
        j = tl.load(src_ptr + edge, mask=inside, other=0)
        row, d = _lengths(length_ptr, index_ptr, edge, inside, REACH, HAS_PAIRS)
        c, c1, c2 = cut_jets(d, ENVELOPE, EXPONENT, REACH, ACC)
        z, z1, z2 = first_layer(
            d, h, w1_ptr, b1_ptr, H, K, ORDER, BASIS, FIRST, INVERSE, SCALE, DECAY, BLOCK_E, BLOCK_H, BLOCK_K, ACC
        )  # fmt: skip
        value, slope, _ = hidden_rows(z, z1, z2, c, c1, c2, ACT)
        tile = inside[:, None] & in_width[None, :]
        at = j[:, None] * F + f[None, :]
        g = tl.load(g_ptr + i[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC)
        if LOW == 0:
            q = g * tl.load(a_ptr + at, mask=tile, other=0.0).to(ACC)
            total = tl.dot(tl.trans(q), value, total, input_precision="ieee", out_dtype=ACC)
            column += tl.sum(q * c[:, None], axis=0)
        if ORDER >= 1:
            u = tl.load(u_ptr + row, mask=inside, other=0.0).to(ACC)
            p = u[:, None] * g * tl.load(b_ptr + at, mask=tile, other=0.0).to(ACC)
            total = tl.dot(tl.trans(p), slope, total, input_precision="ieee", out_dtype=ACC)
            column += tl.sum(p * c1[:, None], axis=0)
    mask = in_width[:, None] & (h < H)[None, :]
    tl.store(weight_part_ptr + (part * F + f)[:, None] * H + h[None, :], total, mask=mask)
    # every tile of hidden units has the same sums; the first one writes them
    tl.store(bias_part_ptr + part * F + f, column, mask=in_width & (tl.program_id(1) == 0))


@triton.jit
def cfconv_exact_first_kernel(
    g_ptr, a_ptr, b_ptr, u_ptr, length_ptr, w1_ptr, b1_ptr, w2_ptr, src_ptr, dst_ptr, index_ptr, weight_part_ptr, bias_part_ptr,
    E, F, H, K, edges_each,
    LOW: tl.constexpr, ORDER: tl.constexpr, HAS_PAIRS: tl.constexpr, ACT: tl.constexpr, ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr,
    REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Gradient of w1 [parts, H, K] and b1 [parts, H], as `cfconv_exact_second_kernel` has it for the other layer."""
    ACC: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    h = tl.program_id(0).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    part = tl.program_id(2).to(tl.int64)
    in_hidden = h < H
    total = tl.zeros((BLOCK_H, BLOCK_K), dtype=ACC)
    column = tl.zeros((BLOCK_H,), dtype=ACC)
    for start in range(0, edges_each, BLOCK_E):
        edge = part * edges_each + start + tl.arange(0, BLOCK_E)
        inside = edge < E
        i = tl.load(dst_ptr + edge, mask=inside, other=0)
        j = tl.load(src_ptr + edge, mask=inside, other=0)
        row, d = _lengths(length_ptr, index_ptr, edge, inside, REACH, HAS_PAIRS)
        c, c1, _ = cut_jets(d, ENVELOPE, EXPONENT, REACH, ACC)
        back = tl.zeros((BLOCK_E, BLOCK_H), dtype=ACC)
        back1 = tl.zeros((BLOCK_E, BLOCK_H), dtype=ACC)
        for first in range(0, F, BLOCK_F):
            f = first + tl.arange(0, BLOCK_F)
            tile = inside[:, None] & (f < F)[None, :]
            at = j[:, None] * F + f[None, :]
            g = tl.load(g_ptr + i[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC)
            w = tl.load(w2_ptr + f[:, None] * H + h[None, :], mask=(f < F)[:, None] & in_hidden[None, :], other=0.0).to(ACC)
            if LOW == 0:
                q = g * tl.load(a_ptr + at, mask=tile, other=0.0).to(ACC)
                back = tl.dot(q, w, back, input_precision="ieee", out_dtype=ACC)
            if ORDER >= 1:
                p = g * tl.load(b_ptr + at, mask=tile, other=0.0).to(ACC)
                back1 = tl.dot(p, w, back1, input_precision="ieee", out_dtype=ACC)
        z, z1, _ = first_layer(
            d, h, w1_ptr, b1_ptr, H, K, ORDER, BASIS, FIRST, INVERSE, SCALE, DECAY, BLOCK_E, BLOCK_H, BLOCK_K, ACC
        )  # fmt: skip
        _, a1, a2 = act_jets(z, ACT)
        grad = back * a1 * c[:, None]
        phi, phi1, _ = phi_jets(d, k, BASIS, FIRST, INVERSE, SCALE, DECAY, ACC)
        if ORDER >= 1:
            back1 *= tl.load(u_ptr + row, mask=inside, other=0.0).to(ACC)[:, None]
            grad += back1 * (a2 * z1 * c[:, None] + a1 * c1[:, None])
            total = tl.dot(tl.trans(back1 * a1 * c[:, None]), phi1, total, input_precision="ieee", out_dtype=ACC)
        total = tl.dot(tl.trans(grad), phi, total, input_precision="ieee", out_dtype=ACC)
        column += tl.sum(grad, axis=0)
    tl.store(weight_part_ptr + (part * H + h)[:, None] * K + k[None, :], total, mask=in_hidden[:, None] & (k < K)[None, :])
    # every tile of functions has the same sums; the first one writes them
    tl.store(bias_part_ptr + part * H + h, column, mask=in_hidden & (tl.program_id(1) == 0))
