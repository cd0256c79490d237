"""Whose outputs a cache file holds: teacher, needs, data and neighbours. A file of any other is refused, and the message says what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastkd.errors import CheckpointError
from fastkd.teachers.base import BaseTeacher
from fastkd.teachers.output import Need

#: In the order in which a difference is looked for, and how messages call each.
_WORDS = {
    "teacher": "teacher's weights",
    "teacher_dtype": "teacher's dtype",
    "cutoff": "teacher's cutoff [Å]",
    "neighbours": "teacher's neighbour settings",
    "data": "data set",
    "data_dtype": "dtype of positions",
    "dtypes": "dtypes that features are kept in",
}


@dataclass(frozen=True)
class CacheKey:
    """Everything that the numbers in a cache depend on."""

    teacher: str  #: `BaseTeacher.hash`, of weights
    teacher_dtype: str
    cutoff: float | None  #: Å
    neighbours: str  #: which of them are edges, and everything else about the model that is not a weight
    data: str  #: content hash of the data file
    data_dtype: str  #: of positions in batches
    dtypes: tuple[tuple[Need, str], ...]  #: needs, layers included, and what each is kept in

    @classmethod
    def of(cls, teacher: BaseTeacher, dtypes: Mapping[Need, str], *, data: str, data_dtype: str) -> CacheKey:
        """The key of what a teacher says about a data set.

        Args:
            teacher: after `BaseTeacher.start`.
            dtypes: by need, see `fastkd.teachers.cache_dtypes.dtypes_of`.
            data: content hash.
            data_dtype: of positions in batches, such as ``float32``.
        """
        options = getattr(getattr(teacher, "potential", None), "options", None)
        return cls(
            teacher=teacher.hash,
            teacher_dtype=str(teacher.dtype).removeprefix("torch."),
            cutoff=teacher.cutoff,
            neighbours=f"{teacher.offer.edge_rule} {options or ''}".strip(),
            data=data,
            data_dtype=data_dtype,
            dtypes=tuple(sorted(dtypes.items())),
        )

    @property
    def needs(self) -> frozenset[Need]:
        """What is kept."""
        return frozenset(need for need, _ in self.dtypes)

    @property
    def hash(self) -> str:
        """SHA-256 over all of it."""
        return hashlib.sha256(self.json().encode()).hexdigest()

    def json(self) -> str:
        """As text, for an attribute of a file."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> CacheKey:
        """The inverse of `json`.

        Raises:
            ValueError: if the text is no key.
        """
        try:
            tree: dict[str, Any] = json.loads(text)
            return cls(**tree | {"dtypes": tuple((str(need), str(dtype)) for need, dtype in tree["dtypes"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a key of a cache: {error}") from error

    def require(self, wanted: CacheKey, path: object) -> None:
        """Make sure that this key, of a file, serves for what is wanted; a file may hold more needs.

        Raises:
            CheckpointError: saying which part differs.
        """
        for name, words in _WORDS.items():
            mine, theirs = getattr(self, name), getattr(wanted, name)
            if name == "dtypes":
                lacking = sorted(wanted.needs - self.needs)
                if lacking:
                    raise CheckpointError(
                        f"{path} lacks {', '.join(lacking)} of the teacher, it holds {', '.join(sorted(self.needs))}; {_CURE}"
                    )
                both = dict(self.dtypes), dict(wanted.dtypes)
                mine, theirs = ({need: kept[need] for need in sorted(wanted.needs)} for kept in both)
            if mine != theirs:
                raise CheckpointError(f"{path} was made for another {words}: {_short(mine)}, not {_short(theirs)}; {_CURE}")


_CURE = "build another with `fastkd cache build`, at another teacher.cache_path"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text
