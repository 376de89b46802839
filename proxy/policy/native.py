"""Judge what a native request says about its model: how it is loaded, and for how long it stays. Pure.

Ollama has each model once for everyone. A request that says so changes it for all the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.policy.refusals import Reason, Refusal
from proxy.reading.asked import Naming
from proxy.reading.keep_alive import keeps_none
from proxy.reading.native import NativeOptions

if TYPE_CHECKING:
    from proxy.reading.asked import Asked

PATHS = frozenset({"/api/chat", "/api/generate", "/api/embed", "/api/embeddings"})
"""Where Ollama reads `keep_alive` and `options`."""

_PASS = f'the owner can allow this with `native_options = "{NativeOptions.PASS}"` on the server'


def judge_native(path: str, asked: Asked, setting: NativeOptions, *, held: bool) -> Refusal | None:
    """Return why a request is refused; None if it isn't, perhaps because it can go on without what it says.

    `held` says whether its body is held whole, so that something can be cut out of it.
    """
    if path not in PATHS or setting is NativeOptions.PASS:
        return None
    if asked.naming is Naming.UNREADABLE:
        return _refusal(
            f"The body may say how a model is loaded, but this proxy can't read it: {asked.why}; correct it"
        )
    if not asked.reloads:
        return None
    names = " and ".join(f"`{name}`" for name in asked.reloads)
    if setting is NativeOptions.REFUSE:
        return _refusal(f"{names} would change the model for all its users; leave this out of the request")
    if not asked.prompt and keeps_none(asked.keep_alive):
        return _refusal(
            "`keep_alive` 0 without a prompt would unload the model for all its users; Ollama unloads it by itself "
            "when it isn't used, or for another model"
        )
    if not held:
        return _refusal(
            f"{names} would change the model for all its users, and the body is too large for this proxy to drop them; "
            "leave this out of the request"
        )
    return None


def _refusal(text: str) -> Refusal:
    return Refusal(Reason.NATIVE_OPTIONS, 403, f"{text}, or {_PASS}")
