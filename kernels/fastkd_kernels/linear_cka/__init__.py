"""Linear centred kernel alignment in feature space, without N × N matrices where there are many nodes."""
