"""CPU kernels. One thread owns a node, and with it every row that it writes: sums are reproducible, nothing [E, 3, F] is made.

Index of kernels: ``message`` and ``tangent`` (half of the double backward) run over destinations; ``backward`` and
``double_backward`` (the other half) run over sources, where one visit to an edge yields everything else that concerns it.
phi, weight and their gradients are [·, 3F] in blocks (scalar, direction, vector); an array without rows is absent or not wanted.

Each inner loop runs over contiguous features, writes one array and reads few, so that the compiler's run-time check that they do
not overlap stays short enough for it to vectorise. That is why products pass through small buffers, which stay in the first cache.
"""

import numpy as np
from numba import njit, prange

from ..cpu import FASTMATH, Kernel


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _contract(factors, rows, out):
    """Σ_k factors_k rows_k: factors [3], rows [3, F] → out [F]."""
    x, y, z = rows[0], rows[1], rows[2]
    for f in range(out.size):
        out[f] = factors[0] * x[f] + factors[1] * y[f] + factors[2] * z[f]


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _contract_rows(a, b, out):
    """Σ_k a_k ∘ b_k: a, b [3, F] → out [F]."""
    ax, ay, az, bx, by, bz = a[0], a[1], a[2], b[0], b[1], b[2]
    for f in range(out.size):
        out[f] = ax[f] * bx[f] + ay[f] * by[f] + az[f] * bz[f]


@njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _dots(row, rows, out):
    """⟨row, rows_k⟩ for each k: row [F], rows [3, F] → out [3]."""
    x, y, z = rows[0], rows[1], rows[2]
    sum_x = sum_y = sum_z = row.dtype.type(0)
    for f in range(row.size):
        sum_x += row[f] * x[f]
        sum_y += row[f] * y[f]
        sum_z += row[f] * z[f]
    out[0], out[1], out[2] = sum_x, sum_y, sum_z


def _message(phi, vector, weight, direction, src, ptr, order, out_scalar, out_vector):
    width = out_scalar.shape[1]
    for node in prange(ptr.size - 1):
        scalar = out_scalar[node]
        scalar[:] = 0
        out_vector[node] = 0
        message = np.empty(3 * width, phi.dtype)
        along, carried = message[width : 2 * width], message[2 * width :]
        used = 3 * width if vector.shape[0] else 2 * width
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            w, p = weight[edge], phi[src[edge]]
            for f in range(used):
                message[f] = w[f] * p[f]
            for f in range(width):
                scalar[f] += message[f]
            for axis in range(3):
                into, r = out_vector[node, axis], direction[edge, axis]
                if vector.shape[0]:
                    carrier = vector[src[edge], axis]
                    for f in range(width):
                        into[f] += r * along[f] + carried[f] * carrier[f]
                else:
                    for f in range(width):
                        into[f] += r * along[f]


def _backward(  # noqa: PLR0912 - one visit to an edge yields four gradients, each only where it is wanted
    grad_scalar,
    grad_vector,
    phi,
    vector,
    weight,
    direction,
    dst,
    ptr,
    order,
    by_phi,
    by_vector,
    by_weight,
    by_direction,
):
    width = grad_scalar.shape[1]
    for node in prange(ptr.size - 1):
        p = phi[node]
        if by_phi.shape[0]:
            by_phi[node] = 0
        if by_vector.shape[0]:
            by_vector[node] = 0
        pull, along = np.zeros(3 * width, phi.dtype), np.empty(width, phi.dtype)
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            w, g = weight[edge], grad_vector[dst[edge]]
            if by_phi.shape[0] or by_weight.shape[0]:
                pull[:width] = grad_scalar[dst[edge]]
                _contract(direction[edge], g, pull[width : 2 * width])
                if vector.shape[0]:
                    _contract_rows(vector[node], g, pull[2 * width :])
            if by_phi.shape[0]:
                row = by_phi[node]
                for f in range(row.size):
                    row[f] += w[f] * pull[f]
            if by_weight.shape[0]:
                row = by_weight[edge]
                for f in range(row.size):
                    row[f] = p[f] * pull[f]
            if by_vector.shape[0]:
                for axis in range(3):
                    row, g_axis, w_carried = by_vector[node, axis], g[axis], w[2 * width :]
                    for f in range(width):
                        row[f] += w_carried[f] * g_axis[f]
            if by_direction.shape[0]:
                w_along, p_along = w[width : 2 * width], p[width : 2 * width]
                for f in range(width):
                    along[f] = w_along[f] * p_along[f]
                _dots(along, g, by_direction[edge])
        if by_vector.shape[0]:
            # the same factor for all edges of this source
            for axis in range(3):
                row, p_carried = by_vector[node, axis], p[2 * width :]
                for f in range(width):
                    row[f] *= p_carried[f]


def _tangent(t_phi, t_vector, t_weight, t_direction, phi, vector, weight, direction, src, ptr, order, by_grad_scalar, by_grad_vector):
    width = by_grad_scalar.shape[1]
    for node in prange(ptr.size - 1):
        scalar = by_grad_scalar[node]
        scalar[:] = 0
        by_grad_vector[node] = 0
        message, d_message = np.empty(3 * width, phi.dtype), np.empty(3 * width, phi.dtype)
        along, carried = message[width : 2 * width], message[2 * width :]
        d_along, d_carried = d_message[width : 2 * width], d_message[2 * width :]
        absent = np.zeros(3 * width + 3, phi.dtype)  # stands in for a row of a missing tangent
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            neighbour = src[edge]
            w, p = weight[edge], phi[neighbour]
            dw = t_weight[edge] if t_weight.shape[0] else absent
            dp = t_phi[neighbour] if t_phi.shape[0] else absent
            dr = t_direction[edge] if t_direction.shape[0] else absent
            for f in range(3 * width):
                message[f] = w[f] * p[f]
            for f in range(3 * width):
                d_message[f] = dw[f] * p[f] + w[f] * dp[f]
            for f in range(width):
                scalar[f] += d_message[f]
            for axis in range(3):
                into, r, dr_axis = by_grad_vector[node, axis], direction[edge, axis], dr[axis]
                for f in range(width):
                    into[f] += r * d_along[f] + dr_axis * along[f]
                if vector.shape[0]:
                    v = vector[neighbour, axis]
                    dv = t_vector[neighbour, axis] if t_vector.shape[0] else absent
                    for f in range(width):
                        into[f] += d_carried[f] * v[f] + carried[f] * dv[f]


def _double_backward(  # noqa: PLR0912 - as in `_backward`
    t_phi,
    t_vector,
    t_weight,
    t_direction,
    grad_scalar,
    grad_vector,
    phi,
    vector,
    weight,
    direction,
    dst,
    ptr,
    order,
    by_phi,
    by_vector,
    by_weight,
    by_direction,
):
    width = grad_scalar.shape[1]
    for node in prange(ptr.size - 1):
        absent = np.zeros(3 * width, phi.dtype)  # stands in for a row of a missing tangent
        p, dp = phi[node], t_phi[node] if t_phi.shape[0] else absent
        if by_phi.shape[0]:
            by_phi[node] = 0
        if by_vector.shape[0]:
            by_vector[node] = 0
        d_message, pull, d_pull = np.empty(2 * width, phi.dtype), np.zeros(3 * width, phi.dtype), np.zeros(3 * width, phi.dtype)
        d_along, d_carried = d_message[:width], d_message[width:]
        p_last, dp_last = p[width:], dp[width:]
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            w, g = weight[edge], grad_vector[dst[edge]]
            dw = t_weight[edge] if t_weight.shape[0] else absent
            if by_phi.shape[0] or by_weight.shape[0]:
                pull[:width] = grad_scalar[dst[edge]]
                _contract(direction[edge], g, pull[width : 2 * width])
                if t_direction.shape[0]:
                    _contract(t_direction[edge], g, d_pull[width : 2 * width])
                if vector.shape[0]:
                    _contract_rows(vector[node], g, pull[2 * width :])
                if t_vector.shape[0]:
                    _contract_rows(t_vector[node], g, d_pull[2 * width :])
            if by_phi.shape[0]:
                row = by_phi[node]
                for f in range(row.size):
                    row[f] += dw[f] * pull[f] + w[f] * d_pull[f]
            if by_weight.shape[0]:
                row = by_weight[edge]
                for f in range(row.size):
                    row[f] = dp[f] * pull[f] + p[f] * d_pull[f]
            if by_vector.shape[0] or by_direction.shape[0]:
                w_last, dw_last = w[width:], dw[width:]
                for f in range(2 * width):
                    d_message[f] = dw_last[f] * p_last[f] + w_last[f] * dp_last[f]
            if by_vector.shape[0]:
                for axis in range(3):
                    row, g_axis = by_vector[node, axis], g[axis]
                    for f in range(width):
                        row[f] += d_carried[f] * g_axis[f]
            if by_direction.shape[0]:
                _dots(d_along, g, by_direction[edge])


message = Kernel(_message)
backward = Kernel(_backward)
tangent = Kernel(_tangent)
double_backward = Kernel(_double_backward)
