"""Ready adapters for packages with trained potentials. Each file imports its package only when a teacher is made, and has one ``make``."""
