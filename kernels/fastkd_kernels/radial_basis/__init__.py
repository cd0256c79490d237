"""Radial bases of distances with their cutoff envelopes: Gaussian, Bessel, exponential-normal."""
