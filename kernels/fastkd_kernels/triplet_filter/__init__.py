"""Messages from edge to edge over triplets through a filter of distance and angle: DimeNet++'s interaction without a filter in memory."""
