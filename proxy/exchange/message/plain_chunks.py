"""Chunks in their plainest form, read without a parser (RFC 9112, 7.1). Pure: bytes in, bytes out.

Ollama writes nearly every token as one chunk, which one read brings, complete and alone. Taking its content directly
costs 0.2 us; httptools, with its callbacks and the new framing, costs 1.6 us (CPython 3.13). Anything else goes to the
parser: an extension, capitals, a leading zero, two chunks at once, or the last chunk.
"""

from __future__ import annotations

LAST_CHUNK = b"0\r\n\r\n"

# The size lines that Ollama writes: lower-case, without extension. The last chunk's isn't among them.
_SIZES = {b"%x" % size: size for size in range(1, 4096)}
# Bytes of a complete chunk -> its beginning: each length belongs to at most one size.
_BEGINNINGS = {len(line) + size + 4: line + b"\r\n" for line, size in _SIZES.items()}


def chunk(content: bytes) -> bytes:
    """Return `content` as one chunk."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def beginnings(content: bytes, below: int) -> dict[int, bytes]:
    """Return how a plain chunk shorter than `below` begins if its content begins with `content`, by its length."""
    return {length: line + content for length, line in _BEGINNINGS.items() if length < below}


def plain(data: bytes) -> bytes | None:
    """Return the content of `data` if that is exactly one chunk in its plainest form, otherwise None."""
    beginning = _BEGINNINGS.get(len(data))
    if beginning is None or not data.startswith(beginning) or not data.endswith(b"\r\n"):
        return None
    return data[len(beginning) : -2]


def all_plain(data: bytes, start: int = 0) -> bool:
    """Return whether `data` from `start` on is plain chunks and nothing else, so that another may follow."""
    while start < len(data):
        end = data.find(b"\r\n", start)
        size = _SIZES.get(data[start:end])
        if size is None or data[end + size + 2 : end + size + 4] != b"\r\n":
            return False
        start = end + size + 4
    return True
