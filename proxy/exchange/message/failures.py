"""What can go wrong with Ollama: a failure knows whose fault it is. Imports nothing of ours."""

from __future__ import annotations


class UpstreamFailure(Exception):  # noqa: N818 - a failure, as RFC 9110 has it; an error would be the client's
    """The upstream didn't do what HTTP promises. `str()` says what, in words that hold no octet of its answer."""


class Unreachable(UpstreamFailure):
    """No connection could be opened. `refused` when nothing listens, which launchd mends within 10 s."""

    def __init__(self, text: str, *, refused: bool) -> None:
        super().__init__(text)
        self.refused = refused


class OutOfFiles(UpstreamFailure):
    """No connection could be opened because this process, or the machine, may open no more files: it isn't Ollama's."""


class Malformed(UpstreamFailure):
    """The octets are no HTTP response, or one that two parsers could read differently."""


class ClosedEarly(UpstreamFailure):
    """The connection ended before the response did."""


class Stale(ClosedEarly):
    """A kept connection was gone already when the request was sent on it, and the request can't be sent again."""


class Unfinished(UpstreamFailure):
    """The answer ended as HTTP has it, but without what ends a stream of its kind."""
