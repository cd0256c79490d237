"""GPU kernels: ``geometric_nodes_fwd_kernel`` and ``geometric_nodes_pull_kernel``, a tile of nodes and of projected channels each.

The three axes of a node's projection are three accumulators that share every tile of the weight; length, direction and loss are made
from them in registers. N nodes, C input channels, D projected channels; ``ACC`` is the dtype of every sum. Addresses are int64. What lies
beyond the matrix is loaded as zeros and is masked at the end. Products of float32 are exact to float32, not TF32. ``WIDEN`` makes
bfloat16 products in float32, with the same result, for the interpreter. ``MIX`` and ``EPS`` are constants, exact in every precision.
"""

import triton
import triton.language as tl


@triton.jit
def _project(
    v_ptr, weight_ptr, node, d, N, C, D,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The three components of v[node] · weight[d]ᵀ, each a tile [BLOCK_N, BLOCK_D]."""
    in_nodes, in_width = node < N, d < D
    x = tl.zeros((BLOCK_N, BLOCK_D), dtype=ACC)
    y = tl.zeros((BLOCK_N, BLOCK_D), dtype=ACC)
    z = tl.zeros((BLOCK_N, BLOCK_D), dtype=ACC)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        # the last tile of channels is ragged
        in_channels = c < C
        weight = tl.load(weight_ptr + d[None, :] * C + c[:, None], mask=in_width[None, :] & in_channels[:, None], other=0.0)
        row = v_ptr + node[:, None] * 3 * C + c[None, :]
        inside = in_nodes[:, None] & in_channels[None, :]
        vx = tl.load(row, mask=inside, other=0.0)
        vy = tl.load(row + C, mask=inside, other=0.0)
        vz = tl.load(row + 2 * C, mask=inside, other=0.0)
        if WIDEN:
            weight, vx, vy, vz = weight.to(ACC), vx.to(ACC), vy.to(ACC), vz.to(ACC)
        x = tl.dot(vx, weight, x, input_precision="ieee", out_dtype=ACC)
        y = tl.dot(vy, weight, y, input_precision="ieee", out_dtype=ACC)
        z = tl.dot(vz, weight, z, input_precision="ieee", out_dtype=ACC)
    return x, y, z


@triton.jit
def _load_vectors(target_ptr, node, d, N, D, ACC: tl.constexpr):
    row = target_ptr + node[:, None] * 3 * D + d[None, :]
    inside = (node < N)[:, None] & (d < D)[None, :]
    x = tl.load(row, mask=inside, other=0.0).to(ACC)
    y = tl.load(row + D, mask=inside, other=0.0).to(ACC)
    z = tl.load(row + 2 * D, mask=inside, other=0.0).to(ACC)
    return x, y, z


@triton.jit
def _polar(x, y, z, EPS: tl.constexpr):
    """Length, inverse length and direction of vectors; 0 and 0 for those shorter than EPS. NaN is not short, and goes on."""
    length = tl.sqrt_rn(x * x + y * y + z * z) if x.dtype == tl.float32 else tl.sqrt(x * x + y * y + z * z)
    short = length < EPS
    inverse = tl.where(short, 0.0, 1.0 / tl.where(short, 1.0, length)).to(x.dtype)
    return length, short, inverse, x * inverse, y * inverse, z * inverse


@triton.jit(do_not_specialize=["N"])
def geometric_nodes_fwd_kernel(
    v_ptr, weight_ptr, target_ptr, part_ptr, N, C, D, MIX: tl.constexpr, EPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Writes part [tiles of D, N]: the loss of one tile of channels, Σ_c; torch sums the tiles in order."""
    ACC: tl.constexpr = part_ptr.dtype.element_ty
    # programs that follow each other share their nodes, which come from cache
    tiles = tl.cdiv(D, BLOCK_D)
    tile = tl.program_id(0) % tiles
    node = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tile.to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    ux, uy, uz = _project(v_ptr, weight_ptr, node, d, N, C, D, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
    tx, ty, tz = _load_vectors(target_ptr, node, d, N, D, ACC)
    a, short_a, _, ux, uy, uz = _polar(ux, uy, uz, EPS)
    b, short_b, _, tx, ty, tz = _polar(tx, ty, tz, EPS)
    x, y, z = ux - tx, uy - ty, uz - tz
    # half the square of the difference of directions keeps the digits of small angles
    opening = tl.where(short_a | short_b, 1.0, 0.5 * (x * x + y * y + z * z))
    loss = (1.0 - MIX) * tl.abs(a - b) + MIX * opening
    # beyond the last channel all vectors are short, whose cosine would count
    loss = tl.where((d < D)[None, :], loss, 0.0).to(ACC)
    tl.store(part_ptr + tile.to(tl.int64) * N + node, tl.sum(loss, axis=1), mask=node < N)


@triton.jit(do_not_specialize=["N", "first_node", "last_node"])
def geometric_nodes_pull_kernel(
    v_ptr, weight_ptr, target_ptr, upstream_ptr, pull_ptr, grad_target_ptr, N, C, D, first_node, last_node,
    MIX: tl.constexpr, EPS: tl.constexpr, NEED_PULL: tl.constexpr, NEED_TARGET: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """For a range of nodes upstream · the slopes by u, pull [last_node − first_node, 3, D], and by t, grad_target [N, 3, D]."""
    ACC: tl.constexpr = upstream_ptr.dtype.element_ty
    tiles = tl.cdiv(D, BLOCK_D)
    node = first_node + (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    ux, uy, uz = _project(v_ptr, weight_ptr, node, d, N, C, D, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
    tx, ty, tz = _load_vectors(target_ptr, node, d, N, D, ACC)
    a, short_a, alpha, ux, uy, uz = _polar(ux, uy, uz, EPS)
    b, short_b, beta, tx, ty, tz = _polar(tx, ty, tz, EPS)
    x, y, z = ux - tx, uy - ty, uz - tz
    opening = 0.5 * (x * x + y * y + z * z)
    longer = (1.0 - MIX) * tl.where(a > b, 1.0, tl.where(a < b, -1.0, a - b))
    one_short = short_a | short_b
    inside = (node < last_node)[:, None] & (d < D)[None, :]
    h = tl.load(upstream_ptr + node, mask=node < last_node, other=0.0)[:, None]
    if NEED_PULL:
        turned = tl.where(one_short, 0.0, MIX * alpha)
        out = pull_ptr + (node - first_node)[:, None] * 3 * D + d[None, :]
        tl.store(out, (h * (longer * ux + turned * (x - opening * ux))).to(ACC), mask=inside)
        tl.store(out + D, (h * (longer * uy + turned * (y - opening * uy))).to(ACC), mask=inside)
        tl.store(out + 2 * D, (h * (longer * uz + turned * (z - opening * uz))).to(ACC), mask=inside)
    if NEED_TARGET:
        turned = tl.where(one_short, 0.0, MIX * beta)
        out = grad_target_ptr + node[:, None] * 3 * D + d[None, :]
        tl.store(out, -(h * (longer * tx + turned * (x + opening * tx))), mask=inside)
        tl.store(out + D, -(h * (longer * ty + turned * (y + opening * ty))), mask=inside)
        tl.store(out + 2 * D, -(h * (longer * tz + turned * (z + opening * tz))), mask=inside)
