"""What the access rule of this device allows and what it refuses. Only one rule counts for a device.

The proxy names that rule when it refuses a model. A rule that allows every model refuses none. The rules of other
devices can't be tried from here. On the Mac, the owner's socket shows what the running proxy says about them.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from proxy.manage.verify.asking.session import Left, Question, Unmet, expect, seen
from proxy.manage.verify.questions.connection import BEHIND
from proxy.manage.verify.questions.models import listed
from proxy.manage.verify.questions.openai import HELLO, NOBODY
from proxy.manage.verify.questions.refused import FOR_OTHERS, by_rule, refused
from proxy.manage.verify.questions.table import PROXY, forwarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.manage.verify.asking.session import Promised, Row, Ruled, Session

_NUMBER = re.compile(r"those that rule (\d+) of `access`")

_NAMING_PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/show")


def rule_questions(promised: Promised) -> tuple[Question, ...]:
    """Return a question for each access rule."""
    return tuple(Question(PROXY, f"access rule {rule.number}", kept(rule)) for rule in promised.rules)


def kept(rule: Ruled) -> Callable[[Session], str]:
    """Return the question whether this device may do what a rule allows, and nothing else, if that rule counts."""

    def ask(session: Session) -> str:
        if rule.behind:
            those = ", ".join(f"rule {number}" for number in rule.behind)
            raise Left(f"never counts: {those} comes first and names all of its askers")
        lacking = session.lacking(BEHIND)
        if lacking is not None and not session.ruled_out:
            raise Left(lacking)
        why = lacking or _untried(session, rule)
        if why is not None:
            return _judged(session, rule, why)
        shown = _shown(session, rule)
        barred = _barred(session, rule)
        opened, closed = _rows(session, rule)
        parts = (
            f"counts for this device, which sees {len(shown)} model{'' if len(shown) == 1 else 's'}",
            f"may use {shown[0]}" if shown else "",
            f"is refused {barred} (403)" if barred else "may use every model",
            f"may ask {', '.join(opened)}" if opened else "",
            f"is refused {', '.join(closed)}" if closed else "",
        )
        return ", ".join(filter(None, parts))

    return ask


def _untried(session: Session, rule: Ruled) -> str | None:
    """Return why a rule can't be tried from this device; None if it is the one that counts, as far as can be seen."""
    answer = session.asker.ask("POST", "/api/show", {"model": NOBODY})
    if by_rule(session, answer):
        found = _NUMBER.search(answer.message)
        numbers = [int(found.group(1))] if found else []
    else:
        numbers = [each.number for each in session.promised.rules if not each.behind and allows(each, NOBODY)]
    if rule.number not in numbers:
        return "counts for other devices, so only the script of `verify --client-script` on one of them can try it"
    if len(numbers) > 1:
        those = ", ".join(map(str, numbers))
        return f"rules {those} allow every model, so this device can't see which of them counts for it"
    return None


def _judged(session: Session, rule: Ruled, why: str) -> str:
    """Return what the running proxy says about a rule that can't be tried from here; Left if it can't be asked."""
    if session.judge is None or "Ollama" in session.known_down:
        raise Left(why)
    names = _of_ollama(session)
    found = next((each for each in session.judge(names) if each["number"] == rule.number), None)
    there = f"{session.asker.program} restart proxy"
    if found is None:
        raise Unmet("the running proxy doesn't have this rule", there)
    expected = [name for name in names if allows(rule, name)]
    wrong = sorted({*found["allows"]} ^ {*expected})
    expect(not wrong, f"the running proxy and the settings disagree about {', '.join(wrong[:3])}", there)
    opened = ", ".join(found["also"])
    expect(opened == ", ".join(_names(rule.also)), f"the running proxy opens {opened or 'nothing'} by it", there)
    shown = ", ".join(expected[:3]) + (", ..." if len(expected) > 3 else "")
    parts = (
        f"allows {len(expected)} of {len(names)} models" + (f" ({shown})" if shown else ""),
        f"opens {opened}" if opened else "",
        f"at most {found['max_active']} at once" if found["max_active"] else "",
    )
    return f"judged by the running proxy, and not tried: {', '.join(filter(None, parts))}; {why}"


def allows(rule: Ruled, name: str) -> bool:
    """Return whether a rule allows a model, by its name as Ollama lists it."""
    parts = name.lower().split("/")
    whole = "/".join([*("registry.ollama.ai", "library")[: max(0, 3 - len(parts))], *parts])
    whole = whole if ":" in parts[-1] else f"{whole}:latest"
    return any(fnmatchcase(whole, pattern) for pattern in rule.models)


def _shown(session: Session, rule: Ruled) -> list[str]:
    """Return the models that this device sees: in every list only those of its rule, and here all of those."""
    openai = session.asker.ask("GET", "/v1/models").json
    native = [model.name for model in listed(session.asker.ask("GET", "/api/tags").json)]
    names = [str(seen(entry, "id")) for entry in seen(openai, "data") or ()]
    for target, those in (("/v1/models", names), ("/api/tags", native)):
        surplus = [name for name in those if not allows(rule, name)]
        expect(not surplus, f"`GET {target}` lists {', '.join(surplus[:3])}, which rule {rule.number} doesn't allow")
        missing = [name for name in _of_ollama(session) if allows(rule, name) and name not in those]
        expect(not missing, f"`GET {target}` leaves out {', '.join(missing[:3])}, which rule {rule.number} allows")
    if native:
        answer = session.asker.ask("POST", "/api/show", {"model": native[0]})
        expect(answer.status == 200, f"{native[0]} is allowed, and can't be used: {answer.shown}")
    return native


def _of_ollama(session: Session) -> list[str]:
    """Return the models of this machine by Ollama itself, which a client can't ask."""
    if session.direct is None:
        return []
    return [model.name for model in listed(session.direct.ask("GET", "/api/tags").json) if not model.remote]


def _barred(session: Session, rule: Ruled) -> str | None:
    """Return a model that this device is refused on every path; None if its rule allows all."""
    name = next((each for each in (*_of_ollama(session), NOBODY) if not allows(rule, each)), None)
    if name is None:
        return None
    asks: list[tuple[str, str, Any]] = [
        ("POST", path, {"model": name, "max_tokens": 1, "messages": HELLO, "input": "Hello."}) for path in _NAMING_PATHS
    ]
    if "/" not in name:
        asks.append(("GET", f"/v1/models/{name}", None))
    for method, target, content in asks:
        answer = session.asker.ask(method, target, content)
        expect(by_rule(session, answer), f"{name} is not allowed, and isn't refused: {answer.shown}")
    return name


def _rows(session: Session, rule: Ruled) -> tuple[list[str], list[str]]:
    """Return the rows that this device may ask because of its rule, and those that are open for others only."""
    for row in rule.also:
        forwarded(row)(session)
    served = {*session.promised.served, *rule.also}
    others = [row for each in session.promised.rules for row in each.also if row not in served]
    for method, path in dict.fromkeys(others):
        answer = session.asker.ask(method, path, {} if method == "POST" else None)
        status = 405 if any(path == each for _, each in served) else 403
        is_refused = (
            answer.status == status and answer.echoed if method == "HEAD" else refused(answer, status, FOR_OTHERS)
        )
        if not is_refused:
            raise Unmet(f"{answer.shown}, and rule {rule.number} doesn't open it")
    return _names(rule.also), _names(dict.fromkeys(others))


def _names(rows: Iterable[Row]) -> list[str]:
    return [" ".join(row) for row in rows]
