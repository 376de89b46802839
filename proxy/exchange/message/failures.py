"""What can go wrong with Ollama: a failure knows whose fault it is. Imports nothing else of the proxy."""

from __future__ import annotations


class UpstreamFailure(Exception):  # noqa: N818 - a failure, as RFC 9110 has it; an error would be the client's
    """The upstream violated HTTP. `str()` says how, without quoting its response."""


class Unreachable(UpstreamFailure):
    """No connection could be opened. `refused` if nothing listens, which launchd corrects within 10 s."""

    def __init__(self, text: str, *, refused: bool) -> None:
        super().__init__(text)
        self.refused = refused


class OutOfFiles(UpstreamFailure):
    """No connection could be opened, because this process or the machine may open no more files.

    It isn't Ollama's fault.
    """


class Malformed(UpstreamFailure):
    """The bytes aren't an HTTP response, or one that two parsers could read differently."""


class ClosedEarly(UpstreamFailure):
    """The connection ended before the response did."""


class Stale(ClosedEarly):
    """A kept connection was already gone when the request was sent on it, and the request can't be sent again."""


class Unlisted(UpstreamFailure):
    """The response should list models, and can't be read, so that those for others can't be left out."""


class Unfinished(UpstreamFailure):
    """The response ended as HTTP requires, but without the terminator of its kind of stream."""
