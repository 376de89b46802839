"""A picture for models that see: a red square, large enough for those that refuse smaller ones."""

from __future__ import annotations

import base64
import struct
import zlib

SIDE = 64
"""Pixels; some models take none below 28."""


def _png(side: int, colour: bytes) -> bytes:
    """Return a square of one colour as PNG."""
    rows = (b"\0" + colour * side) * side
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


PNG_BASE64 = base64.b64encode(_png(SIDE, b"\xff\0\0")).decode()
DATA_URL = f"data:image/png;base64,{PNG_BASE64}"
