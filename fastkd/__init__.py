"""fastkd: distil a large, accurate molecular graph network into a small, fast one, on fused Triton kernels."""

__version__ = "0.1.0"
