"""Convolutions whose filter is a table of splines over the distance."""
