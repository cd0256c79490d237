"""CPU kernels: one thread owns an edge (or its triplets), so sums have one order and nothing [T, S, D] is made.

Four triplets are summed at a time, so that a row of the result is loaded and stored once for four products.
"""

from numba import prange

from ..cpu import Kernel


def _reduce(x, a, edge_in, ptr, order, out):
    count, width = a.shape[1], x.shape[1]
    for edge in prange(out.shape[0]):
        block = out[edge]
        block[:] = 0
        k, stop = ptr[edge], ptr[edge + 1]
        while k + 4 <= stop:
            t0, t1, t2, t3 = order[k], order[k + 1], order[k + 2], order[k + 3]
            x0, x1, x2, x3 = x[edge_in[t0]], x[edge_in[t1]], x[edge_in[t2]], x[edge_in[t3]]
            for s in range(count):
                row = block[s]
                a0, a1, a2, a3 = a[t0, s], a[t1, s], a[t2, s], a[t3, s]
                for f in range(width):
                    row[f] += a0 * x0[f] + a1 * x1[f] + a2 * x2[f] + a3 * x3[f]
            k += 4
        while k < stop:
            triplet = order[k]
            source = x[edge_in[triplet]]
            for s in range(count):
                row, factor = block[s], a[triplet, s]
                for f in range(width):
                    row[f] += factor * source[f]
            k += 1


def _pull(g, a, edge_out, ptr, order, out):
    count, width = a.shape[1], g.shape[2]
    for edge in prange(out.shape[0]):
        row = out[edge]
        row[:] = 0
        for k in range(ptr[edge], ptr[edge + 1]):
            triplet = order[k]
            block = g[edge_out[triplet]]
            s = 0
            while s + 4 <= count:
                a0, a1, a2, a3 = a[triplet, s], a[triplet, s + 1], a[triplet, s + 2], a[triplet, s + 3]
                g0, g1, g2, g3 = block[s], block[s + 1], block[s + 2], block[s + 3]
                for f in range(width):
                    row[f] += a0 * g0[f] + a1 * g1[f] + a2 * g2[f] + a3 * g3[f]
                s += 4
            while s < count:
                factor, source = a[triplet, s], block[s]
                for f in range(width):
                    row[f] += factor * source[f]
                s += 1


def _dot(g, x, edge_in, ptr, order, out):
    # by output edge, whose rows of g stay in cache
    count, width = out.shape[1], x.shape[1]
    for edge in prange(ptr.size - 1):
        block = g[edge]
        for k in range(ptr[edge], ptr[edge + 1]):
            triplet = order[k]
            source = x[edge_in[triplet]]
            for s in range(count):
                row = block[s]
                # a zero of the inputs' own type, so that the sum vectorises at its width
                total = out.dtype.type(0)
                for f in range(width):
                    total += row[f] * source[f]
                out[triplet, s] = total


def _gradients(g, x, a, edge_out, ptr, order, by_x, by_a):
    count, width = a.shape[1], x.shape[1]
    for edge in prange(by_x.shape[0]):
        row, source = by_x[edge], x[edge]
        row[:] = 0
        for k in range(ptr[edge], ptr[edge + 1]):
            triplet = order[k]
            block = g[edge_out[triplet]]
            for s in range(count):
                factor, pulled = a[triplet, s], block[s]
                total = by_a.dtype.type(0)
                for f in range(width):
                    value = pulled[f]
                    row[f] += factor * value
                    total += value * source[f]
                by_a[triplet, s] = total


reduce = Kernel(_reduce)
pull = Kernel(_pull)
dot = Kernel(_dot)
gradients = Kernel(_gradients)
