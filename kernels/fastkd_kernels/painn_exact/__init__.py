"""PaiNN's message from distances, its filters made again in every pass."""
