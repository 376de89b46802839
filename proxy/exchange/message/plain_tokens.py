"""The form of an event that brings a token and no facts, as nearly all of Ollama's do. Pure: bytes in, answers out.

Its first and last bytes show the form. They can't hide a fact between them: Ollama writes a chat's usage after the
choices, and JSON escapes the quotes in a text. An event with any other form is parsed.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.exchange.message.plain_chunks import beginnings
from proxy.policy.routes import Dialect

# A chunk of that many bytes brings more than a token.
MANY = 1024


class Token(NamedTuple):
    """How an event with a token begins and ends, how many line ends it has, and what isn't in it."""

    beginnings: tuple[bytes, ...]
    end: bytes
    line_ends: int
    without: bytes | None = None

    def only(self, event: bytes) -> bool:
        """Return whether `event`, with its border, only brings a token."""
        return (
            event.startswith(self.beginnings)
            and event.endswith(self.end)
            and event.count(b"\n") == self.line_ends
            and (self.without is None or self.without not in event)
        )

    def beginning(self, event: bytes) -> bytes | None:
        """Return the beginning that `event` has, if it is one of these."""
        return next((each for each in self.beginnings if event.startswith(each)), None)


TOKENS = {
    Dialect.RESPONSES: Token(
        (
            b"event: response.output_text.delta\n",
            b"event: response.reasoning_summary_text.delta\n",
            b"event: response.function_call_arguments.delta\n",
        ),
        b"}\n\n",
        3,
    ),
    Dialect.MESSAGES: Token((b"event: content_block_delta\n",), b"}\n\n", 3),
    Dialect.CHAT: Token((b"data:",), b'"finish_reason":null}]}\n\n', 2),
    Dialect.NDJSON: Token((b"{",), b'"done":false}\n', 1, b'"done_reason"'),
}
CHUNKS = {begins: beginnings(begins, MANY) for token in TOKENS.values() for begins in token.beginnings}
"""How a plain chunk begins that brings a token, by the beginning of its event and by its length."""
NO_CHUNKS: dict[int, bytes] = {}
