"""The clients of the tour: `Callers` is what a step needs of them, `RawCallers` does it over plain HTTP.

`sdk` does the same with the real SDKs, if they are installed. All failures are `CallError`s, so that a step needs to
know only one kind.
"""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PATIENCE = 30.0
"""Seconds without a byte after which a call has failed; nothing in the tour is silent for more than one."""

KEY = "demo-key-not-for-the-log"
"""The credential that every call carries, so that the last step can look for it where it must not be."""

MAX_TOKENS = 500
"""The most that is asked for; without it the stand-in models stop after 32."""


class CallError(Exception):
    """A call failed.

    `status` is that of the response, 0 if a stream broke; `str()` is the message that the caller gets.
    """

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Models(NamedTuple):
    """The names of the models, as two surfaces list them."""

    openai: list[str]
    native: list[str]


class Said(NamedTuple):
    """A message of Claude's kind: what was thought, and what was said."""

    thinking: str
    text: str


class Callers(Protocol):
    """Clients of one base URL."""

    description: str

    def models(self) -> Models:
        """List the models by GET /v1/models and GET /api/tags."""

    def chat(self, model: str, prompt: str) -> Iterator[str]:
        """Stream POST /v1/chat/completions; gives each piece as it arrives. Closing the iterator hangs up."""

    def message(self, model: str, prompt: str) -> Said:
        """Stream POST /v1/messages to its end."""

    def response(self, model: str, prompt: str) -> str:
        """Send POST /v1/responses, not streamed; return its text."""

    def pull(self, model: str) -> None:
        """Ask POST /api/pull for a model."""


class Answer(NamedTuple):
    """A whole response; names of `fields` are in lower case."""

    status: int
    fields: dict[str, str]
    content: bytes

    def message(self) -> str:
        """Return the error message in any of the three shapes, or "" where there is none."""
        try:
            error = json.loads(self.content)["error"]
        except (ValueError, KeyError, TypeError):
            return ""
        return str(error.get("message", "")) if isinstance(error, dict) else str(error)


@contextmanager
def _response(
    base: str, method: str, target: str, content: bytes | None, fields: Mapping[str, str]
) -> Iterator[http.client.HTTPResponse]:
    """Send a request with `target` byte for byte, and return the response once its head has come."""
    place = urlsplit(base)
    with closing(http.client.HTTPConnection(str(place.hostname), place.port, timeout=PATIENCE)) as connection:
        connection.request(method, target, content, {"Authorization": f"Bearer {KEY}", **fields})
        with closing(connection.getresponse()) as response:
            yield response


def ask(base: str, method: str, target: str, value: Any = None, fields: Mapping[str, str] | None = None) -> Answer:
    """Send one request, `value` as its JSON, and return the whole answer."""
    content = None if value is None else json.dumps(value).encode()
    with _response(base, method, target, content, fields or {}) as response:
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())


def to_the_end(base: str, head: str) -> bytes:
    """Send the bytes of a request that asks to close, and return all bytes that come."""
    place = urlsplit(base)
    with socket.create_connection((str(place.hostname), place.port), PATIENCE) as sock:
        sock.sendall(head.encode())
        received = b""
        while data := sock.recv(65536):
            received += data
    return received


class RawCallers:
    """All calls over `http.client`."""

    description = "raw HTTP only"

    def __init__(self, base: str) -> None:
        self._base = base

    def models(self) -> Models:
        """List the models by GET /v1/models and GET /api/tags."""
        listed, tags = self._whole("GET", "/v1/models"), self._whole("GET", "/api/tags")
        return Models([model["id"] for model in listed["data"]], [model["name"] for model in tags["models"]])

    def chat(self, model: str, prompt: str) -> Iterator[str]:
        """Give each piece of a streamed chat."""
        asked = {"model": model, "messages": _turn(prompt), "max_tokens": MAX_TOKENS, "stream": True}
        for event in self._events("/v1/chat/completions", asked):
            if event["choices"] and (piece := event["choices"][0]["delta"].get("content")):
                yield piece

    def message(self, model: str, prompt: str) -> Said:
        """Gather what the deltas say."""
        asked = {"model": model, "messages": _turn(prompt), "max_tokens": MAX_TOKENS, "stream": True}
        events = [event for event in self._events("/v1/messages", asked) if event["type"] == "content_block_delta"]
        deltas = [event["delta"] for event in events]
        return Said(*("".join(delta.get(key, "") for delta in deltas) for key in ("thinking", "text")))

    def response(self, model: str, prompt: str) -> str:
        """Return the text of all that was put out."""
        answer = self._whole("POST", "/v1/responses", {"model": model, "input": prompt})
        contents = [part for item in answer["output"] if item["type"] == "message" for part in item["content"]]
        return "".join(part["text"] for part in contents)

    def pull(self, model: str) -> None:
        """Ask for a model."""
        self._whole("POST", "/api/pull", {"model": model, "stream": False})

    def _whole(self, method: str, target: str, value: Any = None) -> Any:
        with _failures():
            answer = ask(self._base, method, target, value)
        if answer.status != http.client.OK:
            raise CallError(answer.status, answer.message())
        return json.loads(answer.content)

    def _events(self, target: str, value: Any) -> Iterator[Any]:
        """Give the data of each event. Raises CallError for an error in its place, and for a stream that breaks off."""
        fields = {"Content-Type": "application/json"}
        asked = json.dumps(value).encode()
        with _failures(), _response(self._base, "POST", target, asked, fields) as response:
            if response.status != http.client.OK:
                raise CallError(response.status, Answer(response.status, {}, response.read()).message())
            for line in _lines(response):
                name, _, data = line.strip().partition(b": ")
                if name != b"data" or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise CallError(0, event["error"]["message"])
                yield event


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Give each line as it comes. The response's own `readline` takes a stream that breaks off for a whole one."""
    held = b""
    while data := response.read1(65536):
        *lines, held = (held + data).split(b"\n")
        yield from lines


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what `http.client` raises into CallError."""
    try:
        yield
    except (http.client.HTTPException, OSError) as error:
        raise CallError(0, f"the connection failed: {type(error).__name__}") from error


def _turn(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]
