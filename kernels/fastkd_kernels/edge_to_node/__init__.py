"""Edge features summed onto nodes, as scalars and as vectors along the edges: the targets of edge-to-node and edge-to-vector distillation."""
