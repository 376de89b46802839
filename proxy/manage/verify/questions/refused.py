"""How to distinguish a refusal of the proxy from an error of Ollama's, or of something else on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.manage.verify.asking.session import Unmet

if TYPE_CHECKING:
    from proxy.manage.verify.asking.asking import Answer
    from proxy.manage.verify.asking.session import Session

ALLOWLIST = "is not on this proxy's allowlist"
PLAINLY = "paths are compared as sent"
OTHER_NAME = "`allowed_hosts`"
RULED_OUT = "No rule of `access`"
FOR_OTHERS = "is open for other devices, but not for this one"
_NOT_ALLOWED = "is not among those that"
"""What the proxy says, and Ollama never does."""


def refused(answer: Answer, status: int, words: str) -> bool:
    """Return whether an answer is the proxy's refusal: its status, its words, and our id."""
    return answer.status == status and words in answer.message and answer.echoed


def expect_refused(answer: Answer, status: int, words: str, hint: str = "") -> None:
    """Raise Unmet unless an answer is the proxy's refusal."""
    if not refused(answer, status, words):
        raise Unmet(f"{answer.shown}, and not refused with {status} by the proxy", hint)


def by_rule(session: Session, answer: Answer) -> bool:
    """Return whether an access rule refuses the model of a request, as it may."""
    return session.promised.ruled and refused(answer, 403, _NOT_ALLOWED)
