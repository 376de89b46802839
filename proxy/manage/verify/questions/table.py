"""The table: listed requests reach Ollama, and nothing else does, however it is asked for.

Harmless even to an Ollama without a proxy: names are empty or don't exist, and requests that could do harm even so are
sent only after the proxy has refused a pull.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.manage.verify.asking.session import Left, Question, Unmet, expect
from proxy.manage.verify.questions.connection import BEHIND, PROXIED, UNCHANGED
from proxy.manage.verify.questions.openai import NOBODY
from proxy.manage.verify.questions.refused import ALLOWLIST, PLAINLY, by_rule, expect_refused, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.manage.verify.asking.asking import Answer
    from proxy.manage.verify.asking.session import Promised, Row, Session

PROXY = "Proxy"

_NOTHING: dict[str, Any] = {}
_DIGEST = "sha256:" + "0" * 64

_HARMLESS: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/api/pull", {"model": ""}),
    ("POST", "/api/push", {"model": ""}),
    ("POST", "/api/create", {"model": ""}),
    ("POST", "/api/copy", {"source": "", "destination": ""}),
    ("HEAD", f"/api/blobs/{_DIGEST}", None),
    ("GET", "/api/experimental/model-recommendations", None),
    ("GET", "/debug/pprof/", None),
)
"""Requests that no setting opens, and that do no harm as they are sent here."""

_HARMFUL: tuple[tuple[str, str, Any], ...] = (
    ("DELETE", "/api/delete", {"model": ""}),
    ("POST", f"/api/blobs/{_DIGEST}", b""),
    ("POST", "/api/experimental/web_search", _NOTHING),
    ("POST", "/api/experimental/web_fetch", _NOTHING),
    ("POST", "/api/me", None),
    ("DELETE", "/api/user/keys/verify", None),
    ("POST", "/api/signout", None),
)
"""What might: sent only where the proxy refuses the others."""

_SPELLINGS = (
    "/%61pi/delete",
    "/api%2Fdelete",
    "/api%2fdelete",
    "/api/%64elete",
    "/api%252Fdelete",
    "//api/delete",
    "/api//delete",
    "/v1/../api/delete",
    "/v1/%2e%2e/api/delete",
    "/v1/models/..%2F..%2Fapi%2Fdelete",
    "/./api/delete",
    "/api/delete;x=1",
    "/api/tags;/../delete",
    "/api\\delete",
    "/api/delete%00",
    "/api/delete/",
    "/API/delete",
    "/Api/Delete",
    "/v1/api/delete",
    "/api/tags/../delete?x=/api/tags",
)
"""What means `DELETE /api/delete` to someone: to Ollama, which decodes a path first, or to what cleans it up."""


# --- what is let through ----------------------------------------------------------------------------------------------


def forwarded(row: Row) -> Callable[[Session], str]:
    """Return the question whether a row of the table reaches Ollama: an error of Ollama's own will do."""

    def ask(session: Session) -> str:
        method, path = row
        content = _NOTHING if method == "POST" else None
        answer = session.asker.ask(method, path.replace("*", NOBODY), content)
        if by_rule(session, answer):
            return "is open, and an access rule refuses this model"
        blocked = any(words in answer.message for words in (ALLOWLIST, PLAINLY))
        blocked = blocked or (method == "HEAD" and answer.status == 405)  # which has no words
        if blocked or answer.status in (403, 502, 504):
            raise Unmet(f"it does not reach Ollama: {answer.shown}", _mismatch(session, row, opened=True))
        return f"reaches Ollama, which answers {answer.status}"

    return ask


def _mismatch(session: Session, row: Row, *, opened: bool) -> str:
    """Return what to do if the table here isn't the proxy's."""
    name = " ".join(row)
    if session.asker.away:
        again = "if the Mac's settings have changed since, print the script there again (`verify --client-script`)"
        return again if opened else f"{again}, or name the routes that they open (--allow '{name}')"
    return f"{session.asker.program} --check"


def closed(session: Session) -> str:
    """What `allow` could open, and doesn't, is blocked before Ollama."""
    rows = session.promised.closed
    if not rows:
        raise Left("`allow` opens every opt-in route")
    for method, path in rows:
        answer = session.asker.ask(method, path, _NOTHING if method == "POST" else None)
        if not _blocked(answer, session.promised):
            raise Unmet(f"{answer.shown}, and is not open", _mismatch(session, (method, path), opened=False))
    return f"all {len(rows)} are blocked: {', '.join(' '.join(row) for row in rows[:4])}{' ...' if rows[4:] else ''}"


def _blocked(answer: Answer, promised: Promised) -> bool:
    """Return whether an answer is the proxy's refusal of a row that isn't served; one to HEAD has no words."""
    statuses = [405] if any(path == answer.target for _, path in promised.served) else [403]
    if any(path == answer.target for _, path in promised.for_some):
        statuses.append(405)
    if answer.method == "HEAD":
        return answer.status in statuses and answer.echoed
    return any(refused(answer, status, ALLOWLIST) for status in statuses)


# --- what is not ------------------------------------------------------------------------------------------------------


def blocked(method: str, path: str, content: Any, *, harms: bool) -> Callable[[Session], str]:
    """Return the question whether a route that no setting opens is blocked before Ollama."""

    def ask(session: Session) -> str:
        if harms and not session.guarded:
            raise Left(f"not sent: the rule that should block `{method} {path}` lets other things through")
        answer = session.asker.ask(method, path, content)
        if _blocked(answer, session.promised):
            return f"blocked ({answer.status})"
        session.guarded = False
        raise Unmet(
            f"it is not blocked: {answer.shown}",
            f"{session.asker.there}{session.asker.program} restart proxy; then verify again",
        )

    return ask


def methods(session: Session) -> str:
    """A listed path is served with its own methods only, and Allow names them."""
    paths: dict[str, list[str]] = {}
    for method, path in session.promised.served:
        paths.setdefault(path, []).append(method)
    for_some = {path for _, path in session.promised.for_some}
    for path, served in paths.items():
        if path in for_some:  # this device may have more methods
            continue
        target = path.replace("*", NOBODY)
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            if method in served:
                continue
            answer = session.asker.ask(method, target)
            expect_refused(answer, 405, ALLOWLIST)
            allow = answer.fields.get("allow")
            expect(allow == ", ".join(sorted(served)), f"`{method} {target}`: Allow is {allow}")
    return f"any other on {len(paths.keys() - for_some)} paths is refused with 405 and Allow, OPTIONS too"


def spellings(session: Session) -> str:
    """No other spelling of a path gets round the table."""
    if not session.guarded:
        raise Left("not sent: the rule that should block `DELETE /api/delete` lets other things through")
    for target in _SPELLINGS:
        answer = session.asker.ask("DELETE", target, {"model": ""})
        if not (answer.status == 403 and answer.echoed and (ALLOWLIST in answer.message or PLAINLY in answer.message)):
            session.guarded = False
            raise Unmet(
                f"{answer.shown}, and not refused by the proxy",
                f"{session.asker.there}{session.asker.program} restart proxy",
            )
    return f"{len(_SPELLINGS)} spellings of `DELETE /api/delete` are refused"


def forms(session: Session) -> str:
    """A target that isn't a path is refused: the proxy fetches nothing from elsewhere, and opens no tunnel.

    Not sent through `tailscale serve`, where CONNECT and `*` kept older releases of Tailscale busy forever.
    """
    for method, target in (("GET", "http://localhost/api/version"), ("CONNECT", "localhost:11434"), ("OPTIONS", "*")):
        answer = session.asker.ask(method, target)
        expect_refused(answer, 400, "does not begin with `/`")
    answer = session.asker.ask("TRACE", "/api/version")
    expect_refused(answer, 405, ALLOWLIST)
    return "an absolute target, CONNECT, `OPTIONS *` and TRACE are refused"


def too_large(session: Session) -> str:
    """Content that is announced as larger than `max_body` is refused before it is sent."""
    limit = session.promised.max_body
    if not limit:
        raise Left("`max_body` is not known here")
    answer = session.asker.ask("POST", "/v1/chat/completions", None, {"Content-Length": str(limit + 1)})
    expect(answer.status == 413 and "`max_body`" in answer.message, answer.shown)
    return f"{limit + 1} bytes are refused with 413"


def _short(row: tuple[str, str, Any]) -> str:
    """Return the name of a route, its digest left out."""
    return f"{row[0]} {row[1].replace(_DIGEST, '*')}"


def served_questions(promised: Promised) -> tuple[Question, ...]:
    """Return the questions about what passes."""
    return tuple(Question(PROXY, " ".join(row), forwarded(row), BEHIND) for row in promised.served)


BLOCKED_QUESTIONS = (
    *(Question(PROXY, _short(row), blocked(*row, harms=False), PROXIED) for row in _HARMLESS),
    *(Question(PROXY, _short(row), blocked(*row, harms=True), PROXIED) for row in _HARMFUL),
    Question(PROXY, "rows that are closed", closed, PROXIED),
)
DETOUR_QUESTIONS = (
    Question(PROXY, "methods", methods, PROXIED),
    Question(PROXY, "spellings of a path", spellings, PROXIED),
    Question(PROXY, "forms of a target", forms, UNCHANGED),
    Question(PROXY, "content that is too large", too_large, UNCHANGED),
)
