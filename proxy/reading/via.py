"""How the proxy names itself in Via (RFC 9110, 7.6.3), and whether a request has passed it before. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from proxy import NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

PSEUDONYM = NAME.encode()
"""A name of the program, because a host name would reveal the owner's network to Ollama's cloud."""

_PARTS = re.compile(rb"\\.|[()]|[^\\()]+|\\", re.DOTALL).findall


def names_us(values: Iterable[bytes]) -> bool:
    """Return whether a list element of Via was received by `PSEUDONYM`; comments may contain commas and parentheses."""
    for value in values:
        depth, kept = 0, []
        for part in _PARTS(value):
            if part == b"(":
                depth += 1
            elif part == b")":
                depth = max(0, depth - 1)
            elif not depth:
                kept.append(part)
        for element in b"".join(kept).split(b","):
            words = element.split()
            if len(words) > 1 and words[1].partition(b":")[0].lower() == PSEUDONYM:
                return True
    return False
