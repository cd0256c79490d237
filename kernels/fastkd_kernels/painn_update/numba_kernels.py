"""CPU kernels: one thread owns a block of nodes. What is missing or not wanted comes as an array without rows, and a row of zeros, or one
that nobody reads, takes its place.

Inner loops write one row each: the compiler proves to itself by comparisons at run time that a row does not overlap others, and
gives up where there are too many. All rows of a node stay in the fastest cache.
"""

import numpy as np
from numba import njit, prange

from ..cpu import Kernel

#: Nodes that share the scratch of a thread.
BLOCK = 32


@njit(inline="always")
def _dots(one, at, other, other_at, out):
    """Σ over x, y, z of two rows [3, C], from their columns ``at`` and ``other_at`` on."""
    x, y, z = one[0, at:], one[1, at:], one[2, at:]
    other_x, other_y, other_z = other[0, other_at:], other[1, other_at:], other[2, other_at:]
    for f in range(out.size):
        out[f] = x[f] * other_x[f] + y[f] * other_y[f] + z[f] * other_z[f]


@njit(inline="always")
def _add_dots(one, at, other, other_at, out):
    x, y, z = one[0, at:], one[1, at:], one[2, at:]
    other_x, other_y, other_z = other[0, other_at:], other[1, other_at:], other[2, other_at:]
    for f in range(out.size):
        out[f] += x[f] * other_x[f] + y[f] * other_y[f] + z[f] * other_z[f]


@njit(inline="always")
def _inverse_norms(row, at, epsilon, out):
    x, y, z = row[0, at:], row[1, at:], row[2, at:]
    one = out.dtype.type(1)
    for f in range(out.size):
        out[f] = one / np.sqrt(x[f] * x[f] + y[f] * y[f] + z[f] * z[f] + epsilon)


def _context(scalar, mixed, epsilon, out):
    width, eps = scalar.shape[1], mixed.dtype.type(epsilon)
    first = mixed.shape[2] - width
    for node in prange(scalar.shape[0]):
        source, row, norm = scalar[node], out[node, :width], out[node, width:]
        x, y, z = mixed[node, 0, first:], mixed[node, 1, first:], mixed[node, 2, first:]
        for f in range(width):
            row[f] = source[f]
        for f in range(width):
            norm[f] = np.sqrt(x[f] * x[f] + y[f] * y[f] + z[f] * z[f] + eps)


def _context_backward(grad, mixed, epsilon, by_scalar, by_mixed):
    nodes, width, eps = grad.shape[0], grad.shape[1] // 2, mixed.dtype.type(epsilon)
    first = mixed.shape[2] - width
    for block in prange((nodes + BLOCK - 1) // BLOCK):
        slope = np.empty(width, mixed.dtype)
        for node in range(block * BLOCK, min((block + 1) * BLOCK, nodes)):
            g = grad[node]
            if by_scalar.shape[0]:
                row = by_scalar[node]
                for f in range(width):
                    row[f] = g[f]
            if by_mixed.shape[0]:
                norm_g = g[width:]
                _inverse_norms(mixed[node], first, eps, slope)
                for f in range(width):
                    slope[f] *= norm_g[f]
                for axis in range(3):
                    by_mixed[node, axis, :first] = 0
                    row, component = by_mixed[node, axis, first:], mixed[node, axis, first:]
                    for f in range(width):
                        row[f] = slope[f] * component[f]


def _context_double_backward(t_scalar, t_mixed, grad, mixed, epsilon, by_grad, by_mixed):
    nodes, width, eps = grad.shape[0], grad.shape[1] // 2, mixed.dtype.type(epsilon)
    first = mixed.shape[2] - width
    for block in prange((nodes + BLOCK - 1) // BLOCK):
        absent, inverse, along = np.zeros(width, mixed.dtype), np.empty(width, mixed.dtype), np.empty(width, mixed.dtype)
        for node in range(block * BLOCK, min((block + 1) * BLOCK, nodes)):
            norm_g = grad[node, width:]
            _inverse_norms(mixed[node], first, eps, inverse)
            _dots(t_mixed[node], first, mixed[node], first, along)
            # the tangent along the unit vector; both in turn are made ready for what is left
            for f in range(width):
                along[f] *= inverse[f]
            if by_grad.shape[0]:
                source, row, last = t_scalar[node] if t_scalar.shape[0] else absent, by_grad[node, :width], by_grad[node, width:]
                for f in range(width):
                    row[f] = source[f]
                for f in range(width):
                    last[f] = along[f]
            if by_mixed.shape[0]:
                for f in range(width):
                    along[f] *= inverse[f]
                for f in range(width):
                    inverse[f] *= norm_g[f]
                for axis in range(3):
                    by_mixed[node, axis, :first] = 0
                    row, component, tangent = by_mixed[node, axis, first:], mixed[node, axis, first:], t_mixed[node, axis, first:]
                    for f in range(width):
                        row[f] = inverse[f] * (tangent[f] - along[f] * component[f])


def _update(gates, mixed, dot_scale, scalar_scale, out_scalar, out_vector):
    nodes, width = out_scalar.shape
    scale, dot_factor = gates.dtype.type(scalar_scale), gates.dtype.type(scalar_scale * dot_scale)
    for block in prange((nodes + BLOCK - 1) // BLOCK):
        dot = np.empty(width, gates.dtype)
        for node in range(block * BLOCK, min((block + 1) * BLOCK, nodes)):
            a, b, c = gates[node, :width], gates[node, width : 2 * width], gates[node, 2 * width :]
            m, row = mixed[node], out_scalar[node]
            _dots(m, 0, m, width, dot)
            for f in range(width):
                row[f] = scale * a[f] + dot_factor * (b[f] * dot[f])
            for axis in range(3):
                into, component = out_vector[node, axis], m[axis, :width]
                for f in range(width):
                    into[f] = c[f] * component[f]


def _update_backward(grad_scalar, grad_vector, gates, mixed, dot_scale, scalar_scale, by_gates, by_mixed):
    nodes, width = gates.shape[0], gates.shape[1] // 3
    scale, dot_factor = gates.dtype.type(scalar_scale), gates.dtype.type(scalar_scale * dot_scale)
    for block in prange((nodes + BLOCK - 1) // BLOCK):
        absent, absent_vector = np.zeros(width, gates.dtype), np.zeros((3, width), gates.dtype)
        weight = np.empty(width, gates.dtype)
        for node in range(block * BLOCK, min((block + 1) * BLOCK, nodes)):
            b, c = gates[node, width : 2 * width], gates[node, 2 * width :]
            m = mixed[node]
            g = grad_scalar[node] if grad_scalar.shape[0] else absent
            h = grad_vector[node] if grad_vector.shape[0] else absent_vector
            if by_gates.shape[0]:
                by_a, by_b = by_gates[node, :width], by_gates[node, width : 2 * width]
                for f in range(width):
                    by_a[f] = scale * g[f]
                _dots(m, 0, m, width, by_b)
                for f in range(width):
                    by_b[f] *= dot_factor * g[f]
                _dots(h, 0, m, 0, by_gates[node, 2 * width :])
            if by_mixed.shape[0]:
                for f in range(width):
                    weight[f] = dot_factor * (g[f] * b[f])
                for axis in range(3):
                    by_u, by_v = by_mixed[node, axis, :width], by_mixed[node, axis, width:]
                    u_axis, v_axis, h_axis = m[axis, :width], m[axis, width:], h[axis]
                    for f in range(width):
                        by_u[f] = weight[f] * v_axis[f] + c[f] * h_axis[f]
                    for f in range(width):
                        by_v[f] = weight[f] * u_axis[f]


def _update_double_backward(  # noqa: PLR0912 - one visit to a node yields four gradients, each only where it is wanted
    t_gates, t_mixed, grad_scalar, grad_vector, gates, mixed, dot_scale, scalar_scale, by_scalar, by_vector, by_gates, by_mixed
):
    nodes, width = gates.shape[0], gates.shape[1] // 3
    dtype = gates.dtype
    scale, dot_factor = dtype.type(scalar_scale), dtype.type(scalar_scale * dot_scale)
    for block in prange((nodes + BLOCK - 1) // BLOCK):
        no_gates, no_mixed = np.zeros(3 * width, dtype), np.zeros((3, 2 * width), dtype)
        absent, absent_vector = np.zeros(width, dtype), np.zeros((3, width), dtype)
        dot, d_dot, weight, d_weight = np.empty(width, dtype), np.empty(width, dtype), np.empty(width, dtype), np.empty(width, dtype)
        for node in range(block * BLOCK, min((block + 1) * BLOCK, nodes)):
            b, c = gates[node, width : 2 * width], gates[node, 2 * width :]
            t, dm = t_gates[node] if t_gates.shape[0] else no_gates, t_mixed[node] if t_mixed.shape[0] else no_mixed
            m = mixed[node]
            da, db, dc = t[:width], t[width : 2 * width], t[2 * width :]
            g = grad_scalar[node] if grad_scalar.shape[0] else absent
            h = grad_vector[node] if grad_vector.shape[0] else absent_vector
            _dots(dm, 0, m, width, d_dot)
            _add_dots(m, 0, dm, width, d_dot)
            if by_scalar.shape[0]:
                row = by_scalar[node]
                _dots(m, 0, m, width, dot)
                for f in range(width):
                    row[f] = scale * da[f] + dot_factor * (db[f] * dot[f] + b[f] * d_dot[f])
            if by_vector.shape[0]:
                for axis in range(3):
                    row, u_axis, du_axis = by_vector[node, axis], m[axis, :width], dm[axis, :width]
                    for f in range(width):
                        row[f] = dc[f] * u_axis[f] + c[f] * du_axis[f]
            if by_gates.shape[0]:
                by_gates[node, :width] = 0
                row = by_gates[node, width : 2 * width]
                for f in range(width):
                    row[f] = dot_factor * (g[f] * d_dot[f])
                _dots(h, 0, dm, 0, by_gates[node, 2 * width :])
            if by_mixed.shape[0]:
                for f in range(width):
                    weight[f] = dot_factor * (g[f] * b[f])
                for f in range(width):
                    d_weight[f] = dot_factor * (g[f] * db[f])
                for axis in range(3):
                    by_u, by_v = by_mixed[node, axis, :width], by_mixed[node, axis, width:]
                    u_axis, v_axis, h_axis = m[axis, :width], m[axis, width:], h[axis]
                    du_axis, dv_axis = dm[axis, :width], dm[axis, width:]
                    for f in range(width):
                        by_u[f] = d_weight[f] * v_axis[f] + weight[f] * dv_axis[f] + dc[f] * h_axis[f]
                    for f in range(width):
                        by_v[f] = d_weight[f] * u_axis[f] + weight[f] * du_axis[f]


context = Kernel(_context)
context_backward = Kernel(_context_backward)
context_double_backward = Kernel(_context_double_backward)
update = Kernel(_update)
update_backward = Kernel(_update_backward)
update_double_backward = Kernel(_update_double_backward)
