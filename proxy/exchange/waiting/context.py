"""Find out whether a request filled its model's context: Ollama then cuts prompt or answer silently. Pure."""

from __future__ import annotations

import re

BYTES_A_TOKEN = 4
"""Bytes of a request's text that make a token, in English and in code. `exceeds` allows for a fifth more."""

_ESCAPED = 3  # bytes that most characters take less in UTF-8
_IMAGE = re.compile(rb'"([^" \x80-\xff]{1024,})')  # a text without a blank that no prompt has as a word: base64


def is_full(window: int | None, tokens_in: int | None, tokens_out: int | None, text: int | None) -> bool:
    """Return whether a response shows that the context was full; False also where that can't be known.

    It was full if prompt and answer together fill the window. It was also full if the request's text, in bytes, exceeds
    the window by a fifth: Ollama then left out older messages, so it counts a prompt that fits.
    """
    if window is None or tokens_in is None:
        return False
    if tokens_in + (tokens_out or 0) >= window:
        return True
    return text is not None and exceeds(text, window)


def exceeds(text: int, window: int) -> bool:
    """Return whether so many bytes of text exceed a window by a fifth."""
    return text * 5 >= window * BYTES_A_TOKEN * 6


def text_in(body: bytes) -> int:
    """Return how many bytes of text a JSON body has: without images, and as UTF-8 where it escapes characters.

    It takes a millisecond or more for 512 KiB, so call it only if the body as a whole exceeds the window.
    """
    images = sum(len(each) for each in _IMAGE.findall(body) if b"\\u" not in each)
    return len(body) - images - _ESCAPED * body.count(b"\\u")
