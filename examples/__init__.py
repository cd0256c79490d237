"""Examples: run from the root of a checkout, as in ``python -m examples.so3lr.make_data``."""
