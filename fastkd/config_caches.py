"""What configs may not say of caches of teachers."""

from __future__ import annotations

from pathlib import Path

from fastkd.config import Config
from fastkd.errors import ConfigError


def check_cache_files(config: Config) -> None:
    """Teachers that keep what they say on disk need a file each.

    Raises:
        ConfigError: if two of them name the same one.
    """
    files: dict[Path, str] = {}
    for name, teacher in config.named_teachers.items():
        if teacher.cache not in ("disk", "auto") or teacher.cache_path.suffix not in (".h5", ".hdf5"):
            continue
        if teacher.cache_path in files:
            key = "teacher.cache_path" if config.teacher.members else f"cache_path of teachers {files[teacher.cache_path]} and {name}"
            raise ConfigError(
                f"{key} = {teacher.cache_path} is one file, and a cache holds what one teacher says; name a folder, in which each gets a file"
            )
        files[teacher.cache_path] = name
