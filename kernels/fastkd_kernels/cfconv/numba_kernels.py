"""CPU kernels: one thread owns a row of output, so sums are reproducible and nothing edge-sized is made on the way.

The inner loops run over contiguous features; each writes one array and reads two or three, which the compiler can still prove
(at run time) not to overlap, and so vectorises.
"""

from numba import prange

from ..cpu import Kernel


def _cfconv(x, weight, src, ptr, order, out):
    for node in prange(ptr.size - 1):
        row = out[node]
        row[:] = 0
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            neighbour = x[src[edge]]
            filter_row = weight[edge]
            for f in range(row.size):
                row[f] += filter_row[f] * neighbour[f]


def _cfconv_streamed(x, weight, src, dst, first, out):
    """The same sums, reading the edges as they lie; ``first`` are the nodes at which runs of nodes begin, see `cpu.streams`."""
    for run in prange(first.size - 1):
        low, high = first[run], first[run + 1]
        out[low:high] = 0
        for edge in range(src.size):
            node = dst[edge]
            if low <= node < high:
                row, neighbour, filter_row = out[node], x[src[edge]], weight[edge]
                for f in range(row.size):
                    row[f] += filter_row[f] * neighbour[f]


def _gradients_streamed(grad, x, weight, src, dst, first, by_x, by_weight):
    """Both gradients of `_cfconv` in one pass over the edges as they lie; runs of sources, see `cpu.streams`."""
    for run in prange(first.size - 1):
        low, high = first[run], first[run + 1]
        by_x[low:high] = 0
        for edge in range(src.size):
            node = src[edge]
            if low <= node < high:
                g, own, filter_row, row, product = grad[dst[edge]], x[node], weight[edge], by_x[node], by_weight[edge]
                for f in range(row.size):
                    row[f] += filter_row[f] * g[f]
                for f in range(row.size):
                    product[f] = own[f] * g[f]


def _edge_product(a, b, src, dst, out):
    for edge in prange(src.size):
        row, left, right = out[edge], a[dst[edge]], b[src[edge]]
        for f in range(row.size):
            row[f] = left[f] * right[f]


def _paired_cfconv(x, pair_weight, src, ptr, order, pair, out):
    for node in prange(ptr.size - 1):
        row = out[node]
        row[:] = 0
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            neighbour = x[src[edge]]
            filter_row = pair_weight[pair[edge]]
            for f in range(row.size):
                row[f] += filter_row[f] * neighbour[f]


def _pair_product(a, b, src, dst, pair_edges, out):
    for p in prange(out.shape[0]):
        edge = pair_edges[p, 0]
        i, j = dst[edge], src[edge]
        row, a_i, a_j, b_i, b_j = out[p], a[i], a[j], b[i], b[j]
        for f in range(row.size):
            row[f] = a_i[f] * b_j[f] + a_j[f] * b_i[f]


cfconv = Kernel(_cfconv)
cfconv_streamed = Kernel(_cfconv_streamed)
gradients_streamed = Kernel(_gradients_streamed)
edge_product = Kernel(_edge_product)
paired_cfconv = Kernel(_paired_cfconv)
pair_product = Kernel(_pair_product)
