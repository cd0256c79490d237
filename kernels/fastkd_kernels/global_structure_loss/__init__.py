"""Loss between the global structures of two feature spaces: the distances between all atoms of an image."""
