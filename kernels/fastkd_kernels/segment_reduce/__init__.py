"""Sum, mean, maximum and minimum over segments, and the gathers that are their derivatives."""
