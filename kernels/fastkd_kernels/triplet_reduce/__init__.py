"""Messages between edges over triplets, weighted by an angular basis: GemNet's interaction without padding and without [T, S, D] tensors."""
