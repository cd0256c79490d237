"""CPU kernels on one tile of units whose filters, weight[m, t, used], BLAS has just made: m-th derivatives, in blocks (scalar, direction, vector).

Kernels that write rows of units give each row to one thread; kernels that add onto nodes give each thread ``block`` features of all
nodes, and walk through the units in order. Neither depends on the number of threads. What the former make and the latter need stays in
scratch rows of the tile. Without vectors the last block is not there (``used`` is 2F), and an array without rows is absent or not wanted.
"""

import numpy as np
from numba import prange

from ..cpu import Kernel
from ..painn_radial.numba_kernels import add_contracted, dot, pull, pull_tangent, turn
from ..radial_conv.numba_kernels import add_product, add_two_products, product, products


def _rows(phi, cut, smooth, out):
    """out[m, t] = (C φ, C)⁽ᵐ⁾, or (C φ, 1)⁽ᵐ⁾, from phi[m, t, k] and cut[m, t]."""
    last = phi.shape[2]
    one, two, zero = phi.dtype.type(1), phi.dtype.type(2), phi.dtype.type(0)
    for t in prange(phi.shape[1]):
        c, row, p = cut[0, t], out[0, t], phi[0, t]
        for k in range(last):
            row[k] = c * p[k]
        row[last] = c if smooth else one
        if phi.shape[0] > 1:
            c1, row, p1 = cut[1, t], out[1, t], phi[1, t]
            for k in range(last):
                row[k] = c * p1[k] + c1 * p[k]
            row[last] = c1 if smooth else zero
            if phi.shape[0] > 2:
                c2, row, p2 = cut[2, t], out[2, t], phi[2, t]
                for k in range(last):
                    row[k] = c * p2[k] + two * c1 * p1[k] + c2 * p[k]
                row[last] = c2 if smooth else zero


def _message(weight, i, j, paired, direction, phi, vector, out_scalar, out_vector, block):
    width, has_vector = out_scalar.shape[1], vector.shape[0] > 0
    one, zero = phi.dtype.type(1), phi.dtype.type(0)
    for part in prange((width + block - 1) // block):
        low = part * block
        high = min(low + block, width)
        along, carried = np.empty(high - low, phi.dtype), np.empty(high - low, phi.dtype)
        for t in range(i.size):
            to, of, w, r = i[t], j[t], weight[t], direction[t]
            # between a node and itself both ways cancel
            factor = one if not paired or to != of else zero
            for _ in range(2 if paired else 1):
                p = phi[of]
                add_product(out_scalar[to, low:high], w[low:high], p[low:high])
                product(along, w[width + low : width + high], p[width + low : width + high])
                if has_vector:
                    product(carried, w[2 * width + low : 2 * width + high], p[2 * width + low : 2 * width + high])
                for axis in range(3):
                    row, a = out_vector[to, axis, low:high], factor * r[axis]
                    if has_vector:
                        v = vector[of, axis, low:high]
                        for f in range(row.size):
                            row[f] += a * along[f] + carried[f] * v[f]
                    else:
                        for f in range(row.size):
                            row[f] += a * along[f]
                to, of, factor = of, to, -factor


def _pulls(
    weight, i, j, paired, direction, grad_scalar, grad_vector, phi, vector, need_length, need_direction, q, p, by_length, by_direction
):
    """What units receive: by_length and by_direction; p[t] = Σ φ_j ∘ q; and q[way, t], which each way's filter ∘ φ receives."""
    width, has_vector = grad_scalar.shape[1], vector.shape[0] > 0
    one, zero = phi.dtype.type(1), phi.dtype.type(0)
    for t in prange(i.size):
        to, of, r = i[t], j[t], direction[t]
        factor = one if not paired or to != of else zero
        absent = np.zeros((3, 1), phi.dtype)
        if q.shape[1]:
            pull(q[0, t], width, has_vector, factor, r, grad_scalar[to], grad_vector[to], vector[of] if has_vector else absent)
            if paired:
                pull(q[1, t], width, has_vector, -factor, r, grad_scalar[of], grad_vector[of], vector[to] if has_vector else absent)
        if p.shape[0]:
            if paired:
                products(p[t], phi[of], q[0, t], phi[to], q[1, t])
            else:
                product(p[t], phi[of], q[0, t])
        if need_length:
            by_length[t] = dot(weight[1, t], p[t])
        if need_direction:
            by_direction[t] = 0
            if factor != zero:
                along = weight[0, t, width : 2 * width]
                turn(by_direction[t], along, phi[of, width:], grad_vector[to], phi[to, width:], grad_vector[of], paired)


def _spread(weight, i, j, paired, grad_vector, q, by_phi, by_vector, block):
    """by_phi[j] += W ∘ q and by_vector[j] += W_v ∘ G_i, and back for pairs. The factor φ_v of the latter is left to `scale`."""
    width, blocks = grad_vector.shape[2], weight.shape[1] // grad_vector.shape[2]
    for part in prange((width + block - 1) // block):
        low = part * block
        high = min(low + block, width)
        for t in range(i.size):
            to, of, w = i[t], j[t], weight[t]
            for way in range(2 if paired else 1):
                if by_phi.shape[0]:
                    for b in range(blocks):
                        one, two = b * width + low, b * width + high
                        add_product(by_phi[of, one:two], w[one:two], q[way, t, one:two])
                if by_vector.shape[0]:
                    for axis in range(3):
                        add_product(by_vector[of, axis, low:high], w[2 * width + low : 2 * width + high], grad_vector[to, axis, low:high])
                to, of = of, to


def _scale(phi, by_vector):
    """In place: by_vector[node] *= φ_v."""
    width = by_vector.shape[2]
    for node in prange(by_vector.shape[0]):
        carried = phi[node, 2 * width :]
        for axis in range(3):
            row = by_vector[node, axis]
            for f in range(width):
                row[f] *= carried[f]


def _second_pulls(
    weight,
    i,
    j,
    paired,
    rate,
    direction,
    t_phi,
    t_vector,
    t_direction,
    grad_scalar,
    grad_vector,
    phi,
    vector,
    need_length,
    need_direction,
    q,
    dq,
    p,
    by_length,
    by_direction,
):
    """`_pulls` for the second derivatives: p[0, t] = Σ φ̇_j ∘ q + φ_j ∘ q̇ and p[1, t] = rate Σ φ_j ∘ q; rows of q, and of q̇ without the first block."""
    width, has_vector = grad_scalar.shape[1], vector.shape[0] > 0
    used = weight.shape[2]
    one, zero = phi.dtype.type(1), phi.dtype.type(0)
    for t in prange(i.size):
        # stand in for rows of missing tensors
        no_phi, no_vector, no_direction = np.zeros(used, phi.dtype), np.zeros((3, width), phi.dtype), np.zeros(3, phi.dtype)
        m = np.empty(width, phi.dtype)
        w, slope, speed = weight[0, t, width : 2 * width], weight[1, t, width : 2 * width], rate[t]
        to, of, r, dr = i[t], j[t], direction[t], t_direction[t] if t_direction.shape[0] else no_direction
        factor = one if not paired or to != of else zero
        if need_direction:
            by_direction[t] = 0
        for way in range(2 if paired else 1):
            a, da = phi[of], t_phi[of] if t_phi.shape[0] else no_phi
            v, dv = vector[of] if has_vector else no_vector, t_vector[of] if t_vector.shape[0] else no_vector
            if q.shape[1]:
                pull(q[way, t], width, has_vector, factor, r, grad_scalar[to], grad_vector[to], v)
                pull_tangent(dq[way, t], width, has_vector, factor, dr, grad_vector[to], dv)
            if p.shape[1]:
                moved, kept, last = p[0, t], p[1, t], p[0, t, width:]
                if way == 0:
                    product(moved, da, q[way, t])
                    product(kept, a, q[way, t])
                else:
                    add_product(moved, da, q[way, t])
                    add_product(kept, a, q[way, t])
                add_product(last, a[width:], dq[way, t])
            if need_direction:
                a_last, da_last = a[width:], da[width:]
                for f in range(width):
                    m[f] = w[f] * da_last[f] + speed * slope[f] * a_last[f]
                add_contracted(by_direction[t], factor, m, grad_vector[to])
            to, of, factor = of, to, -factor
        if p.shape[1]:
            kept = p[1, t]
            for f in range(used):
                kept[f] *= speed
        if need_length:
            by_length[t] = dot(weight[1, t], p[0, t]) + dot(weight[2, t], p[1, t])


def _second_spread(  # noqa: PLR0912 - as in `_second_pulls`
    weight,
    i,
    j,
    paired,
    rate,
    direction,
    t_phi,
    t_vector,
    t_direction,
    grad_vector,
    phi,
    vector,
    q,
    dq,
    by_grad_scalar,
    by_grad_vector,
    by_phi,
    by_vector,
    block,
):
    """What nodes receive: with ṁ = W ∘ φ̇ + rate W′ ∘ φ, sums of ṁ and of ṁ ∘ G, and of rate W′ ∘ q + W ∘ q̇."""
    width, has_vector = grad_vector.shape[2], vector.shape[0] > 0
    one, zero = phi.dtype.type(1), phi.dtype.type(0)
    need_grads, need_phi, need_vector = by_grad_scalar.shape[0] > 0, by_phi.shape[0] > 0, by_vector.shape[0] > 0
    for part in prange((width + block - 1) // block):
        low = part * block
        high = min(low + block, width)
        size = high - low
        m, dm = np.empty(size, phi.dtype), np.empty(size, phi.dtype)
        none, still = np.zeros(size, phi.dtype), np.zeros(3, phi.dtype)
        for t in range(i.size):
            to, of, r, dr = i[t], j[t], direction[t], t_direction[t] if t_direction.shape[0] else still
            speed = rate[t]
            factor = one if not paired or to != of else zero
            for way in range(2 if paired else 1):
                for b in range(3 if has_vector else 2):
                    first, last = b * width + low, b * width + high
                    w, slope, a = weight[0, t, first:last], weight[1, t, first:last], phi[of, first:last]
                    da = t_phi[of, first:last] if t_phi.shape[0] else none
                    for f in range(size):
                        dm[f] = w[f] * da[f] + speed * slope[f] * a[f]
                    if need_phi:
                        row, pulled = by_phi[of, first:last], q[way, t, first:last]
                        if b == 0:
                            for f in range(size):
                                row[f] += speed * slope[f] * pulled[f]
                        else:
                            moved = dq[way, t, first - width : last - width]
                            for f in range(size):
                                row[f] += speed * slope[f] * pulled[f] + w[f] * moved[f]
                    if b == 0:
                        if need_grads:
                            row = by_grad_scalar[to, low:high]
                            for f in range(size):
                                row[f] += dm[f]
                        continue
                    if need_grads:
                        product(m, w, a)
                        for axis in range(3):
                            row = by_grad_vector[to, axis, low:high]
                            if b == 1:
                                x, dx = factor * r[axis], factor * dr[axis]
                                for f in range(size):
                                    row[f] += x * dm[f] + dx * m[f]
                            else:
                                v, dv = vector[of, axis, low:high], t_vector[of, axis, low:high] if t_vector.shape[0] else none
                                add_two_products(row, dm, v, m, dv)
                    if need_vector and b == 2:
                        for axis in range(3):
                            add_product(by_vector[of, axis, low:high], dm, grad_vector[to, axis, low:high])
                to, of, factor = of, to, -factor


rows = Kernel(_rows)
message = Kernel(_message)
pulls = Kernel(_pulls)
spread = Kernel(_spread)
scale = Kernel(_scale)
second_pulls = Kernel(_second_pulls)
second_spread = Kernel(_second_spread)
