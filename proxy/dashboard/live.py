"""The present as the page shows it: the state of the running proxy, why each request waits, the last refusals.

Pure, except for reading the end of the log.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from proxy.manage.facts.log_end import last_records
from proxy.manage.machine.at_work import duration, short
from proxy.manage.top.screen import doing
from proxy.settings.kinds import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.manage.machine.live_client import LiveError

    State = Mapping[str, Any]
    Request = Mapping[str, Any]

REFUSALS = 20
"""The last refusals that are shown."""

FOR_EVER = timedelta(days=3650)
"""A model that stays longer than this is kept forever: Ollama then names a time centuries away."""

_SHOWN_OF_REFUSALS = ("id", "time", "device", "user", "peer", "method", "path", "model", "reason", "user_agent")

_OF_PROXY = ("version", "pid", "started", "connections", "counters", "held")


def shown(value: Any) -> Any:
    """Return a value with control characters and marks of direction escaped in all its texts."""
    if isinstance(value, str):
        return value if value.isprintable() else printable(value)
    if isinstance(value, dict):
        return {shown(key): shown(each) for key, each in value.items()}
    return [shown(each) for each in value] if isinstance(value, list | tuple) else value


def running(state: State, refusals: Sequence[State]) -> dict[str, Any]:
    """Return the answer while a proxy runs."""
    requests, models = state["exchanges"], state["models"]
    proxy = {"running": True} | {key: state.get(key) for key in _OF_PROXY}
    return {
        "now": state["now"],
        "proxy": {**proxy, "troubles": shown(state.get("troubles", []))},
        "requests": [_request(each, requests, models) for each in requests],
        "models": [_model(each, state["now"]) for each in models],
        "refusals": list(refusals),
    }


def not_running(error: LiveError, refusals: Sequence[State], now: float) -> dict[str, Any]:
    """Return the answer while no proxy runs or answers."""
    proxy = {"running": False, "why": str(error), "hint": error.hint}
    return {"now": now, "proxy": proxy, "requests": [], "models": [], "refusals": list(refusals)}


def last_refusals(log: str | None) -> list[dict[str, Any]]:
    """Return the last refusals in the access log, the newest first."""
    if log is None:
        return []
    lines = (line for path in (log, f"{log}.1") for line in last_records(path) if line.get("verdict") == "refused")
    return [
        {key: shown(line.get(key)) for key in _SHOWN_OF_REFUSALS}
        for line, _ in zip(lines, range(REFUSALS), strict=False)
    ]


def _request(each: Request, requests: Sequence[Request], models: Sequence[State]) -> dict[str, Any]:
    loaded = {_plain(model["name"]) for model in models if model["state"] == "loaded"}
    is_loaded = _plain(each["model"]) in loaded
    behind = _behind(each, requests, is_loaded=is_loaded)
    found = {
        **{key: each.get(key) for key in ("id", "peer", "device", "user", "path", "model", "phase", "seconds")},
        **{key: each.get(key) for key in ("waited", "position", "events", "pings", "held", "limit")},
        "first_token": each.get("first"),
        "state": doing(each),
        "why": _why(each, behind, models, is_loaded=is_loaded),
        "behind": behind,
    }
    return {key: shown(value) for key, value in found.items()}


def _behind(each: Request, requests: Sequence[Request], *, is_loaded: bool) -> list[str]:
    """Return the ids of the requests that another waits for: those with Ollama, then those ahead of it.

    Ollama loads a model only when it has nothing else to do. If the model is loaded, only its own requests count.
    """
    if each["phase"] != "queue":
        return []
    own = _plain(each["model"])
    sent = [other["id"] for other in requests if _is_sent(other) and (not is_loaded or _plain(other["model"]) == own)]
    at = each["position"]
    waiting = (other for other in requests if at is not None and other["position"] is not None)
    ahead = sorted((other["position"], other["id"]) for other in waiting if other["position"] < at)
    return [*sent, *(which for _, which in ahead)]


def _why(each: Request, behind: Sequence[str], models: Sequence[State], *, is_loaded: bool) -> str | None:
    """Return in words why a request waits; None if it doesn't."""
    phase = each["phase"]
    if phase == "load":
        since = next((model["seconds"] for model in models if model["state"] == "loading"), None)
        return "waits until its model is loaded" + (f", for {duration(since)} so far" if since is not None else "")
    if phase == "upload":
        return "its body is still arriving"
    if phase == "wait":
        return "Ollama reads the prompt"
    if phase != "queue":
        return None
    if each.get("limit"):
        return f"waits because of `max_active` of {each['limit']}"
    loading = next((short(model["name"]) for model in models if model["state"] == "loading"), None)
    words = f"waits for its turn behind {len(behind)} request{'' if len(behind) == 1 else 's'}" if behind else ""
    if loading is not None:
        return f"{words or 'waits for its turn'} while {loading} is loaded"
    if words and not is_loaded:
        return f"{words}, because its model isn't loaded"
    return words or "waits for its turn"


def _is_sent(each: Request) -> bool:
    return each["phase"] not in {"upload", "queue", "load", "head", "done"}


def _plain(model: str | None) -> str:
    """Return a model's name without its default tag."""
    return short(model or "").lower().removesuffix(":latest")


def _model(each: State, now: float) -> dict[str, Any]:
    until = _moment(each.get("unloads"))
    kept = until is not None and until - datetime.fromtimestamp(now, UTC) > FOR_EVER
    keys = ("state", "seconds", "waiting", "sent", "memory", "context", "options")
    unloads = None if until is None or kept else until.isoformat().replace("+00:00", "Z")
    named = {"name": short(each["name"]), "unloads": unloads, "kept": kept}
    return {key: shown(value) for key, value in {**named, **{key: each.get(key) for key in keys}}.items()}


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(text if isinstance(text, str) else "")
    except ValueError:
        return None
    return None if found.tzinfo is None else found.astimezone(UTC)
