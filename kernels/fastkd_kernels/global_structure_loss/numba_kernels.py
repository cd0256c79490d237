"""CPU kernels: one thread owns an image and visits each pair of its atoms once; nothing of the size of the pairs is made.

Index: ``structure_rows`` and ``structure_pull`` are the loss and its gradient, ``pair_rows`` and ``pair_pull`` the same with up to four
different features. An atom is also paired with itself, which adds 0, or NaN if it is NaN.
"""

from numba import prange

from ..cpu import Kernel


def _structure_rows(x, y, ptr, out):
    width, target_width = max(x.shape[1], 1), max(y.shape[1], 1)
    for image in prange(ptr.size - 1):
        start, stop = ptr[image], ptr[image + 1]
        out[start:stop] = 0
        for i in range(start, stop):
            x_i, y_i = x[i], y[i]
            for j in range(i, stop):
                x_j, y_j = x[j], y[j]
                # zeros of the output's own type, so that the sums vectorise at its width
                near = far = out.dtype.type(0)
                for f in range(x_i.size):
                    step = x_i[f] - x_j[f]
                    near += step * step
                for f in range(y_i.size):
                    step = y_i[f] - y_j[f]
                    far += step * step
                residual = near / out.dtype.type(width) - far / out.dtype.type(target_width)
                out[i] += residual * residual
                if j > i:
                    out[j] += residual * residual


def _structure_pull(x, h, y, ptr, out):
    width, target_width = max(x.shape[1], 1), max(y.shape[1], 1)
    for image in prange(ptr.size - 1):
        start, stop = ptr[image], ptr[image + 1]
        out[start:stop] = 0
        for i in range(start, stop):
            x_i, y_i, out_i = x[i], y[i], out[i]
            for j in range(i, stop):
                x_j, y_j, out_j = x[j], y[j], out[j]
                near = far = out.dtype.type(0)
                for f in range(x_i.size):
                    step = x_i[f] - x_j[f]
                    near += step * step
                for f in range(y_i.size):
                    step = y_i[f] - y_j[f]
                    far += step * step
                weight = (h[i] + h[j]) * (near / out.dtype.type(width) - far / out.dtype.type(target_width))
                if j == i:
                    for f in range(x_i.size):
                        out_i[f] += weight * (x_i[f] - x_j[f])
                else:
                    for f in range(x_i.size):
                        pull = weight * (x_i[f] - x_j[f])
                        out_i[f] += pull
                        out_j[f] -= pull


def _pair_rows(a, b, c, d, y, ptr, out):
    # ``y`` has no columns if there is none
    width, target_width = max(a.shape[1], 1), max(y.shape[1], 1)
    for image in prange(ptr.size - 1):
        start, stop = ptr[image], ptr[image + 1]
        out[start:stop] = 0
        for i in range(start, stop):
            a_i, b_i, c_i, d_i, y_i = a[i], b[i], c[i], d[i], y[i]
            for j in range(i, stop):
                a_j, b_j, c_j, d_j, y_j = a[j], b[j], c[j], d[j], y[j]
                first = second = target = out.dtype.type(0)
                for f in range(a_i.size):
                    first += (a_i[f] - a_j[f]) * (b_i[f] - b_j[f])
                    second += (c_i[f] - c_j[f]) * (d_i[f] - d_j[f])
                for f in range(y_i.size):
                    step = y_i[f] - y_j[f]
                    target += step * step
                product = (first / out.dtype.type(width) - target / out.dtype.type(target_width)) * (second / out.dtype.type(width))
                out[i] += product
                if j > i:
                    out[j] += product


def _pair_pull(a, b, c, h, y, ptr, out):
    # ``y`` has no columns if there is none
    width, target_width = max(a.shape[1], 1), max(y.shape[1], 1)
    for image in prange(ptr.size - 1):
        start, stop = ptr[image], ptr[image + 1]
        out[start:stop] = 0
        for i in range(start, stop):
            a_i, b_i, c_i, y_i, out_i = a[i], b[i], c[i], y[i], out[i]
            for j in range(i, stop):
                a_j, b_j, c_j, y_j, out_j = a[j], b[j], c[j], y[j], out[j]
                near = far = out.dtype.type(0)
                for f in range(a_i.size):
                    near += (a_i[f] - a_j[f]) * (b_i[f] - b_j[f])
                for f in range(y_i.size):
                    step = y_i[f] - y_j[f]
                    far += step * step
                weight = (h[i] + h[j]) * (near / out.dtype.type(width) - far / out.dtype.type(target_width))
                if j == i:
                    for f in range(c_i.size):
                        out_i[f] += weight * (c_i[f] - c_j[f])
                else:
                    for f in range(c_i.size):
                        pull = weight * (c_i[f] - c_j[f])
                        out_i[f] += pull
                        out_j[f] -= pull


structure_rows = Kernel(_structure_rows)
structure_pull = Kernel(_structure_pull)
pair_rows = Kernel(_pair_rows)
pair_pull = Kernel(_pair_pull)
