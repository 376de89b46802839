"""The recorded exchanges of a real Ollama in tests/traces, taken apart by a reader that knows nothing of the proxy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TRACES = Path(__file__).parent.parent / "traces"


@dataclass(frozen=True)
class Recording:
    """One response as it came from Ollama. `whole`: HTTP says that nothing is missing and nothing follows."""

    name: str
    octets: bytes
    status: int
    fields: tuple[tuple[str, str], ...]
    content: bytes
    whole: bool

    def field(self, name: str) -> str | None:
        """Return the value of a field, or None."""
        return next((value for key, value in self.fields if key.lower() == name), None)


def _dechunk(octets: bytes) -> tuple[bytes, bool]:
    content = b""
    while match := re.match(rb"([0-9a-f]+)\r\n", octets):
        size = int(match[1], 16)
        data = octets[match.end() :]
        if not size:
            return content, data == b"\r\n"
        content += data[:size]
        octets = data[size + 2 :]
    return content, False


@cache
def recording(name: str) -> Recording:
    """Return the recorded response of this name."""
    octets = (TRACES / f"{name}.response").read_bytes()
    head, _, content = octets.partition(b"\r\n\r\n")
    start, *lines = head.decode("latin-1").split("\r\n")
    status = int((start.split() or ["", "0"])[1])
    fields = tuple((key, value) for key, _, value in (line.partition(": ") for line in lines))
    framing = {key.lower(): value for key, value in fields}
    to_head = name.startswith(("head-", "host-bad-head"))
    if to_head or status in (204, 304):
        whole = not content
    elif framing.get("transfer-encoding") == "chunked":
        content, whole = _dechunk(content)
    elif "content-length" in framing:
        whole = len(content) == int(framing["content-length"])
    else:
        whole = bool(octets)  # it ended with the connection
    return Recording(name, octets, status, fields, content, whole)


def asked(name: str) -> tuple[str, str] | None:
    """Return the method and the target that this response was recorded for; None if that is unknown."""
    path = TRACES / f"{name}.request"
    words = path.read_bytes().split(b"\r\n")[0].decode("latin-1").split(" ") if path.exists() else []
    return (words[0], words[1]) if len(words) == 3 else None


NAMES = tuple(sorted(path.stem for path in TRACES.glob("*.response")))
