"""What a distillation step costs, against the student's own step and against the same composed of generic operators.

    python -m bench.step [--device …] [--pairs …] [--terms …] [--shapes …] [--threads …] [--json FILE] [--quick] [--markdown [FILE]]

`cases` says which teachers, students and terms there are, `setup` builds them, `plain` is the composition of generic operators, `steps` the calls that
are timed and the check that has to pass before, `measure` times them in turns and pairs what was timed side by side, `goals` is what we want to see.
"""
