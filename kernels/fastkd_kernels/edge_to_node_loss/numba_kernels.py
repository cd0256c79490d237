"""CPU kernels on one tile of projected rows: they subtract the teacher's reduced edges in place and go on with the difference.

Projected rows are [nodes, K, D] with K = 1, or 3 for vectors. ``kind`` is a position in `projected_loss.kinds.KINDS`. One thread owns a
node and reads its edges in ascending number, so the number of threads changes no bit.
"""

import numba

from ..cpu import FASTMATH, Kernel


@numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _subtract_sum(row, node, edge, ptr, order, mean):
    """In place: row −= Σ edge, or the mean."""
    start, stop = ptr[node], ptr[node + 1]
    scale = row.dtype.type(1.0 / (stop - start)) if mean and stop > start else row.dtype.type(1)
    # four edges at a time: a quarter of the loads and stores of the row, and of its roundings
    fours = start + (stop - start) // 4 * 4
    for k in range(start, fours, 4):
        a, b, c, d = edge[order[k]], edge[order[k + 1]], edge[order[k + 2]], edge[order[k + 3]]
        for f in range(row.size):
            row[f] -= scale * ((a[f] + b[f]) + (c[f] + d[f]))
    for k in range(fours, stop):
        a = edge[order[k]]
        for f in range(row.size):
            row[f] -= scale * a[f]


@numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _subtract_vector_sum(rows, node, edge, direction, ptr, order, mean):
    """In place: rows [3, D] −= Σ direction ⊗ edge, or the mean."""
    start, stop = ptr[node], ptr[node + 1]
    scale = rows.dtype.type(1.0 / (stop - start)) if mean and stop > start else rows.dtype.type(1)
    x, y, z = rows[0], rows[1], rows[2]
    pairs = start + (stop - start) // 2 * 2
    for k in range(start, pairs, 2):
        e, g = order[k], order[k + 1]
        a, b = edge[e], edge[g]
        ax, ay, az = scale * direction[e, 0], scale * direction[e, 1], scale * direction[e, 2]
        bx, by, bz = scale * direction[g, 0], scale * direction[g, 1], scale * direction[g, 2]
        for f in range(x.size):
            x[f] -= ax * a[f] + bx * b[f]
            y[f] -= ay * a[f] + by * b[f]
            z[f] -= az * a[f] + bz * b[f]
    for k in range(pairs, stop):
        e = order[k]
        a = edge[e]
        ax, ay, az = scale * direction[e, 0], scale * direction[e, 1], scale * direction[e, 2]
        for f in range(x.size):
            x[f] -= ax * a[f]
            y[f] -= ay * a[f]
            z[f] -= az * a[f]


@numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _subtract(rows, node, edge, direction, ptr, order, mean):
    if rows.shape[0] == 1:
        _subtract_sum(rows[0], node, edge, ptr, order, mean)
    else:
        _subtract_vector_sum(rows, node, edge, direction, ptr, order, mean)


@numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _penalty(row, kind):
    """Σ_c ρ(row_c)."""
    half, one, total = row.dtype.type(0.5), row.dtype.type(1), row.dtype.type(0)
    if kind == 0:
        for c in range(row.size):
            total += row[c] * row[c]
    elif kind == 1:
        for c in range(row.size):
            total += abs(row[c])
    else:
        for c in range(row.size):
            size = abs(row[c])
            # with m = min(|r|, 1) both branches are m (|r| − m/2), without a jump
            near = min(size, one)
            total += near * (size - half * near)
    return total


@numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _pull(row, h, kind):
    """In place: row ← h ψ(row); exactly 0 at 0 for MAE, and NaN stays NaN."""
    one = row.dtype.type(1)
    if kind == 0:
        h += h
        for c in range(row.size):
            row[c] *= h
    elif kind == 1:
        for c in range(row.size):
            r = row[c]
            row[c] = h if r > 0 else -h if r < 0 else h * r
    else:
        for c in range(row.size):
            r = row[c]
            row[c] = h if r > one else -h if r < -one else h * r


def node_loss(projected, edge, direction, ptr, order, mean, kind, losses):
    """losses[i, k] = Σ_c ρ(projected − target); ``projected`` becomes the residual. ``ptr`` begins at the tile's first node."""
    for node in numba.prange(projected.shape[0]):
        rows = projected[node]
        _subtract(rows, node, edge, direction, ptr, order, mean)
        for k in range(rows.shape[0]):
            losses[node, k] = _penalty(rows[k], kind)


def node_pull(projected, edge, direction, ptr, order, mean, kind, upstream):
    """In place: projected ← upstream[i, k] · ψ(projected − target)."""
    for node in numba.prange(projected.shape[0]):
        rows = projected[node]
        _subtract(rows, node, edge, direction, ptr, order, mean)
        for k in range(rows.shape[0]):
            _pull(rows[k], upstream[node, k], kind)


node_loss_kernel = Kernel(node_loss)
node_pull_kernel = Kernel(node_pull)
