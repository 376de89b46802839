"""What `top` shows of one moment: requests, models, and totals. Pure, except for rich's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from proxy.settings.kinds import printable
from proxy.terminal.console import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

KEYS = "↑ ↓ choose   k end the chosen request   q quit"

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


def screen(state: Mapping[str, Any], rates: Mapping[str, float], chosen: int | None, line: str) -> RenderableType:
    """Return the whole picture. `rates` are tokens a second by id, `chosen` is a row, `line` comes last."""
    return Group(*parts(state, rates, chosen), Text(line, style="dim"))


def parts(
    state: Mapping[str, Any], rates: Mapping[str, float] | None = None, chosen: int | None = None
) -> list[RenderableType]:
    """Return the tables of one moment."""
    requests = [_request(each, rates or {}, marked=at == chosen) for at, each in enumerate(state["exchanges"])]
    models = [_model(each) for each in state["models"]]
    return [
        Text("requests", style="bold"),
        table(requests, heading=_REQUESTS, right={4, 5, 6}) if requests else Text("  none that needs a model"),
        Text(""),
        Text("models", style="bold"),
        table(models, heading=_MODELS, right={3, 4, 5, 6}) if models else Text("  none in memory, as far as is known"),
        Text(""),
        Text(_totals(state)),
        *(Text(printable(each), style="yellow") for each in state.get("troubles", ())),
    ]


def _request(each: Mapping[str, Any], rates: Mapping[str, float], *, marked: bool) -> list[str | RenderableType]:
    rate = rates.get(each["id"])
    cells = [
        each["device"] or each["peer"],
        each["model"] or "?",
        _state(each),
        duration(each["seconds"]),
        str(each["events"]) if each["events"] else "",
        f"{rate:.0f}" if rate else "",
        each["id"],
    ]
    if marked:
        return [Text("❯", style="bold"), *(Text(printable(cell), style="reverse") for cell in cells)]
    return [" ", *cells]


def _state(each: Mapping[str, Any]) -> str:
    if each["phase"] == "queue":
        return "waits for its turn" if each["position"] is None else f"waits, number {each['position']}"
    return _STATES.get(str(each["phase"]), str(each["phase"]))


def _model(each: Mapping[str, Any]) -> list[str | RenderableType]:
    since = f" for {duration(each['seconds'])}" if each["seconds"] is not None else ""
    return [
        " ",
        each["name"].removeprefix("registry.ollama.ai/library/"),
        f"{each['state']}{since}",
        f"{each['memory'] / 1e9:.1f} GB" if each["memory"] else "",
        str(each["context"] or ""),
        str(each["sent"]),
        str(each["waiting"]),
    ]


def _totals(state: Mapping[str, Any]) -> str:
    counters = state["counters"]
    loads, failed = counters.get("loads", 0), counters.get("loads_failed", 0)
    shown = [
        f"{counters.get('requests', 0)} requests for a model in {duration(state['now'] - state['started'])}",
        f"{counters.get('waited', 0)} waited",
        f"{loads} loads" + (f" ({failed} failed)" if failed else ""),
        f"{state['connections']} connections",
    ]
    for name, text in (("turned_away", "turned away"), ("cancelled", "cancelled")):
        if counters.get(name):
            shown.append(f"{counters[name]} {text}")
    return ", ".join(shown)


def duration(seconds: float) -> str:
    """Return a time as a person reads it: `7 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = int(max(seconds, 0))
    for above, unit, below, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= above:
            rest = whole % above // below
            return f"{whole // above} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{whole} s"
