"""A stand-in for a model: `@@key=value …@@` in the prompt controls its answer, which is otherwise a list of words.

| key | effect |
|---|---|
| tokens=N | as many tokens, then a stop (24 without it) |
| tps=N | tokens a second; 0 is as fast as can be |
| ttft=MS | milliseconds of silence before the first token (20) |
| script=think, tool, json | a thought and an answer; a call of the request's first tool; a JSON object |
| think=N, tool=NAME | the first N tokens are a thought; a call at the end (models whose runner does that itself) |
| big=N | each token is N bytes long |
| repeat=N | after N tokens it says "again" until Ollama has enough of it: an end without a `done` |
| err=STATUS | fails before the first token |
| die=N, cut=N | after N tokens the runner dies, or its connection breaks |
| drop=N | after N tokens Ollama itself goes: the connection ends without a last chunk |
| load=S, load=fail | seconds that a load takes on this request's behalf, or that it fails |

A prompt without any is answered in the same words, but for three that any model would heed: one that says JSON, where
the answer must be that; one that names the first tool; and a question, where thought is asked for.
"""

from __future__ import annotations

import asyncio
import random
import re
import string
import time
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from proxy.simulated_ollama.go.json import Json, dump

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.simulated_ollama.models import Model

_TEXT = (
    "are of may sound see many said we one that 日本 water could these time when hot as to side most two them each out "
    "this was <b>& call come long will use but they is now my look would which were or on the who number thing about "
    "how some at you café know day so their there by with and down no him then an can have he 😀 than go her if up "
    'word his in been people has write she other from for "quoted" first did make way your what be it find over more '
    "like do all had"
)
WORDS = _TEXT.split()
_DIRECTIVES = re.compile(r"@@((?:\s*\w+=[^@\s]+)+\s*)@@")  # nothing else: prompts of coding tools hold diffs
_DEFAULT_TOKENS = 24
_NUM_PREDICT = 32  # every stand-in model's own limit
_REPEATS = 31  # Ollama silently ends an answer at the 30th repeat of one token
_ARGUMENTS: dict[str, Json] = {"city": "Paris", "days": 3}
_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
_TOLD_TO_DIE = ": error: stand-in was told to die"
_CUT = "error reading llama-server response: read tcp 127.0.0.1:50000->127.0.0.1:50001: read: connection reset by peer"


class Stage(Enum):
    """How far a request has come inside Ollama; it decides what its caller's leaving does."""

    SCHEDULER = "scheduler"
    QUEUED = "queued"  # behind another model's load
    LOADING = "loading"  # the load is on this request's behalf
    WAITING = "waiting"  # for a slot of a loaded model, or for a load on another's behalf
    RUNNING = "running"


Form = tuple[tuple[str, Json], ...]
"""The options that decide how a model is loaded, and their values."""


@dataclass(slots=True)
class Ask:
    """What a request wants of a model, whatever surface it came by."""

    name: str  # as sent
    stream: bool
    turns: list[tuple[str, str]]  # role and text
    tools: list[Json] = field(default_factory=list)  # in the OpenAI form
    think: bool | None = None  # None: as the model likes
    think_strictly: bool = True  # a model that can't think is an error
    limit: int | None = None
    stops: list[str] = field(default_factory=list)
    keep_alive: float | None = None  # seconds; None: not said; infinite: forever
    load: Form = ()
    load_only: bool = False
    json: bool = False  # the answer must be JSON
    stage: Stage = Stage.SCHEDULER

    @property
    def orders(self) -> dict[str, str]:
        """The last directives in the prompt."""
        found = _DIRECTIVES.findall(" ".join(text for _, text in self.turns))
        pairs = (word.partition("=") for word in found[-1].split()) if found else ()
        return {key: value for key, _, value in pairs}


class Failed(Exception):  # noqa: N818 - an answer, not a mistake of ours
    """Ollama answers with an error. `text` is its message."""

    def __init__(self, status: int, text: str, *, runner_died: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.runner_died = runner_died


class Dropped(Exception):  # noqa: N818
    """Ollama itself goes in the middle of an answer."""


class Call(NamedTuple):
    """A tool call."""

    id: str
    name: str
    arguments: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts, and durations in nanoseconds."""

    prompt_tokens: int = 0
    tokens: int = 0
    total: int = 0
    load: int = 0
    prompt: int = 0
    speech: int = 0
    context: int = 0  # tokens of prompt and answer together


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the runner: a piece of the answer, or its end."""

    text: str = ""
    thinking: str = ""
    calls: tuple[Call, ...] = ()
    reason: str = ""  # why it ended; "" while it goes on
    stats: Stats = Stats()
    raw: str = ""  # what the model really said, where that differs from text and thinking

    @property
    def empty(self) -> bool:
        """Whether it says nothing at all, as for a tag that Ollama takes out."""
        return not (self.text or self.thinking or self.calls or self.reason)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a runner is going to say."""

    steps: list[Message]  # one per token
    reason: str
    calls: tuple[Call, ...]
    prompt_tokens: int
    orders: dict[str, str]


def count_prompt(ask: Ask, model: Model) -> int:
    """Return the prompt's size as the stand-ins count it: words of the filled-in template."""
    if model.jinja:
        return len(ask.turns)
    tools = 1 + len(dump(ask.tools).split()) if ask.tools else 0
    return tools + sum(1 + len(text.split()) for _, text in ask.turns) + 1


def plan(ask: Ask, model: Model) -> Plan:
    """Decide what `model` answers to `ask`."""
    orders = ask.orders
    steps, calls = _script(ask, model, orders)
    limit = ask.limit if ask.limit and ask.limit > 0 else _NUM_PREDICT
    reason = "stop"
    if "repeat" not in orders and limit <= len(steps):
        steps, calls, reason = steps[:limit], (), "length"
    steps, stopped = _stopped(steps, ask.stops)
    if stopped:
        calls, reason = (), "stop"
    return Plan(steps, "" if "repeat" in orders else reason, calls, count_prompt(ask, model), orders)


def _script(ask: Ask, model: Model, orders: dict[str, str]) -> tuple[list[Message], tuple[Call, ...]]:
    names = [tool["function"]["name"] for tool in ask.tools]
    script = orders.get("script") if orders else _heeded(ask, names)
    if script == "think":
        thought = [Message(thinking=word) for word in ("let", " me", " think", " about", " it")]
        said = [Message(word) for word in ("The", " answer", " is", " forty-two", ".")]
        if ask.think is False or not model.can("thinking"):
            return said, ()
        return [Message(raw="<think>\n"), *thought, Message(raw="</think>\n\n"), *said], ()
    if script == "tool" and names:
        return [Message()] * 4 + [Message(calls=(Call(_call_id(), names[0], _ARGUMENTS),)), Message()], ()
    if script == "json":
        return [Message(piece) for piece in ('{"answer"', ":", " 42", "}")], ()
    count = int(orders.get("tokens", _DEFAULT_TOKENS))
    big = int(orders.get("big", 0))
    words = [" " + "x" * big if big else " " + WORDS[index % len(WORDS)] for index in range(count)]
    if words and not big:
        words[0] = WORDS[0].capitalize()
    if "repeat" in orders:
        words = words[: int(orders["repeat"])] + [" again"] * _REPEATS
    thoughts = int(orders.get("think", 0)) if model.can("thinking") and ask.think is not False else 0
    steps = [Message(thinking=word) if index < thoughts else Message(word) for index, word in enumerate(words)]
    tool = orders.get("tool")
    return steps, (Call("standintoolcallid0001", tool, _ARGUMENTS),) if tool in names and tool else ()


def _heeded(ask: Ask, names: list[str]) -> str | None:
    """Return the script that a prompt without directives asks for."""
    role, text = ask.turns[-1] if ask.turns else ("", "")
    if role != "user":
        return None
    if ask.json and "JSON" in text:
        return "json"
    if names and names[0] in text:
        return "tool"
    return "think" if ask.think and "?" in text else None


def _call_id() -> str:
    return "call_" + "".join(random.choices(string.ascii_lowercase + string.digits, k=8))  # noqa: S311


def _stopped(steps: list[Message], stops: list[str]) -> tuple[list[Message], bool]:
    """Cut the answer at the first stop sequence, which itself is not sent but counts as a token."""
    said = "".join(step.text for step in steps)
    ends = {said.find(stop): len(stop) for stop in stops if stop and stop in said}
    if not ends:
        return steps, False
    cut = min(ends)
    kept, offset = [], 0
    for step in steps:
        kept.append(replace(step, text=step.text[: max(0, cut - offset)]))
        offset += len(step.text)
        if offset >= cut + ends[cut]:
            break
    return kept, True


async def speak(plan: Plan, tokens_per_second: float, speed: float, load: int) -> AsyncIterator[Message]:
    """Say it, at `tokens_per_second` unless the prompt says otherwise, all `speed` times faster.

    The last message has the reason and the counts, or there is none when the model repeated itself. `load` is the
    nanoseconds that passed before. Raises Failed, Dropped.
    """
    orders = plan.orders
    if "err" in orders:
        status = int(orders["err"])
        detail = {"error": {"code": status, "message": "stand-in was told to fail", "type": "server_error"}}
        raise Failed(status, dump(detail).decode())
    started = time.monotonic()
    await asyncio.sleep(int(orders.get("ttft", 20)) / 1000 / speed)
    pace = float(orders.get("tps", tokens_per_second))
    gap = 1 / pace / speed if pace else 0.0
    first = time.monotonic()
    for index, step in enumerate(plan.steps):
        _fault(orders, index)
        await asyncio.sleep(max(0.0, first + index * gap - time.monotonic()))
        yield step
    _fault(orders, len(plan.steps))
    if not plan.reason:
        return
    said = "".join(step.raw or step.thinking + step.text for step in plan.steps)
    stats = Stats(
        prompt_tokens=plan.prompt_tokens,
        tokens=len(plan.steps),
        total=load + round((time.monotonic() - started) * 1e9),
        load=load,
        prompt=max(1000, round((first - started) * 1e9)),
        speech=max(1000, round((time.monotonic() - first) * 1e9)),
        context=plan.prompt_tokens + len(said.split()),
    )
    yield Message(calls=plan.calls, reason=plan.reason, stats=stats)


def _fault(orders: dict[str, str], said: int) -> None:
    """Raise what was ordered to happen after `said` tokens."""
    if orders.get("die") == str(said):
        running = "an error was encountered while running the model" if said else _STOPPED
        raise Failed(500, running + _TOLD_TO_DIE, runner_died=True)
    if orders.get("cut") == str(said):
        raise Failed(500, _CUT if said else _STOPPED)
    if orders.get("drop") == str(said):
        raise Dropped
