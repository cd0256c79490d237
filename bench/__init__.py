"""Benchmarks, each interleaved with its peers in one process.

OpenMP threads that wait spin for a moment and then sleep. Always sleeping costs a third of the speed of two threads here; always spinning
takes the core that the work needs when the machine is shared, and two threads become a hundred times slower than one.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when torch is imported, so it is set before
