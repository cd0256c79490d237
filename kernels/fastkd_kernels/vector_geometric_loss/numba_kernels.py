"""CPU kernels on one tile of projected vectors [nodes, 3, D]: ``geometric_loss`` and ``geometric_pull``. The products around them are BLAS.

One thread owns a node, so the number of threads changes no bit. Choices are selects, not jumps, so that channels fill vector units.
"""

import math

import numba

from ..cpu import Kernel


def geometric_loss(projected, target, mix, eps, losses):
    """losses[i] = Σ_c (1 − g) | ‖u‖ − ‖t‖ | + g (1 − cos)."""
    kind = losses.dtype.type
    half, one, zero, turn, stretch, least = kind(0.5), kind(1), kind(0), kind(mix), kind(1 - mix), kind(eps)
    for node in numba.prange(projected.shape[0]):
        ux, uy, uz = projected[node, 0], projected[node, 1], projected[node, 2]
        tx, ty, tz = target[node, 0], target[node, 1], target[node, 2]
        total = zero
        for c in range(ux.size):
            a = math.sqrt(ux[c] * ux[c] + uy[c] * uy[c] + uz[c] * uz[c])
            b = math.sqrt(tx[c] * tx[c] + ty[c] * ty[c] + tz[c] * tz[c])
            # NaN is not short
            short = (a < least) | (b < least)
            alpha, beta = one / (one if a < least else a), one / (one if b < least else b)
            dx, dy, dz = ux[c] * alpha - tx[c] * beta, uy[c] * alpha - ty[c] * beta, uz[c] * alpha - tz[c] * beta
            # half the square of the difference of directions keeps the digits of small angles
            opening = one if short else half * (dx * dx + dy * dy + dz * dz)
            total += stretch * abs(a - b) + turn * opening
        losses[node] = total


def geometric_pull(projected, target, upstream, mix, eps, need_target, grad_target):
    """In place: projected ← upstream[i] · the slope by u; grad_target ← that by t, if needed."""
    kind = projected.dtype.type
    half, one, zero, turn, stretch, least = kind(0.5), kind(1), kind(0), kind(mix), kind(1 - mix), kind(eps)
    for node in numba.prange(projected.shape[0]):
        ux, uy, uz, h = projected[node, 0], projected[node, 1], projected[node, 2], upstream[node]
        tx, ty, tz = target[node, 0], target[node, 1], target[node, 2]
        for c in range(ux.size):
            px, py, pz, qx, qy, qz = ux[c], uy[c], uz[c], tx[c], ty[c], tz[c]
            a, b = math.sqrt(px * px + py * py + pz * pz), math.sqrt(qx * qx + qy * qy + qz * qz)
            alpha, beta = zero if a < least else one / a, zero if b < least else one / b
            px, py, pz, qx, qy, qz = px * alpha, py * alpha, pz * alpha, qx * beta, qy * beta, qz * beta
            dx, dy, dz = px - qx, py - qy, pz - qz
            opening = half * (dx * dx + dy * dy + dz * dz)
            r = a - b
            longer = stretch * (one if r > zero else -one if r < zero else r)
            g = zero if (a < least) | (b < least) else turn
            if need_target:
                grad_target[node, 0, c] = -h * (longer * qx + g * beta * (dx + opening * qx))
                grad_target[node, 1, c] = -h * (longer * qy + g * beta * (dy + opening * qy))
                grad_target[node, 2, c] = -h * (longer * qz + g * beta * (dz + opening * qz))
            ux[c] = h * (longer * px + g * alpha * (dx - opening * px))
            uy[c] = h * (longer * py + g * alpha * (dy - opening * py))
            uz[c] = h * (longer * pz + g * alpha * (dz - opening * pz))


geometric_loss_kernel = Kernel(geometric_loss)
geometric_pull_kernel = Kernel(geometric_pull)
