"""The reader of TensorFlow checkpoints, on files that an independent writer makes."""

import numpy as np
import pytest

from fastkd.errors import CheckpointError
from fastkd.models.tensorflow_bundle import TensorBundle, crc32c

from .tensor_bundle_writer import table, write_bundle

RANDOM = np.random.default_rng(0)
TENSORS = {f"block/{i}/kernel/.ATTRIBUTES/VARIABLE_VALUE": RANDOM.normal(size=(i + 1, 3)).astype("f4") for i in range(13)} | {
    "scalar": np.float64(2.5)[...],
    "counter": np.array(-7),
    "flags": np.array([True, False]),
    "half": RANDOM.normal(size=4).astype("f2"),
    "empty": np.zeros((0, 4), "f4"),
    "whole": np.arange(6, dtype="i4").reshape(1, 2, 3),
}


@pytest.fixture
def prefix(tmp_path):
    write_bundle(tmp_path / "run" / "ckpt", TENSORS)
    return tmp_path / "run" / "ckpt"


def test_checksum():
    # RFC 3720, B.4, and the usual check value
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_every_tensor_comes_back(tmp_path, shards):
    write_bundle(tmp_path / "ckpt", TENSORS, shards=shards)
    for path in (tmp_path / "ckpt", tmp_path / "ckpt.index", tmp_path):
        bundle = TensorBundle(path)
        assert sorted(bundle.entries) == sorted(TENSORS)
        for name, want in TENSORS.items():
            got = bundle.read(name)
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            assert np.array_equal(got, want)


def test_names_that_are_not_there(tmp_path, prefix):
    with pytest.raises(CheckpointError, match="no tensor 'nothing'"):
        TensorBundle(prefix).read("nothing")
    with pytest.raises(CheckpointError, match="does not exist"):
        TensorBundle(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"holds 0 files \*\.index"):
        TensorBundle(tmp_path)


def test_truncated_and_foreign_index(prefix):
    index = prefix.with_name("ckpt.index")
    whole = index.read_bytes()
    for content in (b"", b"nothing at all", b"\0" * 200, *(whole[:size] for size in (10, len(whole) // 2, len(whole) - 1))):
        index.write_bytes(content)
        with pytest.raises(CheckpointError, match="not the index of a TensorFlow checkpoint"):
            TensorBundle(prefix)


def test_every_damaged_byte_of_the_index_is_noticed(prefix):
    index = prefix.with_name("ckpt.index")
    whole = index.read_bytes()
    # all but the padding of the footer, and the handle of the empty meta block, which nobody reads
    positions = [i for i in range(len(whole) - 48) if i % 41 == 0] + list(range(len(whole) - 8, len(whole)))
    bad = 0
    for i in positions:
        index.write_bytes(whole[:i] + bytes([whole[i] ^ 0x20]) + whole[i + 1 :])
        try:
            TensorBundle(prefix)
        except CheckpointError:
            bad += 1
    # the meta block has 13 bytes
    assert bad >= len(positions) - 2


def test_damaged_truncated_and_missing_shards(prefix):
    name = max(TENSORS)
    entry = TensorBundle(prefix).entries[name]
    shard = prefix.with_name(f"ckpt.data-{entry.shard:05d}-of-00002")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: entry.offset] + bytes([whole[entry.offset] ^ 1]) + whole[entry.offset + 1 :])
    with pytest.raises(CheckpointError, match=f"checksum of tensor '{name}' is wrong"):
        TensorBundle(prefix).read(name)
    shard.write_bytes(whole[: entry.offset + 5])
    with pytest.raises(CheckpointError, match="is truncated"):
        TensorBundle(prefix).read(name)
    shard.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        TensorBundle(prefix).read(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"big_endian": True}, "big-endian"),
        ({"compression": 1}, "compressed"),
        ({"shards": 2, "dtype": 7}, "data type 7"),
        ({"sliced": 1}, "in slices"),
        ({"size": 8}, "cannot have 8 bytes"),
        ({"offset": -5}, "negative offset"),
    ],
    ids=str,
)
def test_what_is_not_supported_says_so(tmp_path, options, message):
    write_bundle(tmp_path / "ckpt", {"x": np.ones(5, "f4")}, **options)
    with pytest.raises(CheckpointError, match=message):
        TensorBundle(tmp_path / "ckpt").read("x")


def test_a_table_of_another_program(tmp_path):
    write_bundle(tmp_path / "ckpt", {}, shards=1)
    assert TensorBundle(tmp_path / "ckpt").entries == {}
    (tmp_path / "ckpt.index").write_bytes(table([(b"key", b"")]))
    with pytest.raises(CheckpointError, match="no header with a number of shards"):
        TensorBundle(tmp_path / "ckpt")
    (tmp_path / "ckpt.index").write_bytes(table([(b"key", b"some text")]))
    with pytest.raises(CheckpointError, match="not the index"):
        TensorBundle(tmp_path / "ckpt")
