"""A list of modules of one type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, Self, TypeVar, overload

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Blocks(nn.ModuleList, Generic[M]):
    """``nn.ModuleList`` whose items keep their type; the state dict is the same."""

    def __init__(self, blocks: Iterable[M]) -> None:
        super().__init__(blocks)

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[M]: ...
        @overload
        def __getitem__(self, index: slice) -> Self: ...
        @overload
        def __getitem__(self, index: int) -> M: ...
        def __getitem__(self, index: int | slice) -> M | Self: ...
