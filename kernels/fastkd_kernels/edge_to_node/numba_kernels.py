"""CPU kernels: one thread owns a node, or an edge, so sums have one order and nothing [E, 3, D] is made."""

from numba import prange

from ..cpu import Kernel


def _sum_vector(m, r, ptr, order, vector):
    width = m.shape[1]
    for node in prange(vector.shape[0]):
        x, y, z = vector[node, 0], vector[node, 1], vector[node, 2]
        x[:] = 0
        y[:] = 0
        z[:] = 0
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            source = m[edge]
            rx, ry, rz = r[edge, 0], r[edge, 1], r[edge, 2]
            for f in range(width):
                x[f] += rx * source[f]
                y[f] += ry * source[f]
                z[f] += rz * source[f]


def _sum_both(m, r, ptr, order, scalar, vector):
    width = m.shape[1]
    for node in prange(vector.shape[0]):
        s, x, y, z = scalar[node], vector[node, 0], vector[node, 1], vector[node, 2]
        s[:] = 0
        x[:] = 0
        y[:] = 0
        z[:] = 0
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            source = m[edge]
            rx, ry, rz = r[edge, 0], r[edge, 1], r[edge, 2]
            for f in range(width):
                value = source[f]
                s[f] += value
                x[f] += rx * value
                y[f] += ry * value
                z[f] += rz * value


def _sum_vector_streamed(m, r, dst, first, vector):
    """The same sums, reading the edges as they lie; ``first`` are the nodes at which runs of nodes begin, see `cpu.streams`."""
    width = m.shape[1]
    for run in prange(first.size - 1):
        low, high = first[run], first[run + 1]
        vector[low:high] = 0
        for edge in range(dst.size):
            node = dst[edge]
            if low <= node < high:
                x, y, z, source = vector[node, 0], vector[node, 1], vector[node, 2], m[edge]
                rx, ry, rz = r[edge, 0], r[edge, 1], r[edge, 2]
                for f in range(width):
                    x[f] += rx * source[f]
                    y[f] += ry * source[f]
                    z[f] += rz * source[f]


def _sum_both_streamed(m, r, dst, first, scalar, vector):
    width = m.shape[1]
    for run in prange(first.size - 1):
        low, high = first[run], first[run + 1]
        scalar[low:high] = 0
        vector[low:high] = 0
        for edge in range(dst.size):
            node = dst[edge]
            if low <= node < high:
                s, x, y, z, source = scalar[node], vector[node, 0], vector[node, 1], vector[node, 2], m[edge]
                rx, ry, rz = r[edge, 0], r[edge, 1], r[edge, 2]
                for f in range(width):
                    value = source[f]
                    s[f] += value
                    x[f] += rx * value
                    y[f] += ry * value
                    z[f] += rz * value


def _node_to_edge(r, vector, scalar, dst, out):
    # ``scalar`` has no rows if there is none
    width, with_scalar = out.shape[1], scalar.shape[0] > 0
    for edge in prange(dst.size):
        node, row = dst[edge], out[edge]
        x, y, z = vector[node, 0], vector[node, 1], vector[node, 2]
        rx, ry, rz = r[edge, 0], r[edge, 1], r[edge, 2]
        for f in range(width):
            row[f] = rx * x[f] + ry * y[f] + rz * z[f]
        if with_scalar:
            for f in range(width):
                row[f] += scalar[node, f]


def _node_dot_edge(m, vector, dst, out):
    width = m.shape[1]
    for edge in prange(dst.size):
        node, source = dst[edge], m[edge]
        x, y, z = vector[node, 0], vector[node, 1], vector[node, 2]
        # a zero of the inputs' own type, so that the sums vectorise at its width
        dx = dy = dz = out.dtype.type(0)
        for f in range(width):
            dx += source[f] * x[f]
            dy += source[f] * y[f]
            dz += source[f] * z[f]
        out[edge, 0], out[edge, 1], out[edge, 2] = dx, dy, dz


def _edge_gradients(m, r, vector, scalar, dst, by_m, by_r):
    width, with_scalar = m.shape[1], scalar.shape[0] > 0
    for edge in prange(dst.size):
        node, source, row = dst[edge], m[edge], by_m[edge]
        x, y, z = vector[node, 0], vector[node, 1], vector[node, 2]
        rx, ry, rz = r[edge, 0], r[edge, 1], r[edge, 2]
        dx = dy = dz = by_r.dtype.type(0)
        for f in range(width):
            row[f] = rx * x[f] + ry * y[f] + rz * z[f]
            dx += source[f] * x[f]
            dy += source[f] * y[f]
            dz += source[f] * z[f]
        if with_scalar:
            for f in range(width):
                row[f] += scalar[node, f]
        by_r[edge, 0], by_r[edge, 1], by_r[edge, 2] = dx, dy, dz


sum_vector = Kernel(_sum_vector)
sum_both = Kernel(_sum_both)
sum_vector_streamed = Kernel(_sum_vector_streamed)
sum_both_streamed = Kernel(_sum_both_streamed)
node_to_edge = Kernel(_node_to_edge)
node_dot_edge = Kernel(_node_dot_edge)
edge_gradients = Kernel(_edge_gradients)
