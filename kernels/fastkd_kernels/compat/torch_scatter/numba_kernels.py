"""Grouping of an index on a CPU by counting: one pass to look, one to count, one to place."""

from numba import njit


@njit(cache=True)
def group_index(index, ptr, order):
    """Write the pointers of each number's rows, and if the index does not rise, the stable order that makes it so.

    Args:
        index: [n] int64.
        ptr: [m + 1] int64, written.
        order: [n] int64, written unless the index rises.

    Returns:
        1 if the index rises, 0 if it had to be ordered, −1 if an entry lies outside of [0, m), and nothing is to be used.
    """
    rows, number = index.size, ptr.size - 1
    ptr[:] = 0
    rises, previous = True, 0
    for k in range(rows):
        value = index[k]
        if value < 0 or value >= number:
            return -1
        rises &= value >= previous
        previous = value
        ptr[value + 1] += 1
    for s in range(number):
        ptr[s + 1] += ptr[s]
    if rises:
        return 1
    # ptr[s] moves to the end of s while rows are placed, and is moved back
    for k in range(rows):
        value = index[k]
        order[ptr[value]] = k
        ptr[value] += 1
    for s in range(number, 0, -1):
        ptr[s] = ptr[s - 1]
    ptr[0] = 0
    return 0


@njit(cache=True)
def cell_extremum(values, index, largest, best, arg):
    """Extremum of each group where columns differ in their index, and its row, −1 if there is none.

    Rows are read in order, so the first of equals wins; a NaN wins over numbers, and nothing over the first NaN.

    Args:
        values: [n, F].
        index: [n, F] int64.
        largest: maximum or minimum.
        best: [m, F], written.
        arg: [m, F] int64, written.
    """
    best[:] = 0
    arg[:] = -1
    for k in range(values.shape[0]):
        for f in range(values.shape[1]):
            s = index[k, f]
            value, held = values[k, f], best[s, f]
            beats = value > held if largest else value < held
            if arg[s, f] < 0 or (held == held and (beats or value != value)):  # noqa: PLR0124 - nothing but a NaN differs from itself
                best[s, f] = value
                arg[s, f] = k
