"""Every model against its public implementation: forward and forces, and a training step on energies and forces.

    python -m bench.models [--device …] [--models …] [--shapes …] [--modes …] [--threads …] [--json FILE] [--quick] [--markdown [FILE]]

`shapes` says what is fed to them, `cases` which models there are, `packages`, `gemnet` and `plain` make the two twins with the same weights,
`steps` says what is timed and when a speed may be printed, `goals` what we want to see.
"""
