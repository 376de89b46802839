"""One response that lists models: it is collected, and reaches the relay at once, without what the asker may not use.

It stands between a connection to Ollama and the relay, for these responses alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.exchange.message.failures import Unlisted
from proxy.exchange.message.lists import shortened, without_validators

if TYPE_CHECKING:
    from proxy.exchange.message.failures import UpstreamFailure
    from proxy.exchange.message.known_heads import ResponseHead
    from proxy.exchange.message.lists import Shown
    from proxy.exchange.upstream.upstream import Owner

LIST_AT_MOST = 4 * 1024 * 1024
"""Bytes of a list that are collected. Ollama writes about 500 for each model."""


class Listing:
    """Collects the response on one connection for its owner, the relay."""

    __slots__ = ("_content", "_head", "_head_only", "_owner", "_shown")

    def __init__(self, owner: Owner, shown: Shown) -> None:
        self._owner = owner
        self._shown = shown
        self._head_only = shown.route.method == "HEAD"  # its Content-Length is that of the whole list
        self._head: ResponseHead | None = None  # while the response is collected
        self._content = bytearray()

    def __repr__(self) -> str:
        return f"<Listing of {self._shown.route.name}, {len(self._content)} bytes>"

    def response(self, head: ResponseHead | None, content: bytes, ended: bool) -> None:
        """Collect a successful response, and pass it on whole. Pass on any other one as it comes."""
        if head is not None and 200 <= head.status < 300:
            self._head = head
        if self._head is None or self._head_only:
            self._owner.response(None if head is None else self._headed(head, None), content, ended)
            return
        self._content += content
        if len(self._content) > LIST_AT_MOST:
            self.failed(Unlisted(f"more than {LIST_AT_MOST} bytes"))
        elif ended:
            self._end(self._head)

    def _end(self, head: ResponseHead) -> None:
        try:
            if head.encoded:
                raise Unlisted("it is encoded")
            content = shortened(bytes(self._content), self._shown)
        except Unlisted as failure:
            self.failed(failure)
            return
        self._owner.response(self._headed(head, len(content)), content, True)

    def _headed(self, head: ResponseHead, length: int | None) -> ResponseHead:
        """Return the head for a list of another length; that of a response without a list stays."""
        return head if self._head is None else head.resized(without_validators(head.forwarded), length)

    def token(self, octets: bytes) -> bool:  # noqa: ARG002 - an Owner has it
        """Return False, because a list is no stream of tokens."""
        return False

    def chunk(self, octets: bytes, content: bytes) -> None:  # noqa: ARG002 - an Owner has it
        """Collect one chunk, or pass it on."""
        self.response(None, content, False)

    def failed(self, failure: UpstreamFailure) -> None:
        """Report that there is no list to pass on."""
        self._owner.failed(failure)

    def upstream_blocked(self) -> None:
        """Hold back the client's upload."""
        self._owner.upstream_blocked()

    def upstream_ready(self) -> None:
        """Let the client's upload continue."""
        self._owner.upstream_ready()
