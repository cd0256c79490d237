"""Reader of TensorFlow checkpoints (TensorBundle V2) without TensorFlow.

A checkpoint is ``PREFIX.index``, a sorted table in LevelDB's format from names to entries, and shards ``PREFIX.data-00000-of-0000N`` with the
bytes of the tensors. Every block of the table and every tensor has a CRC-32C, and all are checked.

Sources: https://github.com/google/leveldb/blob/main/doc/table_format.md; tensorflow/core/protobuf/tensor_bundle.proto.

Example:
    >>> bundle = TensorBundle("pretrained/U0/ckpt")
    >>> bundle.read("emb_block/embeddings/.ATTRIBUTES/VARIABLE_VALUE").shape
    (95, 128)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastkd.errors import CheckpointError

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48  #: bytes: two block handles, padding, magic number
_TRAILER = 5  #: bytes after each block: compression, CRC
_CRC_DELTA = 0xA282EAD8

#: DataType of types.proto → numpy; all little-endian
_DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "u1",
    5: "<i2",
    6: "i1",
    9: "<i8",
    10: "?",
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}

Array = npt.NDArray[Any]
Fields = dict[int, list[int | bytes]]


class _MalformedError(ValueError):
    """Bytes that are not what the format says; becomes a CheckpointError with the file's name."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is."""

    dtype: int  #: DataType of types.proto
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int  #: bytes
    crc: int  #: masked CRC-32C
    sliced: bool  #: whether it is stored in parts, under other names


class TensorBundle:
    """The tensors of one checkpoint, read one at a time.

    Args:
        path: the prefix, as TensorFlow takes it (``folder/ckpt``), its ``.index`` file, or a folder with one such file.

    Raises:
        CheckpointError: if the index is missing, truncated, damaged or of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.index = _find_index(Path(path))
        try:
            data = self.index.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.index} cannot be read: {error}") from error
        try:
            table = dict(_table(data))
            header = _fields(table.pop(b"", b""))
            self.entries = {key.decode(): _entry(value) for key, value in table.items()}
        except (_MalformedError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.index} is not the index of a TensorFlow checkpoint, or it is damaged: {error}") from error
        self.shards = _integer(header, 1)
        if _integer(header, 2):
            raise CheckpointError(f"{self.index}: the checkpoint was written on a big-endian machine, which is not supported")
        if self.shards < 1:
            raise CheckpointError(f"{self.index} has no header with a number of shards; this is not the index of a TensorFlow checkpoint")

    def read(self, name: str) -> Array:
        """One tensor.

        Raises:
            CheckpointError: if there is no such tensor, its type is not a number, or its bytes are missing or damaged.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.index} holds no tensor {name!r}")
        if entry.sliced or entry.dtype not in _DTYPES:
            kind = "is stored in slices" if entry.sliced else f"has TensorFlow's data type {entry.dtype}"
            raise CheckpointError(f"{self.index}: tensor {name!r} {kind}, which is not supported")
        dtype = np.dtype(_DTYPES[entry.dtype])
        if min(entry.shape, default=0) < 0 or math.prod(entry.shape) * dtype.itemsize != entry.size:
            raise CheckpointError(f"{self.index}: tensor {name!r} of shape {list(entry.shape)} cannot have {entry.size} bytes")
        shard = self.index.with_suffix(f".data-{entry.shard:05d}-of-{self.shards:05d}")
        try:
            with shard.open("rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.size)
        except OSError as error:
            raise CheckpointError(f"{shard}, a part of the checkpoint {self.index}, cannot be read: {error}") from error
        if len(data) != entry.size:
            raise CheckpointError(f"{shard} is truncated: tensor {name!r} ends at byte {entry.offset + entry.size}; copy the file again")
        if masked_crc32c(data) != entry.crc:
            raise CheckpointError(f"{shard} is damaged: the checksum of tensor {name!r} is wrong; copy the file again")
        return np.frombuffer(data, dtype).reshape(entry.shape).copy()


def _find_index(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) != 1:
            raise CheckpointError(f"{path} holds {len(found)} files *.index, where one TensorFlow checkpoint has one; name its prefix")
        return found[0]
    index = path if path.suffix == ".index" else path.with_name(path.name + ".index")
    if not index.is_file():
        raise CheckpointError(f"no TensorFlow checkpoint at {path}: {index} does not exist")
    return index


# The table


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values, in order."""
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise _MalformedError("it does not end as such a file does (truncated, or of another kind)")
    footer = data[-_FOOTER:-8]
    _, position = _handle(footer, 0)
    index, _ = _handle(footer, position)
    for _, value in _block(data, index):
        yield from _block(data, _handle(value, 0)[0])


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def _block(data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Entries of a block: each key shares its beginning with the one before."""
    offset, size = handle
    end = offset + size
    if end + _TRAILER > len(data) - _FOOTER or size < 4:
        raise _MalformedError(f"a block of {size} bytes at {offset} lies outside of the file")
    if masked_crc32c(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + _TRAILER], "little"):
        raise _MalformedError(f"the checksum of the block at {offset} is wrong")
    if data[end]:
        raise _MalformedError(f"the block at {offset} is compressed, which is not supported")
    restarts = int.from_bytes(data[end - 4 : end], "little")
    block = data[offset : end - 4 - 4 * restarts] if 4 + 4 * restarts <= size else b""
    position, key = 0, b""
    while position < len(block):
        shared, position = _varint(block, position)
        fresh, position = _varint(block, position)
        length, position = _varint(block, position)
        stop = position + fresh + length
        if shared > len(key) or stop > len(block):
            raise _MalformedError(f"an entry of the block at {offset} is longer than the block")
        key = key[:shared] + block[position : position + fresh]
        yield key, block[position + fresh : stop]
        position = stop


# Protocol buffers


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _MalformedError("a number is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _MalformedError("a number has more than ten bytes")


def _fields(data: bytes) -> Fields:
    """A message: number of field → values, in order."""
    fields: Fields = {}
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == 0:
            value, position = _varint(data, position)
        elif wire in (1, 2, 5):
            size, position = _varint(data, position) if wire == 2 else (8 if wire == 1 else 4, position)
            value = data[position : position + size]
            if len(value) != size:
                raise _MalformedError("a field is cut off")
            position += size
            if wire != 2:
                value = int.from_bytes(value, "little")
        else:
            raise _MalformedError(f"field {number} has the unknown wire type {wire}")
        fields.setdefault(number, []).append(value)
    return fields


def _integer(fields: Fields, number: int) -> int:
    value = fields.get(number, [0])[-1]
    if isinstance(value, bytes):
        raise _MalformedError(f"field {number} is no number")
    return value - (1 << 64) if value >= 1 << 63 else value


def _messages(fields: Fields, number: int) -> list[Fields]:
    values = fields.get(number, [])
    if any(isinstance(value, int) for value in values):
        raise _MalformedError(f"field {number} is no message")
    return [_fields(value) for value in values if isinstance(value, bytes)]


def _entry(data: bytes) -> Entry:
    fields = _fields(data)
    shapes = _messages(fields, 2)
    shape = tuple(_integer(dim, 1) for dim in _messages(shapes[-1], 2)) if shapes else ()
    dtype, shard, offset, size, crc = (_integer(fields, number) for number in (1, 3, 4, 5, 6))
    if min(shard, offset, size) < 0:
        raise _MalformedError("an entry has a negative offset or size")
    return Entry(dtype, shape, shard, offset, size, crc, bool(fields.get(7)))


# CRC-32C


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """The CRC as the files store it: rotated and shifted, so that a CRC of a CRC is not special."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _CRC_DELTA) & 0xFFFFFFFF
