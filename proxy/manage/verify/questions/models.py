"""Which models there are, what each can do, and which one is asked: the smallest, because it loads soonest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from proxy.manage.verify.asking.session import Left, Model, seen

if TYPE_CHECKING:
    from proxy.manage.verify.asking.session import Session

ANOTHER = "--model NAME, to ask another one"
"""What to do where it is the model that can't, or doesn't."""

SHOWN = 40
"""How many models are asked for their capabilities, at most, if the list doesn't have them."""


def listed(body: Any) -> tuple[Model, ...]:
    """Return the models of an answer to `GET /api/tags`, the smallest first."""
    entries = seen(body, "models")
    found = [_model(entry) for entry in entries or () if isinstance(seen(entry, "name"), str)]
    return tuple(sorted(found, key=lambda model: (model.size, model.name)))


def _model(entry: dict[str, Any]) -> Model:
    name, size = entry["name"], entry.get("size")
    remote = bool(entry.get("remote_host")) or _is_cloud(name)
    return Model(name, size if isinstance(size, int) else 0, _capabilities(entry), remote)


def _is_cloud(name: str) -> bool:
    """Return whether a name alone sends a request off the machine."""
    tag = name.lower().rpartition(":")[2]
    return ":" in name and (tag == "cloud" or tag.endswith("-cloud"))


def _capabilities(body: Any) -> tuple[str, ...] | None:
    found = seen(body, "capabilities")
    return tuple(map(str, found)) if isinstance(found, list) else None


def same_name(name: str, wanted: str) -> bool:
    """Return whether two names mean the same model: letter case doesn't matter, nor does `:latest`."""
    first, second = (each.strip().lower() for each in (name, wanted))
    return first in (second, f"{second}:latest")


def can(session: Session, model: Model, what: str) -> bool:
    """Return whether a model has a capability; before Ollama 0.6.4 they aren't reported, and a model only chats."""
    return what in (_listed_capabilities(session, model) or ("completion",))


def _listed_capabilities(session: Session, model: Model) -> tuple[str, ...] | None:
    """Return a model's capabilities, asked for where the list doesn't have them, and kept."""
    known = next((each for each in session.models if each.name == model.name), model)
    if known.capabilities is None and session.models.index(known) < SHOWN:
        answer = session.asker.ask("POST", "/api/show", {"model": model.name})
        known = replace(known, capabilities=_capabilities(answer.json) or ("completion",))
        session.models = tuple(known if each.name == known.name else each for each in session.models)
    return known.capabilities


def smallest(session: Session, what: str) -> Model | None:
    """Return the smallest model here that has a capability, the wanted one if it has; None if there is none."""
    here = [model for model in session.models if not model.remote]
    wanted = [model for model in session.models if session.wanted and same_name(model.name, session.wanted)]
    return next((model for model in [*wanted, *here] if can(session, model, what)), None)


def able(session: Session, what: str) -> str:
    """Return the name of the model to ask for something special. Left when there is none that can."""
    model = smallest(session, what)
    if model is None:
        raise Left(f"no model here has the capability `{what}`")
    return model.name


def size_of(model: Model) -> str:
    """Return a model's size for a person."""
    return f"{model.size / 1e9:.1f} GB" if model.size >= 1e8 else f"{model.size / 1e6:.1f} MB"
