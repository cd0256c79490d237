"""CPU kernels: one thread owns a node, with the edges that end in it; nothing [E, C] is made.

Index: ``edge_distance``, ``edge_dot``, ``edge_laplacian`` on features; ``divergence``, ``divergence_gradient`` on numbers of edges.
"""

import math

from numba import prange

from ..cpu import Kernel


def _edge_distance(x, src, ptr, order, out):
    width = x.shape[1]
    for node in prange(ptr.size - 1):
        here = x[node]
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            there = x[src[edge]]
            # a zero of the output's own type, so that the sum vectorises at its width
            total = out.dtype.type(0)
            for f in range(width):
                step = there[f] - here[f]
                total += step * step
            out[edge] = math.sqrt(total)


def _edge_dot(a, b, src, ptr, order, out):
    width = a.shape[1]
    for node in prange(ptr.size - 1):
        a_here, b_here = a[node], b[node]
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            a_there, b_there = a[src[edge]], b[src[edge]]
            total = out.dtype.type(0)
            for f in range(width):
                total += (a_there[f] - a_here[f]) * (b_there[f] - b_here[f])
            out[edge] = total


def _edge_laplacian(w, x, src, dst, ptr, order, src_ptr, src_order, out):
    width = x.shape[1]
    for node in prange(out.shape[0]):
        here, row = x[node], out[node]
        row[:] = 0
        for k in range(ptr[node], ptr[node + 1]):
            edge = order[k]
            there, weight = x[src[edge]], w[edge]
            for f in range(width):
                row[f] += weight * (here[f] - there[f])
        for k in range(src_ptr[node], src_ptr[node + 1]):
            edge = src_order[k]
            there, weight = x[dst[edge]], w[edge]
            for f in range(width):
                row[f] += weight * (here[f] - there[f])


def _divergence(student, teacher, ptr, order, out):
    zero, one = out.dtype.type(0), out.dtype.type(1)
    # where |a| is small, e^a − 1 − a is summed as a series: the difference would cancel
    small, half = out.dtype.type(0.25), out.dtype.type(0.5)
    for node in prange(out.size):
        start, stop = ptr[node], ptr[node + 1]
        most_s, most_t = -out.dtype.type(math.inf), -out.dtype.type(math.inf)
        for k in range(start, stop):
            most_s = max(most_s, student[order[k]])
            most_t = max(most_t, teacher[order[k]])
        # float64: a hub adds thousands of equal numbers
        sum_s = sum_t = 0.0
        for k in range(start, stop):
            sum_s += math.exp(student[order[k]] - most_s)
            sum_t += math.exp(teacher[order[k]] - most_t)
        log_s, log_t = out.dtype.type(math.log(sum_s)), out.dtype.type(math.log(sum_t))
        total = zero
        for k in range(start, stop):
            shifted_s, shifted_t = student[order[k]] - most_s - log_s, teacher[order[k]] - most_t - log_t
            a, p_t = shifted_s - shifted_t, math.exp(shifted_t)
            if abs(a) < small:
                series = one
                for n in range(13, 2, -1):
                    series = one + a * series / out.dtype.type(n)
                total += p_t * half * a * a * series
            else:
                total += math.exp(shifted_s) - p_t - p_t * a
        out[node] = total


def _divergence_gradient(student, teacher, upstream, ptr, order, out):
    for node in prange(upstream.size):
        start, stop, h = ptr[node], ptr[node + 1], upstream[node]
        most_s, most_t = -out.dtype.type(math.inf), -out.dtype.type(math.inf)
        for k in range(start, stop):
            most_s = max(most_s, student[order[k]])
            most_t = max(most_t, teacher[order[k]])
        # float64: a hub adds thousands of equal numbers
        sum_s = sum_t = 0.0
        for k in range(start, stop):
            sum_s += math.exp(student[order[k]] - most_s)
            sum_t += math.exp(teacher[order[k]] - most_t)
        log_s, log_t = out.dtype.type(math.log(sum_s)), out.dtype.type(math.log(sum_t))
        for k in range(start, stop):
            edge = order[k]
            out[edge] = h * (math.exp(student[edge] - most_s - log_s) - math.exp(teacher[edge] - most_t - log_t))


edge_distance = Kernel(_edge_distance)
edge_dot = Kernel(_edge_dot)
edge_laplacian = Kernel(_edge_laplacian)
divergence = Kernel(_divergence)
divergence_gradient = Kernel(_divergence_gradient)
