"""The recorded readings, as tests use them."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

READINGS = Path(__file__).parent / "readings.jsonl"

_LONG = 400  # bytes of a body that is stored packed


@dataclass(frozen=True)
class Reading:
    """One case, and what Go made of it."""

    id: str
    kind: str
    case: dict[str, Any]
    go: dict[str, Any]

    @property
    def body(self) -> bytes:
        """The body that Go read."""
        body: bytes = self.case["body"]
        return body


def packed(case: dict[str, Any], go: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the file."""
    line = {key: value for key, value in case.items() if key != "body"}
    body = case.get("body")
    if body is not None and len(body) <= _LONG:
        line["body"] = body.decode("latin-1")
    elif body is not None:
        line["packed"] = base64.b64encode(zlib.compress(body, 9)).decode()
    return line | {"found": go}


@cache
def readings(kind: str) -> tuple[Reading, ...]:
    """Return all readings of a kind: json, form, name or zstd."""
    found = []
    for line in map(json.loads, READINGS.read_text().splitlines()[1:]):
        go = line.pop("found")
        if "body" in line:
            line["body"] = line["body"].encode("latin-1")
        elif "packed" in line:
            line["body"] = zlib.decompress(base64.b64decode(line.pop("packed")))
        if line["kind"] == kind:
            found.append(Reading(line["id"], kind, line, go))
    return tuple(found)
