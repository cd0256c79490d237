"""CPU kernels: for each unit the eight rows of the table are mixed into one filter, which serves both directions of a pair at once.

Units are worked on in their order; runs of units without a common node (`group_ptr`) may run side by side, each node's sum still being
made in the order of the units. Loops over features write one array each, which the compiler can prove not to overlap with what it
reads, and so vectorises: products pass through small scratch rows, which stay in the first cache.

phi, the table and their gradients are [·, 3F] in blocks (scalar, direction, vector), vectors [·, 3, F]. Without vectors the last block
is neither read nor mixed. An array without rows is absent or not wanted.
"""

import numba
import numpy as np
from numba import prange

from ..cpu import FASTMATH, Kernel
from ..radial_conv.numba_kernels import add_product, add_rows, add_rows_both, add_two_products, mix, product, products

_inline = numba.njit(fastmath=FASTMATH, error_model="numpy", inline="always")


@_inline
def contract(out, factor, a, rows):
    """Out = factor Σ_k a_k rows_k: a [3], rows [3, F]."""
    a0, a1, a2 = factor * a[0], factor * a[1], factor * a[2]
    x, y, z = rows[0], rows[1], rows[2]
    for f in range(out.size):
        out[f] = a0 * x[f] + a1 * y[f] + a2 * z[f]


@_inline
def contract_rows(out, a, b):
    """Out = Σ_k a_k ∘ b_k: a, b [3, F]."""
    ax, ay, az, bx, by, bz = a[0], a[1], a[2], b[0], b[1], b[2]
    for f in range(out.size):
        out[f] = ax[f] * bx[f] + ay[f] * by[f] + az[f] * bz[f]


@_inline
def pull(out, width, has_vector, factor, r, grad_scalar, grad_vector, vector):
    """Out = (g, ± r·G, v·G): what the blocks of filter ∘ phi receive."""
    scalar = out[:width]
    for f in range(width):
        scalar[f] = grad_scalar[f]
    contract(out[width : 2 * width], factor, r, grad_vector)
    if has_vector:
        contract_rows(out[2 * width :], vector, grad_vector)


@_inline
def pull_tangent(out, width, has_vector, factor, dr, grad_vector, d_vector):
    """Out = (± ṙ·G, v̇·G): `pull` of the tangents, which has no scalar block."""
    contract(out[:width], factor, dr, grad_vector)
    if has_vector:
        contract_rows(out[width:], d_vector, grad_vector)


@_inline
def step(out, factor, r, along, carried, vector, has_vector):
    """out_k += ± r_k along + carried ∘ vector_k."""
    for axis in range(3):
        row, a = out[axis], factor * r[axis]
        if has_vector:
            v = vector[axis]
            for f in range(row.size):
                row[f] += a * along[f] + carried[f] * v[f]
        else:
            for f in range(row.size):
                row[f] += a * along[f]


@_inline
def add_scaled_rows(out, w, rows):
    """out_k += w ∘ rows_k."""
    for axis in range(3):
        row, source = out[axis], rows[axis]
        for f in range(row.size):
            row[f] += w[f] * source[f]


@_inline
def dot(a, b):
    """Σ_f a_f b_f."""
    total = a.dtype.type(0)
    for f in range(a.size):
        total += a[f] * b[f]
    return total


@_inline
def add_contracted(out, factor, a, rows):
    """out_k += factor Σ_f a ∘ rows_k."""
    x = y = z = a.dtype.type(0)
    gx, gy, gz = rows[0], rows[1], rows[2]
    for f in range(a.size):
        x += a[f] * gx[f]
        y += a[f] * gy[f]
        z += a[f] * gz[f]
    out[0] += factor * x
    out[1] += factor * y
    out[2] += factor * z


@_inline
def turn(out, w, phi_src, grad_dst, phi_dst, grad_src, paired):
    """out_k = Σ_f w (phi_src ∘ G_dst,k − phi_dst ∘ G_src,k), without the second product unless the unit is a pair."""
    x = y = z = w.dtype.type(0)
    gx, gy, gz, hx, hy, hz = grad_dst[0], grad_dst[1], grad_dst[2], grad_src[0], grad_src[1], grad_src[2]
    if paired:
        for f in range(w.size):
            a, b = w[f] * phi_src[f], w[f] * phi_dst[f]
            x += a * gx[f] - b * hx[f]
            y += a * gy[f] - b * hy[f]
            z += a * gz[f] - b * hz[f]
    else:
        for f in range(w.size):
            a = w[f] * phi_src[f]
            x += a * gx[f]
            y += a * gy[f]
            z += a * gz[f]
    out[0], out[1], out[2] = x, y, z


def _message(phi, vector, direction, table, dst, src, knot, weights, group_ptr, paired, out_scalar, out_vector):
    width, has_vector = out_scalar.shape[1], vector.shape[0] > 0
    used = 3 * width if has_vector else 2 * width
    one, zero = phi.dtype.type(1), phi.dtype.type(0)
    for group in prange(group_ptr.size - 1):
        w, m = np.empty(used, phi.dtype), np.empty(used - width, phi.dtype)
        w_scalar, w_rest, along, carried = w[:width], w[width:], m[:width], m[width:]
        absent = np.zeros((3, 1), phi.dtype)
        for u in range(group_ptr[group], group_ptr[group + 1]):
            if knot[u] < 0:
                continue
            mix(table, knot[u], weights[u], w)
            i, j = dst[u], src[u]
            # between a node and itself both ways cancel
            factor = one if not paired or i != j else zero
            for _ in range(2 if paired else 1):
                p = phi[j]
                add_product(out_scalar[i], w_scalar, p)
                product(m, w_rest, p[width:])
                step(out_vector[i], factor, direction[u], along, carried, vector[j] if has_vector else absent, has_vector)
                i, j, factor = j, i, -factor


def _backward(  # noqa: PLR0912 - one visit to a unit yields five gradients, each only where it is wanted
    grad_scalar,
    grad_vector,
    phi,
    vector,
    direction,
    table,
    dst,
    src,
    knot,
    weights,
    group_ptr,
    paired,
    by_phi,
    by_vector,
    by_length,
    by_direction,
    partial,
):
    width, has_vector = grad_scalar.shape[1], vector.shape[0] > 0
    used = 3 * width if has_vector else 2 * width
    one, zero = phi.dtype.type(1), phi.dtype.type(0)
    need_phi, need_vector, need_length = by_phi.shape[0] > 0, by_vector.shape[0] > 0, by_length.shape[0] > 0
    need_direction, need_table = by_direction.shape[0] > 0, partial.shape[0] > 0
    need_filter, need_products = need_phi or need_vector or need_direction, need_length or need_table
    for group in prange(group_ptr.size - 1):
        w, p = np.empty(used, phi.dtype), np.empty(used, phi.dtype)
        q, back = np.empty(used, phi.dtype), np.empty(used, phi.dtype)
        w_along, w_carried = w[width : 2 * width], w[2 * width :]
        absent = np.zeros((3, 1), phi.dtype)
        if need_table:
            partial[group] = 0
        for u in range(group_ptr[group], group_ptr[group + 1]):
            if knot[u] < 0:
                continue
            i, j, r = dst[u], src[u], direction[u]
            factor = one if not paired or i != j else zero
            gi, gj, pi, pj = grad_vector[i], grad_vector[j], phi[i], phi[j]
            if need_filter:
                mix(table, knot[u], weights[u], w)
            if need_vector:
                add_scaled_rows(by_vector[j], w_carried, gi)
                if paired:
                    add_scaled_rows(by_vector[i], w_carried, gj)
            if need_direction and factor != zero:
                turn(by_direction[u], w_along, pj[width:], gi, pi[width:], gj, paired)
            if need_phi or need_products:
                pull(q, width, has_vector, factor, r, grad_scalar[i], gi, vector[j] if has_vector else absent)
                if paired:
                    pull(back, width, has_vector, -factor, r, grad_scalar[j], gj, vector[i] if has_vector else absent)
            if need_phi:
                add_product(by_phi[j, :used], w, q)
                if paired:
                    add_product(by_phi[i, :used], w, back)
            if need_products:
                if paired:
                    products(p, pj, q, pi, back)
                else:
                    product(p, pj, q)
            if need_length:
                mix(table, knot[u], weights[u, 8:], w)
                by_length[u] = dot(w, p)
            if need_table:
                add_rows(partial[group], knot[u], weights[u], p)
    if need_vector:
        # phi of the source is the same factor for all it sends
        for node in prange(phi.shape[0]):
            for axis in range(3):
                row, factors = by_vector[node, axis], phi[node, 2 * width :]
                for f in range(width):
                    row[f] *= factors[f]


def _double_backward(  # noqa: PLR0912, PLR0915 - for the same reason
    t_phi,
    t_vector,
    rate,
    t_direction,
    grad_scalar,
    grad_vector,
    phi,
    vector,
    direction,
    table,
    dst,
    src,
    knot,
    weights,
    curvature,
    group_ptr,
    paired,
    by_grad_scalar,
    by_grad_vector,
    by_phi,
    by_vector,
    by_length,
    by_direction,
    partial,
):
    width, has_vector = grad_scalar.shape[1], vector.shape[0] > 0
    used = 3 * width if has_vector else 2 * width
    rest = used - width
    one, zero = phi.dtype.type(1), phi.dtype.type(0)
    need_grads, need_phi, need_vector = by_grad_scalar.shape[0] > 0, by_phi.shape[0] > 0, by_vector.shape[0] > 0
    need_length, need_direction, need_table = by_length.shape[0] > 0, by_direction.shape[0] > 0, partial.shape[0] > 0
    need_products = need_length or need_table
    for group in prange(group_ptr.size - 1):
        b = np.zeros(8, phi.dtype)
        w, slope = np.empty(used, phi.dtype), np.zeros(used, phi.dtype)
        q, dq = np.empty(used, phi.dtype), np.empty(rest, phi.dtype)
        m, dm = np.empty(rest, phi.dtype), np.empty(rest, phi.dtype)
        moved, kept = np.empty(used, phi.dtype), np.empty(used, phi.dtype)
        # stand in for rows of missing tensors
        no_phi, no_vector, no_direction = np.zeros(used, phi.dtype), np.zeros((3, width), phi.dtype), np.zeros(3, phi.dtype)
        if need_table:
            partial[group] = 0
        for u in range(group_ptr[group], group_ptr[group + 1]):
            if knot[u] < 0:
                continue
            mix(table, knot[u], weights[u], w)
            if rate.shape[0]:
                for k in range(8):
                    b[k] = rate[u] * weights[u, 8 + k]
                mix(table, knot[u], b, slope)
            r, dr = direction[u], t_direction[u] if t_direction.shape[0] else no_direction
            i, j = dst[u], src[u]
            factor = one if not paired or i != j else zero
            for way in range(2 if paired else 1):
                gi, pj, dpj = grad_vector[i], phi[j], t_phi[j] if t_phi.shape[0] else no_phi
                vj, dvj = vector[j] if has_vector else no_vector, t_vector[j] if t_vector.shape[0] else no_vector
                products(dm, w[width:], dpj[width:], slope[width:], pj[width:])
                if need_grads:
                    add_two_products(by_grad_scalar[i], w, dpj, slope, pj)
                    product(m, w[width:], pj[width:])
                    step(by_grad_vector[i], factor, r, dm[:width], dm[width:], vj, has_vector)
                    step(by_grad_vector[i], factor, dr, m[:width], m[width:], dvj, has_vector)
                if need_vector:
                    add_scaled_rows(by_vector[j], dm[width:], gi)
                if need_direction:
                    add_contracted(by_direction[u], factor, dm[:width], gi)
                if need_phi or need_products:
                    pull(q, width, has_vector, factor, r, grad_scalar[i], gi, vj)
                    pull_tangent(dq, width, has_vector, factor, dr, gi, dvj)
                if need_phi:
                    add_product(by_phi[j, :used], slope, q)
                    add_product(by_phi[j, width:used], w[width:], dq)
                if need_products and way == 0:
                    product(kept, pj, q)
                    product(moved, dpj, q)
                    add_product(moved[width:], pj[width:], dq)
                elif need_products:
                    add_product(kept, pj, q)
                    add_product(moved, dpj, q)
                    add_product(moved[width:], pj[width:], dq)
                i, j, factor = j, i, -factor
            if need_table:
                add_rows_both(partial[group], knot[u], weights[u], moved, b, kept)
            if need_length:
                mix(table, knot[u], weights[u, 8:], w)
                by_length[u] = dot(w, moved)
                if rate.shape[0]:
                    mix(table, knot[u], curvature[u], w)
                    by_length[u] += rate[u] * dot(w, kept)


message = Kernel(_message)
backward = Kernel(_backward)
double_backward = Kernel(_double_backward)
