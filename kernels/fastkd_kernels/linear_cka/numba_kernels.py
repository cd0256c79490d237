"""CPU kernels around BLAS: column means in two passes, and a tile of rows less these means.

One thread owns a block of columns, or a row, so the number of threads changes no bit.
"""

import numba

from ..cpu import Kernel

#: Columns a thread sums at a time: whole cache lines of every row.
BLOCK = 64


def column_means(x, means):
    """Writes means [C] in float64, of x [N, C]: a first mean, and the mean of what is left, which makes it exact for a constant column."""
    rows, width = x.shape
    for block in numba.prange((width + BLOCK - 1) // BLOCK):
        first, last = block * BLOCK, min(block * BLOCK + BLOCK, width)
        total = means[first:last]
        total[:] = 0
        for i in range(rows):
            row = x[i, first:last]
            for c in range(total.size):
                total[c] += row[c]
        mean = total / rows
        total[:] = 0
        for i in range(rows):
            row = x[i, first:last]
            for c in range(total.size):
                total[c] += row[c] - mean[c]
        for c in range(total.size):
            total[c] = mean[c] + total[c] / rows


def subtract_means(x, means, out):
    """Writes out = x − means, rounded once."""
    for i in numba.prange(x.shape[0]):
        source, row = x[i], out[i]
        for c in range(row.size):
            row[c] = source[c] - means[c]


column_means_kernel = Kernel(column_means)
subtract_means_kernel = Kernel(subtract_means)
