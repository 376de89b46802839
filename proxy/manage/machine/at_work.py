"""What a running proxy is doing, in words, from the state that it shows on its Unix socket. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from proxy.settings.kinds import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

State = dict[str, Any]
"""`exchange.waiting.snapshot.Snapshot` as JSON, and what `serving.live` adds. Empty if no proxy shows one."""

_WAITING = frozenset({"upload", "queue", "load"})
"""The phases in which Ollama knows nothing of a request."""

_LIBRARY = "registry.ollama.ai/library/"

_NAMED = 3
"""How many clients a line names."""


def waiting(state: State) -> list[Mapping[str, Any]]:
    """Return the requests that wait in the proxy."""
    return [each for each in state.get("exchanges", ()) if each["phase"] in _WAITING]


def running(state: State) -> list[Mapping[str, Any]]:
    """Return the requests that Ollama works on."""
    return [each for each in state.get("exchanges", ()) if each["phase"] not in _WAITING]


def loads(state: State) -> list[str]:
    """Return the models that are being loaded, each with the time that its load has taken."""
    found = (each for each in state.get("models", ()) if each["state"] == "loading")
    return [f"{short(each['name'])}, after {duration(each['seconds'] or 0)}" for each in found]


def shown(state: State) -> Iterator[tuple[str, str]]:
    """Yield what `status` shows of it: the name of a fact, and its value."""
    if not state:
        return
    counters = state["counters"]
    now = f"{len(running(state))} with Ollama, {len(waiting(state))} waiting"
    since = duration(state["now"] - state["started"])
    yield "requests", f"{now}; {counters.get('requests', 0)} for a model in {since}, {counters.get('waited', 0)} waited"
    for load in loads(state):
        yield "loading", load
    for limit, number in Counter(each["limit"] for each in waiting(state) if each.get("limit")).items():
        yield "waiting", f"{number} for `max_active` of {limit}"


def lost(state: State, names: Collection[str], *, now: bool) -> list[str]:
    """Return what is lost if the services `names` end, in words.

    With `now`, they get no time to finish. Otherwise the proxy ends before Ollama does.
    """
    found, proxy = [], "proxy" in names
    if proxy and (those := waiting(state)):
        found.append(f"{_count(those, 'waiting request')}: answered with an error")
    found += [f"the load of {load}" for load in loads(state)]
    if those := running(state):
        late = ", unless complete within `drain_timeout`" if proxy and not now else ""
        found.append(f"{_count(those, 'answer')}: cut{late}")
    return found


def _count(those: list[Mapping[str, Any]], what: str) -> str:
    clients = list(dict.fromkeys(printable(each["device"] or each["peer"]) for each in those))
    more = f" and {len(clients) - _NAMED} more" if len(clients) > _NAMED else ""
    return f"{len(those)} {what}{'' if len(those) == 1 else 's'} ({', '.join(clients[:_NAMED])}{more})"


def short(model: str) -> str:
    """Return the name of a model as `ollama list` prints it."""
    return printable(model.removeprefix(_LIBRARY))


def duration(seconds: float) -> str:
    """Return a time as a person reads it: `7 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = int(max(seconds, 0))
    for above, unit, below, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= above:
            rest = whole % above // below
            return f"{whole // above} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{whole} s"
