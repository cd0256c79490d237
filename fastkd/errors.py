"""Mistakes that a user can mend. Each message says what is wrong, where, and how to mend it; the command line exits with 2."""

from __future__ import annotations


class UserError(Exception):
    """Base of every error that is the user's to mend; never caught inside the library."""


class ConfigError(UserError):
    """A config file, an option or a combination of them."""


class DataError(UserError):
    """An input file or its contents."""


class CheckpointError(UserError):
    """A checkpoint or a run folder."""


class TrainingError(UserError):
    """A run that cannot go on as it is configured, such as one whose loss became NaN."""
