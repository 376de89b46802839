"""One run of the questions: what was promised, what is known so far, and the result of each question.

A question is a function of the session that returns what it saw, or raises: Unmet when a promise isn't kept, Doubt when
something is odd that isn't the proxy's fault, Left when it can't be asked, and `silence.NoAnswer`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from proxy.manage.verify.asking.silence import NoAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.manage.verify.asking.asking import Asker

Row = tuple[str, str]
"""Method and path; a final `*` stands for a model's name."""

SINCE = {"responses": (0, 13, 3), "messages": (0, 14, 0)}
"""The release of Ollama that first had /v1/responses, and /v1/messages."""

REWRITES = "asked through tailscale serve, which rewrites requests"
"""Why what depends on the exact bytes of a request can't be asked."""


@dataclass(frozen=True)
class Ruled:
    """What an access rule allows its askers."""

    number: int
    models: tuple[str, ...]  # patterns as Ollama completes names, in lower case; `*` stands for any characters
    also: tuple[Row, ...] = ()  # rows that it opens
    behind: tuple[int, ...] = ()  # earlier rules that name all of its askers, so that it never counts


@dataclass(frozen=True)
class Promised:
    """What the proxy in question lets through, as its owner set it."""

    served: tuple[Row, ...]
    closed: tuple[Row, ...]  # what `allow` could open, and doesn't
    max_body: int = 0  # bytes of content; 0: not known
    stranger: str = "https://verify.invalid"  # an Origin that it refuses; empty: there is none
    local_only: bool = True  # nothing may leave the Mac
    ruled: bool = False  # access rules say which device may use which model
    rules: tuple[Ruled, ...] = ()
    for_some: tuple[Row, ...] = ()  # what rules or grants open for some devices


@dataclass(frozen=True)
class Model:
    """A model in Ollama's list."""

    name: str
    size: int  # bytes
    capabilities: tuple[str, ...] | None = None  # None: not reported
    remote: bool = False  # it runs on other machines


@dataclass(frozen=True)
class Result:
    """What came of a question; `ids` are those of the requests that it took."""

    group: str
    name: str
    outcome: str  # pass, warn, fail or skip
    detail: str
    hint: str = ""
    seconds: float = 0.0
    ids: tuple[str, ...] = ()


class Unmet(Exception):  # noqa: N818 - an outcome
    """A promise isn't kept: what was seen, and what to do."""

    outcome = "fail"

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class Doubt(Unmet):
    """Something isn't as it could be, and the proxy is not to blame."""

    outcome = "warn"


class Left(Unmet):
    """The question can't be asked: why not."""

    outcome = "skip"


def expect(condition: object, detail: str, hint: str = "") -> None:
    """Raise Unmet unless `condition` holds."""
    if not condition:
        raise Unmet(detail, hint)


class Need(Enum):
    """What must be so before a question makes sense."""

    CONNECTION = "connection"
    PROXY = "proxy"  # what answers is the proxy
    UNCHANGED = "unchanged"  # requests arrive unchanged
    OLLAMA = "ollama"
    MODEL = "model"
    RESPONSES = "responses"
    MESSAGES = "messages"
    ANTHROPIC = "anthropic"  # is wanted at all


@dataclass(frozen=True)
class Question:
    """One question: what it is called, how it is asked, and what it needs."""

    group: str
    name: str
    ask: Callable[[Session], str]
    needs: frozenset[Need] = frozenset()


class Session:
    """One run. The questions of `connection` write what they learn, and all others read it."""

    def __init__(
        self,
        asker: Asker,
        promised: Promised,
        *,
        direct: Asker | None = None,
        also: tuple[Asker, ...] = (),
        wanted: str | None = None,
        skip_models: bool = False,
        skip_anthropic: bool = False,
        known_down: frozenset[str] = frozenset(),
        log: str = "~/Library/Logs/remote-ollama-proxy/access.log",
    ) -> None:
        """`direct` asks Ollama itself, `also` the proxy at its other addresses; `wanted` is a model's name.

        `known_down` names what is already known to be down: "proxy", "Ollama". `log` is the proxy's access log.
        """
        self.asker = asker
        self.promised = promised
        self.direct = direct
        self.also = also
        self.wanted = wanted
        self.skip_models = skip_models
        self.skip_anthropic = skip_anthropic
        self.known_down = known_down
        self.log = log
        self.judge: Callable[[list[str]], list[dict[str, Any]]] | None = None  # what the proxy says of its access rules
        self.connected = False
        self.is_proxy: bool | None = None  # None: not known
        self.rewritten = False  # whether something on the way reads each request and writes its own
        self.ruled_out = False  # whether no access rule names this device
        self.misnamed = False  # whether the proxy refuses the Host that it is asked by
        self.guarded = False  # whether the proxy refused `POST /api/pull`, so that worse may be tried
        self.release: tuple[int, ...] | None = None  # None: Ollama doesn't answer; empty: no version that compares
        self.models: tuple[Model, ...] = ()
        self.model: Model | None = None  # the one that is asked

    @property
    def askers(self) -> tuple[Asker, ...]:
        """All who asked the proxy."""
        return (self.asker, *self.also)

    def too_old(self, feature: str) -> str | None:
        """Return in what release Ollama got a feature, if the one that answers is older; 0.0.0 is the newest."""
        since = SINCE[feature]
        if self.release and any(self.release) and self.release < since:
            return ".".join(map(str, since))
        return None

    def lacking(self, needs: frozenset[Need]) -> str | None:
        """Return why a question with such needs can't be asked, or None."""
        reasons = (
            (Need.ANTHROPIC, self.skip_anthropic, "left out with --skip-anthropic-tests"),
            (Need.CONNECTION, not self.connected, f"there is no answer from {self.asker.authority}"),
            (Need.PROXY, self.is_proxy is False, "not asked: this is not the proxy"),
            (Need.PROXY, self.ruled_out, "not asked: no access rule names this device"),
            (Need.PROXY, self.misnamed, f"not asked: the proxy refuses the name {self.asker.host}"),
            (Need.UNCHANGED, self.rewritten, REWRITES),
            (Need.OLLAMA, self.release is None, "Ollama does not answer"),
            (Need.RESPONSES, self.too_old("responses"), "Ollama is too old"),
            (Need.MESSAGES, self.too_old("messages"), "Ollama is too old"),
            (Need.MODEL, self.skip_models, "left out with --skip-model-tests"),
            (Need.MODEL, self.model is None, "there is no model to ask"),
        )
        return next((reason for need, lacks, reason in reasons if need in needs and lacks), None)

    def put(self, question: Question) -> Result:
        """Ask a question, and return what came of it."""
        before = [len(asker.asked) for asker in self.askers]
        began = time.monotonic()
        outcome, detail, hint = self._outcome(question)
        ids = tuple(each.id for asker, start in zip(self.askers, before) for each in asker.asked[start:])
        return Result(question.group, question.name, outcome, detail, hint, time.monotonic() - began, ids)

    def _outcome(self, question: Question) -> tuple[str, str, str]:
        lacking = self.lacking(question.needs)
        if lacking is not None:
            return "skip", lacking, ""
        try:
            return "pass", question.ask(self), ""
        except Unmet as found:
            return found.outcome, found.detail, found.hint or (self._look() if found.outcome == "fail" else "")
        except NoAnswer as found:
            return "fail", found.detail, found.hint
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:  # an unknown shape
            return "fail", f"the answer has an unexpected shape: {type(error).__name__} {error}", self._look()

    def _look(self) -> str:
        """Return where to look, for failures without better advice."""
        last = self.asker.asked[-1].id if self.asker.asked else self.asker.name
        return f"--verbose shows what was said; {self.asker.there}grep {last} {self.log}"


def seen(value: Any, *path: Any) -> Any:
    """Return what stands at a path of keys and indexes in JSON, or None if there is nothing."""
    for step in path:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and -len(value) <= step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value
