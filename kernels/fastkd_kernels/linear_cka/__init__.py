"""Linear centred kernel alignment in feature space, without N × N matrices."""
