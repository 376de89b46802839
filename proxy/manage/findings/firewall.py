"""Check whether macOS's application firewall blocks the proxy's Python.

A Mac reaches its own Tailscale address through the tunnel, so the firewall applies to the requests of
`install` and `verify` too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.manage.facts.firewall import TOOL, Verdict
from proxy.manage.machine import interpreter
from proxy.manage.machine.machine import spelled
from proxy.settings.addresses import TAILSCALE, parse
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proxy.manage.facts.facts import Facts
    from proxy.manage.facts.firewall import Firewall
    from proxy.manage.machine.interpreter import Interpreter


def check(facts: Facts) -> Iterator[Finding]:
    """Report whether the firewall allows the proxy's Python: the one that will serve, or serves."""
    machine, bring = facts.machine, ""
    if not machine.is_mac:
        yield Finding(
            "firewall", Outcome.SKIP, f"the application firewall is part of macOS, and this is {machine.system}"
        )
        return
    if facts.is_check and all(each != TAILSCALE and parse(each).is_loopback for each in facts.settings.listen):
        return
    if not facts.is_install and facts.python is None:
        detail = "the proxy isn't installed, so it is unknown which Python the firewall must allow"
        yield Finding("firewall", Outcome.SKIP, detail)
        return
    if facts.is_install and (uv := interpreter.uv_of(machine)):
        bring = spelled(interpreter.bring_command(machine, uv))
    yield judge(facts.firewall, facts.python, bring)


def line(program: Path | str) -> str:
    """Return the command that allows a program."""
    return f"sudo {TOOL} --add '{program}' --unblockapp '{program}'"


def judge(wall: Firewall | None, python: Interpreter | None, bring: str = "") -> Finding:
    """Return whether the firewall allows a Python; `bring` is the command that downloads a missing one.

    A blocked Python is a failure, because install would wait for an answer that the firewall blocks.
    """
    if wall is None:
        return Finding("firewall", Outcome.SKIP, "its state can't be read", f"{TOOL} --getglobalstate")
    if wall.blocks_all:
        detail = "the firewall blocks all incoming connections, so no device can reach the proxy"
        return Finding("firewall", Outcome.FAIL, detail, f"sudo {TOOL} --setblockall off")
    if not wall.on:
        return Finding("firewall", Outcome.PASS, "it is off")
    if wall.python is Verdict.PERMITTED:
        return Finding("firewall", Outcome.PASS, "it is on, and allows this Python")
    if python is None or python.path is None:
        detail = "the firewall is on, and can only allow a Python that is installed: install it first"
        return Finding("firewall", Outcome.FAIL, detail, f"{bring}; then run the install again" if bring else "")
    if wall.python is Verdict.UNLISTED and wall.trusts_signed and python.keeper == "python.org":
        detail = "it is on, and allows signed programs, such as python.org's Python"
        return Finding("firewall", Outcome.PASS, detail)
    detail = f"the firewall is on, and {python.program} is {wall.python}: connections would be reset, or get no answer"
    outcome = Outcome.WARN if wall.python is Verdict.UNKNOWN else Outcome.FAIL
    return Finding("firewall", outcome, detail, line(python.program))


def symptom(error: BaseException | None) -> str | None:
    """Return how a connection failed if a firewall may be why: it was reset, or got no answer; otherwise None."""
    while error is not None:
        if isinstance(error, TimeoutError):
            return "got no answer"
        if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
            return "was reset"
        error = error.__cause__
    return None


def suspect(wall: Firewall | None, python: Interpreter | None, error: BaseException) -> Finding | None:
    """Return the firewall as the cause of a failed connection to the proxy; None if it can't be the cause.

    Use it only while Ollama answers on loopback, and for an address that is not on loopback.
    """
    how = symptom(error)
    if how is None or wall is None or not wall.on:
        return None
    judged = judge(wall, python)
    if judged.outcome in {Outcome.FAIL, Outcome.WARN}:
        return Finding("firewall", Outcome.FAIL, f"the connection {how}: {judged.detail}", judged.hint)
    detail = f"the connection {how}, as the firewall does, which is on"
    if wall.stealth and how == "got no answer":
        detail += "; in stealth mode, a port where nothing listens gives no answer either"
    return Finding("firewall", Outcome.FAIL, detail, line(python.program) if python and python.path else "")
