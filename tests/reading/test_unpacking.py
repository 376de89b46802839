"""zstd bodies: unpacked within Ollama's bounds, in pieces of a bounded size."""

from __future__ import annotations

import pytest
import zstandard

from proxy.reading.body import PIECE
from proxy.reading.unpacking import MOST, NotUnpackedError, Unpacker, unpack

BODY = b'{"model":"a","prompt":"' + b"why " * 50_000 + b'"}'
SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"


def packed(body, window=20):
    """Pack a body as a stream, without its size."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (packed(BODY), BODY),
        (zstandard.compress(BODY), BODY),
        (packed(BODY) + packed(BODY), BODY + BODY),
        (SKIPPED + packed(BODY) + SKIPPED, BODY),
        (packed(BODY, window=23), BODY),
        (packed(b" " * MOST), b" " * MOST),
        (b"", b""),
    ],
    ids=["stream", "with-size", "two-frames", "skippable", "window-8-mib", "20-mib", "empty"],
)
def test_unpack(sent, body):
    """What Ollama would unpack is unpacked."""
    assert unpack(sent) == body


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (packed(BODY)[:-1], "not complete"),
        (packed(BODY)[:3], "not complete"),
        (packed(BODY) + b"x", "not zstd"),
        (BODY, "not zstd"),
        (packed(BODY, window=24), "not zstd that Ollama would unpack"),
        (packed(b" " * (MOST + 1)), "larger than the 20 MiB"),
        (packed(b"") * 20, "too many frames"),
    ],
    ids=["cut", "cut-head", "garbage-after", "plain", "window-16-mib", "over-20-mib", "frames"],
)
def test_not_unpacked(sent, why):
    """What Ollama would refuse is refused, with a reason; so is a body of many frames, which no client sends."""
    with pytest.raises(NotUnpackedError, match=why):
        unpack(sent)


def test_pieces_are_bounded():
    """However far a few bytes unpack, each piece has at most the size that is read in one turn."""
    unpacker = Unpacker()
    unpacker.feed(packed(b" " * MOST))
    sizes = [len(piece) for piece in iter(unpacker.take, b"")]
    assert max(sizes) <= PIECE
    assert sum(sizes) == unpacker.size == MOST
    unpacker.end()


def test_byte_by_byte():
    """A packed body that comes byte by byte is unpacked to the same."""
    unpacker, found = Unpacker(), b""
    for byte in packed(BODY) + SKIPPED + packed(BODY):
        unpacker.feed(bytes([byte]))
        found += b"".join(iter(unpacker.take, b""))
    unpacker.end()
    assert found == BODY * 2
