"""PaiNN's message with a filter that is a table of splines over the distance."""
