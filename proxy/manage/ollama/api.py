"""How the owner's commands talk to Ollama: straight to `upstream`, never through the proxy.

Blocking calls, a new connection for each request, and no HTTP proxy from the environment. What can
take long has no time limit: while Ollama loads a model it sends nothing for minutes, and hanging up would end the load.
"""

from __future__ import annotations

import http.client
import json
import select
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from proxy.reading.names import ModelNameError, normal_name
from proxy.settings.addresses import split

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

ANSWER_TIME = 10.0
"""Seconds that Ollama may take to connect, and to list its models, which are in its memory or on its disk."""

POLL = 0.25
"""Seconds between two looks whether it answers by now."""

SILENCE = 60.0
"""Seconds between two words that it is still being waited for."""

TEXT_LIMIT = 400
"""Characters of Ollama's error that are reported: it may quote whole answers of its registry."""

_LINE_LIMIT = 2**16  # bytes of a line of progress: Ollama's have about 200
_ANSWER_LIMIT = 2**24  # bytes of any other answer: /api/tags has 500 for each model


class OllamaError(Exception):
    """Ollama didn't do what was asked. The text is its own if there is one; `status` is 0 if it didn't answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(" ".join(text.split())[:TEXT_LIMIT])
        self.status = status


class UnreachableError(OllamaError):
    """Nothing answers where Ollama should be."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model that is on this machine."""

    name: str
    digest: str
    elsewhere: str  # where it runs, if it is but a stub of one that runs elsewhere
    abilities: tuple[str, ...] | None  # None: this Ollama doesn't report it

    def may(self, ability: str) -> bool:
        """Return whether it has an ability, such as `tools`; if Ollama doesn't say, it may."""
        return self.abilities is None or ability in self.abilities


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is in memory."""

    digest: str
    size: int  # bytes
    in_gpu: int  # bytes of these
    context: int | None  # tokens
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Pulling:
    """How far a pull has come: bytes of all layers that began."""

    phase: str  # Ollama's name for it, nothing while it transfers
    done: int
    total: int


class Ollama:
    """The Ollama at `upstream`. Every method may raise OllamaError."""

    def __init__(self, upstream: str, patience: float = ANSWER_TIME) -> None:
        self.url, self._place, self._patience = upstream, split(upstream), patience

    def answers(self) -> bool:
        """Return whether it is there: it may listen already before it answers."""
        try:
            return isinstance(self._document("/api/version").get("version"), str)
        except OllamaError:
            return False

    def wait(self, seconds: float) -> bool:
        """Return True as soon as it answers, or False after so many seconds."""
        end = time.monotonic() + seconds
        while not self.answers():
            if time.monotonic() >= end:
                return False
            time.sleep(POLL)
        return True

    def listed(self) -> dict[str, Listed]:
        """Return the models that are on this machine, by their normal names."""
        return {name: _listed(each) for name, each in self._models("/api/tags")}

    def loaded(self) -> dict[str, Loaded]:
        """Return the models that are in memory, by their normal names."""
        return {name: _loaded(each) for name, each in self._models("/api/ps")}

    def pull(self, name: str) -> Generator[Pulling, None, None]:
        """Yield how far it has come until the model is there.

        Closing this iterator ends the pull. Ollama keeps what it has, and continues from there next time.
        """
        layers: dict[str, tuple[int, int]] = {}
        with self._post("/api/pull", {"model": name, "stream": True}) as connection:
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise _refused(response)
            while line := response.readline(_LINE_LIMIT):
                parsed = _object(line)  # errors come within a 200
                if (phase := str(parsed.get("status", ""))) == "success":
                    return
                if digest := parsed.get("digest"):
                    layers[str(digest)] = (_number(parsed, "completed"), _number(parsed, "total"))
                done, total = map(sum, zip(*layers.values(), strict=True)) if layers else (0, 0)
                yield Pulling("" if digest else phase, done, total)
        raise OllamaError("the pull ended before it was done")

    def load(
        self,
        name: str,
        keep_alive: float,
        *,
        embeds: bool = False,
        silent: Callable[[float], None] = lambda _: None,
        each: float = SILENCE,
    ) -> None:
        """Load a model, for `keep_alive` seconds after its last use; -1 is forever.

        A client that asks for a load and leaves ends it, so this waits as long as the connection stands. `silent` is
        called every `each` seconds with the seconds that have passed.
        """
        body = {"model": name, "keep_alive": keep_alive}
        # Without a prompt it only loads. A model that only embeds is refused there, and needs something to embed.
        path, more = ("/api/embed", {"input": "warm"}) if embeds else ("/api/generate", {"stream": False})
        with self._post(path, {**body, **more}) as connection:
            passed = 0.0
            while not select.select([connection.sock], [], [], each)[0]:
                passed += each
                silent(passed)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise _refused(response)
            parsed = _object(response.read(_ANSWER_LIMIT))
            if parsed.get("done") is not True and "embeddings" not in parsed:
                raise OllamaError("Ollama did not say that the model is loaded")

    # --- requests -----------------------------------------------------------------------------------------------------

    def _models(self, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        models = self._document(path).get("models")
        if not isinstance(models, list):
            raise OllamaError(f"the program that answers at {self.url} isn't Ollama")
        for each in models:
            try:
                yield normal_name(each["name"]), each
            except (ModelNameError, KeyError, TypeError, AttributeError):
                continue

    def _document(self, path: str) -> Mapping[str, Any]:
        with self._asked("GET", path, None) as connection:
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise _refused(response)
            return _object(response.read(_ANSWER_LIMIT))

    @contextmanager
    def _post(self, path: str, body: Mapping[str, object]) -> Iterator[http.client.HTTPConnection]:
        """Give a connection on which the answer may take as long as it likes."""
        with self._asked("POST", path, json.dumps(body).encode()) as connection:
            connection.sock.settimeout(None)
            yield connection

    @contextmanager
    def _asked(self, method: str, path: str, body: bytes | None) -> Iterator[http.client.HTTPConnection]:
        """Give a connection on which a request was sent."""
        connection = http.client.HTTPConnection(*self._place, timeout=self._patience)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise UnreachableError(f"{self.url} does not answer: {_reason(error)}") from error
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            yield connection
        except (OSError, http.client.HTTPException) as error:
            raise OllamaError(f"the connection to Ollama broke: {_reason(error)}") from error
        finally:
            connection.close()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it was closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return "it ended in the middle of an answer"
    return getattr(error, "strerror", None) or type(error).__name__


def _refused(response: http.client.HTTPResponse) -> OllamaError:
    """Return the error of an answer whose status is not 200."""
    try:
        text = str(json.loads(response.read(_ANSWER_LIMIT))["error"])
    except (ValueError, KeyError, TypeError):
        text = f"Ollama answers {response.status} {response.reason}"
    return OllamaError(text, response.status)


def _object(octets: bytes) -> Mapping[str, Any]:
    """Return an object of JSON. OllamaError if it is none, or one that reports an error."""
    try:
        parsed = json.loads(octets)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise OllamaError("the program that answers isn't Ollama")
    if "error" in parsed:
        raise OllamaError(str(parsed["error"]), http.HTTPStatus.OK)
    return parsed


def _listed(parsed: Mapping[str, Any]) -> Listed:
    abilities = parsed.get("capabilities")
    return Listed(
        parsed["name"],
        str(parsed.get("digest", "")),
        str(parsed.get("remote_host") or ""),
        tuple(map(str, abilities)) if isinstance(abilities, list) else None,
    )


def _loaded(parsed: Mapping[str, Any]) -> Loaded:
    return Loaded(
        str(parsed.get("digest", "")),
        _number(parsed, "size"),
        _number(parsed, "size_vram"),
        _number(parsed, "context_length") or None,
        _moment(parsed.get("expires_at")),
    )


def _number(parsed: Mapping[str, Any], key: str) -> int:
    value = parsed.get(key)
    return value if isinstance(value, int) else 0


def _moment(parsed: object) -> datetime | None:
    """Return a time with its zone, as Go writes it; None for Go's zero, which says nothing."""
    try:
        moment = datetime.fromisoformat(str(parsed))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None and moment.year > 1 else None
