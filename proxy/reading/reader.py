"""Choose the reader for a request's body, by its route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from proxy.reading.body import Passing, read_at_once
from proxy.reading.fields import SHAPES
from proxy.reading.form import PassingForm, read_form

if TYPE_CHECKING:
    from proxy.reading.asked import Asked

FORM = "/v1/audio/transcriptions"
"""The one route that takes a form."""


class Reader(Protocol):
    """Reads a body while it passes. Feed it pieces of at most `body.PIECE` bytes, one in a turn of the loop."""

    asked: Asked | None
    """What the body asks for, once that is known. Known early only if the body can't be read, or is ambiguous."""

    @property
    def tokens(self) -> int:
        """How many tokens were read: what reading cost, next to the bytes."""

    @property
    def held(self) -> bytes:
        """All that was held back, to be sent after the rest if the request is let through."""

    def feed(self, data: bytes) -> bytes:
        """Take the next piece. Return what of it may go on."""

    def end(self) -> Asked:
        """Return what the body asks for, now that all of it has come."""


def read_whole(path: str, content_type: str, query: str, body: bytes) -> Asked | None:
    """Return what a body that is held whole asks for; None if it must be read in pieces, or names no model here."""
    return read_form(content_type, query, body) if path == FORM else read_at_once(path, body)


def reader_of(path: str, content_type: str, query: str) -> Reader | None:
    """Return a reader for a body that passes, or None where the route takes none that names a model."""
    if path == FORM:
        return PassingForm(content_type, query)
    return Passing(path) if path in SHAPES else None
