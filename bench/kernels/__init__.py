"""Every op of fastkd_kernels × shape × provider × mode: time, peak memory and share of the measured copy bandwidth.

    python -m bench.kernels [--device …] [--ops …] [--shapes …] [--json FILE] [--quick]
    pytest bench --benchmark-only

`cases` says what is run, `floors` how few bytes each op could move, `peers` who else computes the same, `measure` how things are
measured, `gate` when a speed may be printed, `goals` what we want to see on a GPU.
"""
