"""Writes small TensorFlow checkpoints, from the description of the format alone: nothing is shared with the reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19, "bool": 10}


def crc32c(data: bytes) -> int:
    """Bit by bit, polynomial 0x1EDC6F41 reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x82F63B78 if crc & 1 else crc >> 1
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    rotated = ((crc << 17) | (crc >> 15)) & 0xFFFFFFFF
    return ((rotated + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def varint(value: int) -> bytes:
    if value < 0:
        value += 2**64
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field * 8) + varint(value) if value else b""


def message(field: int, body: bytes) -> bytes:
    return varint(field * 8 + 2) + varint(len(body)) + body


def entry(array: np.ndarray, shard: int, first: int, **changes: int) -> bytes:
    values = {"dtype": TYPES[array.dtype.name], "offset": first, "size": array.nbytes, **changes}
    shape = b"".join(message(2, number(1, size)) for size in array.shape)
    crc = varint(6 * 8 + 5) + masked(array.tobytes())
    slices = message(7, b"") if changes.get("sliced") else b""
    fields = number(1, values["dtype"]) + message(2, shape) + number(3, shard) + number(4, values["offset"]) + number(5, values["size"])
    return fields + crc + slices


def block(entries: list[tuple[bytes, bytes]], every: int = 4) -> bytes:
    """Keys share their beginning with the one before, except every fourth."""
    body, restarts, before = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % every == 0:
            restarts.append(len(body))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return body + b"".join(r.to_bytes(4, "little") for r in restarts) + len(restarts).to_bytes(4, "little")


def table(entries: list[tuple[bytes, bytes]], per_block: int = 5, compression: int = 0) -> bytes:
    out, handles = b"", []

    def append(body: bytes) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(body))
        stored = body + bytes([compression])
        out += stored + masked(stored)
        return handle

    for first in range(0, len(entries), per_block):
        part = entries[first : first + per_block]
        handles.append((part[-1][0], append(block(part))))
    meta = append(block([]))
    index = append(block(handles, every=1))
    footer = (meta + index).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    return out + footer


def write_bundle(
    prefix: Path, tensors: dict[str, np.ndarray], *, shards: int = 2, big_endian: bool = False, compression: int = 0, **changes: int
) -> None:
    """``PREFIX.index`` and its shards; ``changes`` go into every entry, to make it wrong."""
    data = [b"\0" * 3] + [b""] * (shards - 1)
    header = number(1, shards) + number(2, int(big_endian)) + message(3, number(1, 1))
    entries = [(b"", header)]
    for i, name in enumerate(sorted(tensors)):
        shard = (i + 1) % shards
        entries.append((name.encode(), entry(tensors[name], shard, len(data[shard]), **changes)))
        data[shard] += tensors[name].tobytes()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(prefix.name + ".index").write_bytes(table(entries, compression=compression))
    for i, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{shards:05d}").write_bytes(content)
