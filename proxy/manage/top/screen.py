"""Make what `top` shows of one moment: requests, models, and totals. Pure, except for rich's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from proxy.manage.machine.at_work import duration, short
from proxy.settings.kinds import printable
from proxy.terminal.console import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

KEYS = "↑ ↓ choose   k end the chosen request   q quit"

_ABOVE_AND_BELOW = 10
"""Lines of the picture that are neither a request nor a model nor a trouble, if totals and keys take two each."""

_FEWEST = 3
"""Requests that are shown however low the terminal is."""

_REQUESTS = ("", "DEVICE", "MODEL", "STATE", "TIME", "TOKENS", "TOKENS/S", "REQUEST")
_MODELS = ("", "MODEL", "STATE", "MEMORY", "CONTEXT", "RUNNING", "WAITING")

# An exchange's phase -> what a person calls it.
_STATES = {
    "upload": "sends its request",
    "connect": "connects to Ollama",
    "request": "is sent to Ollama",
    "wait": "Ollama reads the prompt",
    "content": "streams",
    "load": "waits for the load",
}


def screen(
    state: Mapping[str, Any], rates: Mapping[str, float], chosen: int | None, line: str, height: int
) -> RenderableType:
    """Return the whole picture. `rates` are tokens a second by id, `chosen` is a row, `line` comes last.

    If a terminal of `height` lines has no room for all requests, those around the chosen one are shown.
    """
    others = _ABOVE_AND_BELOW + max(1, len(state["models"])) + 2 * len(state.get("troubles", ()))
    return Group(*parts(state, rates, chosen, max(_FEWEST, height - others)), Text(line, style="dim"))


def parts(
    state: Mapping[str, Any],
    rates: Mapping[str, float] | None = None,
    chosen: int | None = None,
    most: int | None = None,
) -> list[RenderableType]:
    """Return the tables of one moment, with `most` requests at most, each then in one line."""
    exchanges = list(enumerate(state["exchanges"]))
    first = 0 if most is None else max(0, min((chosen or 0) - most // 2, len(exchanges) - most))
    shown = exchanges[first : None if most is None else first + most]
    one_line = most is not None
    requests = [_request(each, rates or {}, marked=at == chosen, one_line=one_line) for at, each in shown]
    models = [_model(each) for each in state["models"]]
    left = len(exchanges) - len(shown)
    return [
        Text.assemble(("requests", "bold"), (f"   {left} of {len(exchanges)} not shown", "dim") if left else ""),
        table(requests, heading=_REQUESTS, right={4, 5, 6}) if requests else Text("  none that needs a model"),
        Text(""),
        Text("models", style="bold"),
        table(models, heading=_MODELS, right={3, 4, 5, 6}) if models else Text("  none known to be in memory"),
        Text(""),
        Text(_totals(state)),
        *(Text(printable(each), style="yellow") for each in state.get("troubles", ())),
    ]


def _request(
    each: Mapping[str, Any], rates: Mapping[str, float], *, marked: bool, one_line: bool
) -> list[str | RenderableType]:
    rate = rates.get(each["id"])
    cells = [
        each["device"] or each["peer"],
        each["model"] or "?",
        doing(each),
        duration(each["seconds"]),
        str(each["events"]) if each["events"] else "",
        f"{rate:.0f}" if rate else "",
        each["id"],
    ]
    style = "reverse" if marked else ""
    shown = [
        Text(printable(cell), style, no_wrap=one_line, overflow="ellipsis" if one_line else "fold") for cell in cells
    ]
    return [Text("❯" if marked else " ", style="bold"), *shown]


def doing(each: Mapping[str, Any]) -> str:
    """Return what a request does, as a person calls it."""
    if each["phase"] == "queue":
        turn = "waits for its turn" if each["position"] is None else f"waits, number {each['position']}"
        return f"{turn} (`max_active` of {each['limit']})" if each.get("limit") else turn
    return _STATES.get(str(each["phase"]), str(each["phase"]))


def _model(each: Mapping[str, Any]) -> list[str | RenderableType]:
    since = f" for {duration(each['seconds'])}" if each["seconds"] is not None else ""
    return [
        " ",
        short(each["name"]),
        f"{each['state']}{since}",
        _size(each["memory"]) if each["memory"] else "",
        str(each["context"] or ""),
        str(each["sent"]),
        str(each["waiting"]),
    ]


def _size(octets: int) -> str:
    return f"{octets / 1e9:.1f} GB" if octets >= 5e7 else f"{octets / 1e6:.0f} MB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _totals(state: Mapping[str, Any]) -> str:
    counters = state["counters"]
    loads, failed = counters.get("loads", 0), counters.get("loads_failed", 0)
    shown = [
        f"{_count(counters.get('requests', 0), 'request')} for a model in {duration(state['now'] - state['started'])}",
        f"{counters.get('waited', 0)} waited",
        _count(loads, "load") + (f" ({failed} failed)" if failed else ""),
        _count(state["connections"], "connection"),
    ]
    for name, text in (("turned_away", "turned away"), ("cancelled", "cancelled")):
        if counters.get(name):
            shown.append(f"{counters[name]} {text}")
    return ", ".join(shown)
