"""Stubs of models that run elsewhere: an Ollama whose cloud is off lists them, and refuses all else about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.settings.kinds import printable
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "remote model"


def cloud_is_off(told: Any) -> bool | None:
    """Return whether Ollama's cloud is off, by its answer to GET /api/status; None where that isn't said."""
    entry = told.get("cloud") if isinstance(told, dict) else None
    disabled = entry.get("disabled") if isinstance(entry, dict) else None
    return disabled if isinstance(disabled, bool) else None


def stubs(told: Any, *, off: bool) -> Iterator[Finding]:
    """Yield a finding for each stub in Ollama's answer to GET /api/tags; `off`: whether the cloud is."""
    models = told.get("models") if isinstance(told, dict) else None
    for each in models if isinstance(models, list) else ():
        if isinstance(each, dict) and each.get("remote_host"):
            model, host = printable(str(each.get("name"))), printable(str(each["remote_host"]))
            then = "what a client asks it leaves this machine"
            if off:
                then = (
                    "refused while the cloud is off, and a client that asks about every model, such as Copilot Chat or "
                    "Zed, then shows none at all"
                )
            quoted = model.replace("'", "'\\''")
            yield Finding(NAME, Outcome.WARN, f"{model} runs at {host}: {then}", f"ollama rm '{quoted}'")


def unusable(status: Any, tags: Any) -> Iterator[Finding]:
    """Yield the stubs that an Ollama keeps although its cloud is off: what OLLAMA_NO_CLOUD=1 makes of them."""
    if cloud_is_off(status):
        yield from stubs(tags, off=True)
