"""The first questions: does anything answer, is it the proxy, is Ollama behind it, and which model to ask."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from proxy.manage.verify.asking.session import Doubt, Left, Need, Question, Unmet, expect, seen
from proxy.manage.verify.asking.silence import NoAnswer
from proxy.manage.verify.questions.models import ANOTHER, can, listed, same_name, size_of, smallest
from proxy.manage.verify.questions.refused import OTHER_NAME, RULED_OUT, refused

if TYPE_CHECKING:
    from proxy.manage.verify.asking.session import Session

CONNECTION = "Connection"


def answers(session: Session) -> str:
    """Something answers over HTTP where the proxy should be."""
    try:
        answer = session.asker.ask("GET", "/api/version")
    except NoAnswer as error:
        if "proxy" in session.known_down:
            raise Left(f"as above: {error.detail}") from error
        raise
    session.connected = True
    return f"{session.asker.url} answers ({answer.status})"


def is_the_proxy(session: Session) -> str:
    """It is the proxy: a pull, of a model with no name, is refused in its words."""
    answer = session.asker.ask("POST", "/api/pull", {"model": ""})
    if refused(answer, 403, "allowlist"):
        session.is_proxy = session.guarded = True
        return f"it refuses `POST /api/pull` in its own words ({answer.status})"
    if session.promised.ruled and refused(answer, 403, RULED_OUT):
        session.is_proxy = session.ruled_out = True
        return "it refuses this device, as it should: no access rule names it"
    if refused(answer, 403, OTHER_NAME):
        session.is_proxy = session.misnamed = True
        name, mac = session.asker.host, session.asker.there
        hint = f"use its address (100.x.y.z), or {mac}add {name} to allowed_hosts in config.toml"
        raise Unmet(f"it is the proxy, and it refuses the name {name}: {answer.message}", hint)
    if answer.echoed:
        session.is_proxy = True
        detail = f"it lets `POST /api/pull` through to Ollama, so anyone can make it download models: {answer.shown}"
        raise Unmet(detail, f"{session.asker.there}{session.asker.program} restart proxy")
    session.is_proxy = False
    where = (
        f"{session.asker.there}{session.asker.program} status, which shows where the proxy listens; use that address"
    )
    if session.asker.ask("GET", "/api/version").status != 200:
        raise Unmet(f"this is not the proxy, nor an Ollama: {answer.shown}", where)
    detail = f"this is Ollama itself, not the proxy (or something that lets everything through to it): {answer.shown}"
    raise Unmet(detail, f"{where}. Ollama itself should listen on 127.0.0.1 only: unset OLLAMA_HOST")


def ollama_answers(session: Session) -> str:
    """Ollama is behind it, and reports its version."""
    answer = session.asker.ask("GET", "/api/version")
    version = seen(answer.json, "version")
    if answer.status == 200 and isinstance(version, str):
        return _version(session, version)
    if answer.status in (502, 504):
        if "Ollama" in session.known_down:
            raise Left(f"as above; the proxy says: {answer.message}")
        detail = f"the proxy answers, but Ollama does not: {answer.message}"
        raise Unmet(detail, f"{session.asker.there}{session.asker.program} start ollama")
    raise Unmet(f"its version is unknown: {answer.shown}", f"{session.asker.there}{session.asker.program} status")


def _version(session: Session, version: str) -> str:
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version, re.ASCII)
    session.release = tuple(map(int, match.groups())) if match else ()
    if not match:
        detail = f"Ollama calls itself `{version[:40]}`, which can't be compared, so it counts as the newest"
        raise Doubt(detail, f"{session.asker.there}ollama --version")
    return f"version {version[:40]}"


def model_to_ask(session: Session) -> str:
    """There is a model that can be asked: the smallest that chats, or the wanted one."""
    session.models = listed(session.asker.ask("GET", "/api/tags").json)
    if session.wanted is not None:
        return _wanted(session, session.wanted)
    if not session.models:
        raise Left("Ollama has no model: questions that need one are left out", _pull(session))
    session.model = smallest(session, "completion")
    if session.model is None:
        raise Left(f"none of {len(session.models)} models can chat and runs on that machine", _pull(session))
    return f"{session.model.name}, {size_of(session.model)}: the smallest that can chat, of {len(session.models)}"


def _pull(session: Session) -> str:
    return f"{session.asker.there}ollama pull NAME"


def _wanted(session: Session, wanted: str) -> str:
    found = [model for model in session.models if same_name(model.name, wanted)]
    if not found:
        there = ", ".join(model.name for model in session.models[:20]) or "none at all"
        raise Unmet(f"there is no model `{wanted}`", f"--model NAME, with one of these: {there}")
    expect(can(session, found[0], "completion"), f"`{wanted}` can't chat, it only embeds", ANOTHER)
    session.model = found[0]
    return f"{found[0].name}, {size_of(found[0])}, as requested"


def also_there(session: Session) -> str:
    """At each further address the proxy answers, and blocks."""
    for asker in session.also:
        allowed = asker.ask("GET", "/api/version")
        expect(allowed.status != 403, f"at {asker.authority}: {allowed.shown}")
        blocked = asker.ask("POST", "/api/pull", {"model": ""})
        expect(refused(blocked, 403, "allowlist"), f"at {asker.authority}: {blocked.shown}")
    return f"answers, and blocks `POST /api/pull`: {', '.join(asker.authority for asker in session.also)}"


REACHED = frozenset({Need.CONNECTION})
PROXIED = REACHED | {Need.PROXY}
UNCHANGED = PROXIED | {Need.UNCHANGED}
BEHIND = PROXIED | {Need.OLLAMA}
ASKED = BEHIND | {Need.MODEL}
"""What questions need, each with what the one before needs."""

ADDRESSES_QUESTION = Question(CONNECTION, "other addresses", also_there, PROXIED)

CONNECTION_QUESTIONS = (
    Question(CONNECTION, "an answer", answers),
    Question(CONNECTION, "from the proxy", is_the_proxy, REACHED),
    Question(CONNECTION, "Ollama behind it", ollama_answers, PROXIED),
    Question(CONNECTION, "model to ask", model_to_ask, BEHIND),
)
