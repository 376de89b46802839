"""Nothing leaves the Mac: models that run elsewhere, and web searches, are refused.

No request has anything in it that would be worth a secret, and none is sent if the proxy doesn't refuse a pull.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.manage.verify.asking.session import Left, Question, expect, seen
from proxy.manage.verify.questions.connection import BEHIND, PROXIED
from proxy.manage.verify.questions.openai import HELLO, NOBODY
from proxy.manage.verify.questions.refused import by_rule, expect_refused, refused
from proxy.manage.verify.questions.table import PROXY

if TYPE_CHECKING:
    from proxy.manage.verify.asking.session import Session

LOCAL_ONLY = "`local_only`"
"""What each refusal names, and Ollama never says."""

_PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/show")
_CLOUD_NAMES = (f"{NOBODY}:cloud", f"{NOBODY}:1b-Cloud", f" {NOBODY}:CLOUD")
_SEARCHES = (("/v1/responses", "web_search"), ("/v1/messages", "web_search_20250305"))


def cloud_models(session: Session) -> str:
    """A model that runs elsewhere is refused on each path: by a cloud name in any spelling, or as a stub of one."""
    _may_ask(session)
    asks: list[tuple[str, str, Any]] = [
        ("POST", path, {"model": name, "max_tokens": 1, "messages": HELLO, "input": "Hello."})
        for path in _PATHS
        for name in (*_CLOUD_NAMES, *_stubs(session))
    ]
    asks += [("GET", f"/v1/models/{NOBODY}{colon}cloud", None) for colon in (":", "%3A", "%3a")]
    for method, target, content in asks:
        answer = session.asker.ask(method, target, content)
        if not (refused(answer, 403, LOCAL_ONLY) or by_rule(session, answer)):
            session.guarded = False
            expect_refused(answer, 403, LOCAL_ONLY)
    stubs = ", ".join(_stubs(session))
    return f"{len(asks)} requests are refused (403), for {_CLOUD_NAMES[0]}{stubs and f' and {stubs}'}"


def _stubs(session: Session) -> list[str]:
    """Return the models that Ollama has under their own names, and that run elsewhere. A client doesn't see them."""
    if session.direct is None or session.release is None:
        return []
    entries = seen(session.direct.ask("GET", "/api/tags").json, "models") or ()
    return [str(entry["name"]) for entry in entries if seen(entry, "remote_host")][:5]


def web_search(session: Session) -> str:
    """A request that offers a web search is refused, unless Ollama's cloud is off."""
    _may_ask(session)
    passed = False
    for path, kind in _SEARCHES:
        tools = [{"type": kind, "name": "web_search"}]
        content = {"model": NOBODY, "max_tokens": 1, "messages": HELLO, "input": "Hello.", "tools": tools}
        answer = session.asker.ask("POST", path, content)
        if by_rule(session, answer):
            raise Left("access rules refuse a model that doesn't exist")
        if not refused(answer, 403, LOCAL_ONLY):
            passed = True
            expect(answer.status == 404 and answer.echoed and _is_off(session), f"it isn't refused: {answer.shown}")
    if passed:
        return "passes, which is safe while Ollama's cloud is off"
    return "is refused (403), because Ollama's cloud isn't off"


def _is_off(session: Session) -> bool:
    """Return whether Ollama says that its cloud is off. A client can't ask, and has the proxy's word for it."""
    if session.direct is None:
        return True
    return seen(session.direct.ask("GET", "/api/status").json, "cloud", "disabled") is True


def _may_ask(session: Session) -> None:
    """Raise Left if the owner lets requests leave the Mac, or if the proxy lets other things through."""
    if not session.promised.local_only:
        raise Left("the owner lets requests leave the Mac: `local_only = false`")
    if not session.guarded:
        raise Left("not sent: the proxy that should refuse it lets other things through")


LEAVING_QUESTIONS = (
    Question(PROXY, "cloud models", cloud_models, PROXIED),
    Question(PROXY, "web search", web_search, BEHIND),
)
