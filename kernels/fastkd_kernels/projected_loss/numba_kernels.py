"""CPU kernels on one tile of rows: ``row_loss``, ``pull_back`` and ``pull_back_twice``. The matrix products around them are BLAS.

``kind`` is a position in `kinds.KINDS`. One thread owns a row, so the number of threads changes no bit.
"""

import numba

from ..cpu import Kernel


def row_loss(projected, target, kind, losses):
    """losses[i] = Σ_c ρ(projected − target)."""
    half, one = losses.dtype.type(0.5), losses.dtype.type(1)
    for row in numba.prange(projected.shape[0]):
        total = losses.dtype.type(0)
        p, t = projected[row], target[row]
        if kind == 0:
            for c in range(p.size):
                r = p[c] - t[c]
                total += r * r
        elif kind == 1:
            for c in range(p.size):
                total += abs(p[c] - t[c])
        else:
            for c in range(p.size):
                size = abs(p[c] - t[c])
                # with m = min(|r|, 1) both branches are m (|r| − m/2), without a jump
                near = min(size, one)
                total += near * (size - half * near)
        losses[row] = total


def pull_back(projected, target, upstream, kind):
    """In place: projected ← upstream[i] · ψ(projected − target)."""
    one = projected.dtype.type(1)
    for row in numba.prange(projected.shape[0]):
        p, t, h = projected[row], target[row], upstream[row]
        if kind == 0:
            h += h
            for c in range(p.size):
                p[c] = h * (p[c] - t[c])
        elif kind == 1:
            for c in range(p.size):
                r = p[c] - t[c]
                # exactly 0 at 0, and NaN stays NaN
                p[c] = h if r > 0 else -h if r < 0 else h * r
        else:
            for c in range(p.size):
                r = p[c] - t[c]
                p[c] = h if r > one else -h if r < -one else h * r


def pull_back_twice(projected, tangent, target, upstream, kind, slopes):
    """In place: projected ← upstream[i] · ψ(r), tangent ← upstream[i] · ψ′(r) · tangent; slopes[i] = Σ_c ψ(r) · tangent as it came."""
    zero, one, two = slopes.dtype.type(0), slopes.dtype.type(1), slopes.dtype.type(2)
    for row in numba.prange(projected.shape[0]):
        p, s, t, h = projected[row], tangent[row], target[row], upstream[row]
        total = slopes.dtype.type(0)
        if kind == 0:
            for c in range(p.size):
                slope = two * (p[c] - t[c])
                total += slope * s[c]
                p[c] = h * slope
                s[c] = two * h * s[c]
        elif kind == 1:
            for c in range(p.size):
                r = p[c] - t[c]
                slope = one if r > 0 else -one if r < 0 else r
                total += slope * s[c]
                p[c] = h * slope
                s[c] = zero * s[c]
        else:
            for c in range(p.size):
                r = p[c] - t[c]
                # NaN stays NaN
                slope = r
                if r > one:
                    slope = one
                elif r < -one:
                    slope = -one
                total += slope * s[c]
                p[c] = h * slope
                s[c] = h * s[c] if abs(r) <= one else zero * s[c]
        slopes[row] = total


row_loss_kernel = Kernel(row_loss)
pull_back_kernel = Kernel(pull_back)
pull_back_twice_kernel = Kernel(pull_back_twice)
