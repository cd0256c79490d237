"""SchNet's convolution with basis, filter network and cutoff recomputed inside, exactly: only scalars of edges are ever in memory."""
