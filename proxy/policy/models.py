"""May a request have the model that it names, and would it leave the Mac? Pure.

It is judged before the request waits for its turn, so Ollama has not acted on it yet: of a body that is held whole
nothing was sent, and of a larger one not the byte that closes it. What Ollama must be asked first, `judging` asks.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from proxy.policy.advice import MODELS, quoted
from proxy.policy.reasons import Reason
from proxy.policy.refusals import Refusal
from proxy.reading.asked import Naming
from proxy.reading.names import is_cloud

if TYPE_CHECKING:
    from proxy.policy.access import Rule
    from proxy.reading.asked import Asked


class Cloud(StrEnum):
    """Whether Ollama may ask ollama.com, by its GET /api/status."""

    OFF = "off"
    ON = "on"
    NO_SWITCH = "no switch"  # an Ollama before 0.16.2, which can't turn it off
    UNKNOWN = "unknown"


_KEPT_HERE = "this proxy lets nothing leave the Mac (`local_only`)"
_ANOTHER = "choose a model that runs there"
_OWNER = "the owner can allow it with `local_only = false` on the server"


def judge_model(asked: Asked, rule: Rule | None, *, local_only: bool) -> Refusal | None:
    """Return why a request is refused for its model, as far as the request alone shows it; None if it isn't.

    A request that names no model passes: Ollama refuses it in its own words. `rule` is the asker's; without rules there
    is none.
    """
    if asked.model is not None:
        return judge_name(asked.model, rule, local_only)
    if asked.naming is Naming.MISSING or (rule is None and not local_only):
        return None
    return _ambiguous(asked.why) if asked.naming is Naming.AMBIGUOUS else _unreadable(asked.why)


@lru_cache(maxsize=256)
def judge_name(model: str, rule: Rule | None, local_only: bool) -> Refusal | None:
    """Return why a model is refused by its name alone; None if it isn't.

    Nearly all requests name one of a few models. Rules are compared by identity: a reload makes new ones.
    """
    if rule is not None and not rule.allows(model):
        return _not_allowed(model, rule.title)
    return cloud_model(model) if local_only and is_cloud(model) else None


def named_in(path: str) -> str:
    """Return the model that a path below /v1/models/ names. The gate lets no escape pass there except that of `:`."""
    return path.removeprefix(MODELS).replace("%3A", ":").replace("%3a", ":")


def judge_search(cloud: Cloud) -> Refusal | None:
    """Return why a request that offers a web search would leave the Mac; None if Ollama's cloud is off."""
    return _SEARCHES[cloud]


def may_leave(asked: Asked, cloud: Cloud, *, remote: bool) -> bool:
    """Return whether a request may leave the Mac: by its model, or by a search that Ollama may make.

    A model that can't be read may be any one.
    """
    if asked.model is None and asked.naming is not Naming.MISSING:
        return True
    named = asked.model is not None and (remote or is_cloud(asked.model))
    return named or (asked.web_search and cloud is not Cloud.OFF)


# --- the refusals -----------------------------------------------------------------------------------------------------

PACKED = Refusal(
    Reason.MODEL_UNREADABLE,
    400,
    "The body is compressed, and too large or too unusual to be unpacked here, so the model that it names is unknown; "
    "turn off request compression in the client",
)


def cloud_model(model: str) -> Refusal:
    """Return the refusal of a model that is named as one of ollama.com."""
    return _leaves(f"Model `{quoted(model)}` runs at ollama.com", _ANOTHER)


def remote_model(model: str) -> Refusal:
    """Return the refusal of a model whose local entry only stands for one that runs elsewhere."""
    return _leaves(f"Model `{quoted(model)}` only stands for one that runs elsewhere", _ANOTHER)


def place_unknown(model: str) -> Refusal:
    """Return the refusal of a model of which Ollama doesn't say where it runs."""
    return _leaves(f"Ollama didn't say where model `{quoted(model)}` runs", "see Ollama's log on the server")


def _leaves(what: str, advice: str) -> Refusal:
    return Refusal(Reason.LEAVES_THE_MAC, 403, f"{what}, and {_KEPT_HERE}; {advice}, or {_OWNER}")


def _not_allowed(model: str, title: str) -> Refusal:
    message = (
        f"Model `{quoted(model)}` is not among those that {title} allows; choose one that "
        "`GET /v1/models` lists, or ask the owner to allow it"
    )
    return Refusal(Reason.MODEL_NOT_ALLOWED, 403, message)


def _ambiguous(why: str) -> Refusal:
    message = (
        f"Ollama may read another model in this body than this proxy does: {quoted(why)}; send one body that names its "
        "model once, as `model` in lower case"
    )
    return Refusal(Reason.MODEL_AMBIGUOUS, 400, message)


def _unreadable(why: str) -> Refusal:
    message = (
        f"This proxy can't read which model the body names: {quoted(why)}; send one complete JSON object (or a form, "
        "where the path takes one) with the model's name as a plain text"
    )
    return Refusal(Reason.MODEL_UNREADABLE, 400, message)


def _search(why: str, advice: str) -> Refusal:
    message = (
        f"This request offers a web search, for which Ollama asks ollama.com, and {_KEPT_HERE}{why}; turn the search "
        f'off in the client (in Codex: `web_search = "disabled"` in its config.toml), or ask the owner to {advice}'
    )
    return Refusal(Reason.WEB_SEARCH, 403, message)


_OFF = "turn off Ollama's cloud (`OLLAMA_NO_CLOUD=1`) or to set `local_only = false` on the server"
_SEARCHES: dict[Cloud, Refusal | None] = {
    Cloud.OFF: None,
    Cloud.ON: _search("", _OFF),
    Cloud.NO_SWITCH: _search(" while Ollama can't turn its cloud off", "update Ollama, and then to " + _OFF),
    Cloud.UNKNOWN: _search(" while Ollama doesn't report that its cloud is off", _OFF),
}
