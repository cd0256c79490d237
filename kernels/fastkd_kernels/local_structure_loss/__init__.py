"""Loss between the local structures of two feature spaces: distances along edges, as a distribution over each node's neighbours."""
