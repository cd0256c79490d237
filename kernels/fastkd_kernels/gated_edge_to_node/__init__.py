"""Edge features, gated by a projection of a radial basis, summed onto nodes: GemNet's atom update without a stored gate."""
