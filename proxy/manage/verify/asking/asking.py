"""Ask one server over HTTP: each request with its own id, each response with the moments at which it came.

A failure on the way to a response is a NoAnswer that says what it means, and what to do.
"""

from __future__ import annotations

import http.client
import io
import json
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxy.manage.verify.asking.secure import HTTPS_PORT, secured
from proxy.manage.verify.asking.silence import silent, unconnected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

USER_AGENT = "remote-ollama-proxy-verify"
"""What every request says of itself; any other client can say so too."""

CONNECT_TIME = 10.0
"""Seconds that a connection may take: a tailnet needs one or two to find the way, a firewall lets all of them pass."""

QUICK = 20.0
"""Seconds of silence before an answer that no model has to give."""

PATIENT = 300.0
"""Seconds of silence before an answer that a model gives: it may have to be loaded first."""

CONTENT_LIMIT = 2**24
"""Bytes of an answer that are read: lists of models and descriptions of one are far smaller."""

ANSWER_TIME = 900.0
"""Seconds that an answer may take in all, however steadily it comes."""

TALK_LIMIT = 2000
"""Characters of a request's content, and of an answer's, that `--verbose` shows."""

_CLOSE_TIME = 5.0  # seconds until a server that must close has closed


@dataclass(frozen=True)
class Piece:
    """What one read brought of an answer's content, and when the network had brought it."""

    data: bytes
    moment: float


@dataclass
class Answer:
    """An answer. `cut` says how it broke off, or nothing."""

    id: str
    method: str
    target: str
    status: int
    fields: Mapping[str, str]  # names in lower case
    pieces: list[Piece] = field(default_factory=list)
    cut: str = ""

    @property
    def content(self) -> bytes:
        """All that was read of the content."""
        return b"".join(piece.data for piece in self.pieces)

    @property
    def json(self) -> Any:
        """The content as JSON, or None if it is none."""
        try:
            return json.loads(self.content)
        except ValueError:
            return None

    @property
    def echoed(self) -> bool:
        """Whether our id came back, as the proxy sends it."""
        return self.fields.get("x-request-id") == self.id

    @property
    def message(self) -> str:
        """Return the message of an error, whichever API's format it has; otherwise the content as it is."""
        parsed = self.json
        error = parsed.get("error") if isinstance(parsed, dict) else None
        said = error.get("message") if isinstance(error, dict) else error
        return said if isinstance(said, str) else self.content[:300].decode("utf-8", "replace").strip()

    @property
    def shown(self) -> str:
        """The response in a few words, for a reader."""
        return (
            f"`{self.method} {self.target}` was answered with {self.status}{': ' if self.message else ''}{self.message}"
        )


@dataclass(frozen=True)
class Asked:
    """A request that was sent, and the status of its answer, if there was one; `known` if the answer had our id."""

    id: str
    method: str
    target: str
    status: int | None
    known: bool


class _Clocked(io.RawIOBase):
    """A socket's file that notes when something was last read from it."""

    def __init__(self, raw: Any) -> None:
        super().__init__()
        self._raw = raw
        self.moment = time.monotonic()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, into: Any) -> int | None:
        """Read, and note when."""
        count: int | None = self._raw.readinto(into)
        self.moment = time.monotonic()
        return count

    def close(self) -> None:
        """Close both."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response that knows when its last bytes came from the network."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.clock = _Clocked(self.fp.detach())
        self.fp = io.BufferedReader(self.clock)


class _Connection(http.client.HTTPConnection):
    """A connection whose answers know that."""

    response_class = _Response


class Asker:
    """Asks one server. `talk` has the recent conversation, `asked` every request so far."""

    def __init__(
        self,
        host: str,
        port: int,
        program: str = "remote-ollama-proxy",
        *,
        away: bool = False,
        secure: bool = False,
    ) -> None:
        """`away`: asks from another machine than the server's, which changes the advice about silence.

        `secure`: asks by https.
        """
        self.host, self.port, self.program, self.away, self.secure = host, port, program, away, secure
        self.name = f"verify-{secrets.token_hex(3)}"
        self.asked: list[Asked] = []
        self.talk: list[str] = []

    @property
    def there(self) -> str:
        """What a command to be typed where the proxy is begins with."""
        return "on the Mac: " if self.away else ""

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.secure and self.port == HTTPS_PORT else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"{'https' if self.secure else 'http'}://{self.authority}"

    def ask(
        self,
        method: str,
        target: str,
        content: Any = None,
        fields: Mapping[str, str] | None = None,
        *,
        loads: bool = False,
        heard: Callable[[Piece], object] = lambda piece: False,  # noqa: ARG005
    ) -> Answer:
        """Return the response to one request on its own connection; `content` is bytes, or becomes JSON.

        `fields` may contain a Host and a Content-Length of their own. `loads`: a model may have to be loaded first.
        `heard` gets each piece as it arrives, and ends the connection by returning something true.
        Raises NoAnswer if there is no response.
        """
        identity, patience = self._next(), PATIENT if loads else QUICK
        octets = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
        sent = {"Host": self.authority, "X-Request-Id": identity, "User-Agent": USER_AGENT}
        if octets is not None:
            sent.update({"Content-Type": "application/json", "Content-Length": str(len(octets))})
        sent.update(fields or {})
        self._say(f"> {method} {target}", sent, octets or b"")
        connection = _Connection(self.host, self.port)
        try:
            connection.sock = self._connected()
            connection.sock.settimeout(patience)
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(octets)
            answer = self._read(connection.getresponse(), identity, method, target, heard)  # type: ignore[arg-type]
        except (OSError, http.client.HTTPException) as error:
            self.asked.append(Asked(identity, method, target, None, False))
            self.talk.append(f"< no answer: {error or type(error).__name__}")
            raise silent(error, f"`{method} {target}`", self.program, patience, away=self.away, loads=loads) from error
        finally:
            connection.close()
        self.asked.append(Asked(identity, method, target, answer.status, answer.echoed))
        self._say(f"< {answer.status}", answer.fields, answer.content, answer.cut)
        return answer

    def raw(self, head: str, content: bytes = b"") -> tuple[bytes, bool]:
        """Return all bytes that come back for bytes that no HTTP client would send, and whether the server closed.

        `head` is the head without its last empty line; a line with our id is added.
        """
        identity = self._next()
        octets = f"{head}\r\nX-Request-Id: {identity}\r\n\r\n".encode("latin-1") + content
        line = head.partition("\r\n")[0]
        self._say(f"> {line!r} ...", {}, octets)
        with self._connected() as connection:
            connection.settimeout(_CLOSE_TIME)
            with suppress(OSError):  # refused before all of it was sent: the answer may be there
                connection.sendall(octets)
            received, closed = _to_the_end(connection)
        words = received.split(b" ", 2)
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else None
        self.asked.append(Asked(identity, "?", line, status, identity.encode() in received.partition(b"\r\n\r\n")[0]))
        self._say(f"< {'closed' if closed else 'left open'}", {}, received)
        return received, closed

    def at(self, port: int) -> Asker:
        """Return an asker for another `port` of the same host, by plain http."""
        return Asker(self.host, port, self.program, away=self.away)

    def takes(self, port: int, patience: float) -> bool:
        """Return whether a connection to another `port` of the same host is taken."""
        try:
            socket.create_connection((self.host, port), patience).close()
        except OSError:
            return False
        return True

    # --- how ----------------------------------------------------------------------------------------------------------

    def _next(self) -> str:
        return f"{self.name}-{len(self.asked) + 1}"

    def _connected(self) -> socket.socket:
        """Return a connection, with TLS where that is wanted. NoAnswer says why there is none."""
        try:
            connection = socket.create_connection((self.host, self.port), CONNECT_TIME)
        except OSError as error:
            raise unconnected(error, self.host, self.authority, self.program, away=self.away) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.secure:
            return connection
        return secured(connection, self.host, self.authority, self.program, away=self.away)

    def _read(
        self, response: _Response, identity: str, method: str, target: str, heard: Callable[[Piece], object]
    ) -> Answer:
        fields = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(identity, method, target, response.status, fields)
        size, end = 0, time.monotonic() + ANSWER_TIME
        try:
            while data := response.read1(65536):
                answer.pieces.append(Piece(data, response.clock.moment))
                size += len(data)
                if heard(answer.pieces[-1]) or size > CONTENT_LIMIT or time.monotonic() > end:
                    answer.cut = f"it continues after {size} bytes and was left"
                    return answer
        except (OSError, http.client.HTTPException) as error:
            answer.cut = f"it broke off after {size} bytes ({type(error).__name__})"
            return answer
        length = fields.get("content-length", "")
        if method != "HEAD" and length.isdigit() and size < int(length):  # `read1` says nothing of this
            answer.cut = f"it broke off after {size} of {length} bytes"
        return answer

    def _say(self, line: str, fields: Mapping[str, str], content: bytes, cut: str = "") -> None:
        text = content[: 4 * TALK_LIMIT].decode("utf-8", "replace")
        more = len(content) - len(text.encode("utf-8", "replace"))
        said = [line, *(f"  {name}: {value}" for name, value in fields.items())]
        said += [f"  {each}" for each in text[:TALK_LIMIT].split("\n")] if text else []
        if len(text) > TALK_LIMIT or more > 0:
            said.append(f"  ... ({len(content)} bytes)")
        self.talk += [*said, *([f"  {cut}"] if cut else [])]


def _to_the_end(connection: socket.socket) -> tuple[bytes, bool]:
    """Return what comes until the server closes or falls silent, and whether it closed."""
    received = b""
    while len(received) < CONTENT_LIMIT:
        try:
            data = connection.recv(65536)
        except (socket.timeout, TimeoutError):
            return received, False
        except OSError:  # a reset is an end too
            return received, True
        if not data:
            return received, True
        received += data
    return received, False
