"""Unpack a request's zstd body, within the bounds of Ollama's own unpacking (`server/cloud_proxy.go`).

What is judged must be what Ollama reads, so it goes on unpacked: two unpackers could differ.
"""

from __future__ import annotations

import sys

from proxy.reading.body import PIECE

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WINDOW_LOG = 23
"""The largest window that Ollama takes, as a power of two: 8 MiB."""

MOST = 20 * 1024 * 1024
"""Most bytes of an unpacked body, as in Ollama."""

_MOST_FRAMES = 16  # clients send one; each that is empty would cost work for a few bytes


class NotUnpackedError(ValueError):
    """The body is not zstd, or more than Ollama would unpack."""


class Unpacker:
    """Unpacks one body, frame after frame. Feed it, take pieces until there is none, and check the end."""

    __slots__ = ("_begun", "_frame", "_frames", "_packed", "size")

    def __init__(self) -> None:
        self.size = 0  # bytes unpacked so far
        self._packed = b""
        self._frame = _new_frame()
        self._frames = 0  # that have ended
        self._begun = False  # whether the frame has taken a byte

    def feed(self, data: bytes) -> None:
        """Take the next packed bytes."""
        self._packed += data

    def take(self) -> bytes:
        """Return the next piece, of at most PIECE bytes; nothing if more must be fed. Raises NotUnpackedError."""
        while self._packed or not self._frame.needs_input:
            packed, self._packed = self._packed, b""
            self._begun = True
            try:
                piece = self._frame.decompress(packed, PIECE)
            except zstd.ZstdError as error:
                raise NotUnpackedError("the body is not zstd that Ollama would unpack") from error
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame, self._begun = _new_frame(), False
                self._frames += 1
                if self._frames > _MOST_FRAMES:
                    raise NotUnpackedError("the zstd body has too many frames")
            self.size += len(piece)
            if self.size > MOST:
                raise NotUnpackedError(f"the unpacked body is larger than the {MOST >> 20} MiB that Ollama takes")
            if piece:
                return piece
        return b""

    def end(self) -> None:
        """Check that the body ended with a frame. Raises NotUnpackedError."""
        if self._begun:
            raise NotUnpackedError("the zstd body is not complete")


def unpack(body: bytes) -> bytes:
    """Return a whole body unpacked. Raises NotUnpackedError."""
    unpacker = Unpacker()
    unpacker.feed(body)
    unpacked = b"".join(iter(unpacker.take, b""))
    unpacker.end()
    return unpacked


def _new_frame() -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
