"""Server-sent events as they came: each with the moment at which all of it had arrived."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.manage.verify.asking.asking import Piece


@dataclass(frozen=True)
class Event:
    """One event of a stream: its name, if it has one, its data, and the time of its last byte."""

    name: str
    data: str
    moment: float

    @property
    def json(self) -> Any:
        """The data as an object; an empty one if it is none."""
        try:
            parsed = json.loads(self.data)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}


def events(pieces: Iterable[Piece]) -> Iterator[Event]:
    """Yield the events that are whole."""
    held = b""
    for piece in pieces:
        *whole, held = (held + piece.data).split(b"\n\n")
        for block in whole:
            name, data = "", []
            for line in block.decode("utf-8", "replace").split("\n"):
                kind, _, value = line.partition(": ")
                name = value if kind == "event" else name
                data += [value] if kind == "data" else []
            yield Event(name, "\n".join(data), piece.moment)
