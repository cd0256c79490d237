"""PaiNN's update block beside its linear layers: norms of vectors next to the scalars, and what gates make of both."""
