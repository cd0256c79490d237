"""Softmax and its logarithm within segments of rows: attention over the edges of each node, pooling over the atoms of each graph."""
