"""The application firewall of macOS: what its tool reports, and what that means for the proxy.

A Mac reaches its own Tailscale address through the tunnel, so this firewall judges what `install` and `verify` ask
there as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from proxy.manage.machine import environment
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.manage.machine.interpreter import Interpreter
    from proxy.manage.machine.machine import Machine

FOLDER = "/usr/libexec/ApplicationFirewall"
TOOL = f"{FOLDER}/socketfilterfw"
ASK_TIMEOUT = 10.0  # seconds for one answer of the tool


class Verdict(StrEnum):
    """What the firewall has noted of a program."""

    PERMITTED = "permitted"
    BLOCKED = "blocked"
    UNLISTED = "unlisted"
    UNKNOWN = "listed in words that are not known"


@dataclass(frozen=True, slots=True)
class Firewall:
    """The facts: whether it is on, lets nothing in at all, and what it has noted of the proxy's Python."""

    on: bool
    blocks_all: bool = False
    python: Verdict = Verdict.UNLISTED
    stealth: bool = False  # a closed port is silent too
    trusts_signed: bool = False  # downloaded programs with a known developer's signature are let in unasked


def look(machine: Machine, python: Interpreter | None) -> Firewall | None:
    """Return what the firewall's tool reports; None when that can't be read."""
    tool = machine.find("socketfilterfw", FOLDER)
    if tool is None:
        return None

    def ask(*words: str | Path) -> str:
        return machine.run(tool, *words, timeout=ASK_TIMEOUT).out.lower()

    told = ask("--getglobalstate")
    state = re.search(r"state = (\d)", told)
    if state is None:
        return None
    blocks = re.search(r"enabled|set to on|set to block all", ask("--getblockall")) is not None
    return Firewall(
        on=state[1] != "0",
        blocks_all=state[1] == "2" or blocks,
        python=_verdict(ask, python.program) if python is not None and python.path is not None else Verdict.UNLISTED,
        stealth=re.search(r"stealth mode (is on|enabled)", f"{told}\n{ask('--getstealthmode')}") is not None,
        trusts_signed=re.search(r"downloaded signed software enabled", ask("--getallowsigned")) is not None,
    )


def _verdict(ask: Callable[..., str], program: Path) -> Verdict:
    return read_verdict(ask("--getappblocked", program), program)


def read_verdict(answer: str, program: Path) -> Verdict:
    """Return what an answer of `--getappblocked` says of a program.

    macOS 15 and 26 put the path into the sentence, so a home or user named `block` must not decide.
    """
    told = answer.lower().replace(str(program).lower(), "")
    if "not part of the firewall" in told:
        return Verdict.UNLISTED
    words = re.findall(r"\bis (permitted|allowed|blocked)\b", told)
    if not words:
        return Verdict.UNKNOWN
    return Verdict.BLOCKED if words[-1] == "blocked" else Verdict.PERMITTED


def line(program: Path | str) -> str:
    """Return the command that lets a program be reached."""
    return f"sudo {TOOL} --add '{program}' --unblockapp '{program}'"


def judge(wall: Firewall | None, python: Interpreter | None, bring: str = "") -> Finding:
    """Return whether the firewall lets a Python be reached; `bring` is the command that brings one, if it isn't here.

    A Python that isn't let in is a failure: install would wait for an answer that the firewall keeps back.
    """
    if wall is None:
        return Finding("firewall", Outcome.SKIP, "its state can't be read", f"{TOOL} --getglobalstate")
    if wall.blocks_all:
        detail = "the firewall blocks all incoming connections: nobody would reach the proxy"
        return Finding("firewall", Outcome.FAIL, detail, f"sudo {TOOL} --setblockall off")
    if not wall.on:
        return Finding("firewall", Outcome.PASS, "it is off")
    if wall.python is Verdict.PERMITTED:
        return Finding("firewall", Outcome.PASS, "it is on, and lets this Python be reached")
    if python is None or python.path is None:
        detail = "the firewall is on, and can only let in a Python that is there: bring it first"
        return Finding("firewall", Outcome.FAIL, detail, f"{bring}; then run the install again" if bring else "")
    if wall.python is Verdict.UNLISTED and wall.trusts_signed and python.keeper == "python.org":
        detail = "it is on, and lets signed programs be reached, as python.org's Python is one"
        return Finding("firewall", Outcome.PASS, detail)
    detail = f"the firewall is on, and {python.program} is {wall.python}: connections would be reset, or get no answer"
    outcome = Outcome.WARN if wall.python is Verdict.UNKNOWN else Outcome.FAIL
    return Finding("firewall", outcome, detail, line(python.program))


def of_program(machine: Machine, program: str | Path) -> Finding:
    """Return whether the firewall lets the Python be reached that is, or is behind, a program that runs the proxy."""
    python = environment.python_of(machine, program)
    return judge(look(machine, python), python)


def symptom(error: BaseException | None) -> str | None:
    """Return how a connection failed if a firewall may be why: it was reset, or nothing came; else None."""
    while error is not None:
        if isinstance(error, TimeoutError):
            return "got no answer"
        if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
            return "was reset"
        error = error.__cause__
    return None


def suspect(wall: Firewall | None, python: Interpreter | None, error: BaseException) -> Finding | None:
    """Return the firewall as the cause of a failed connection to the proxy; None where it can't be the cause.

    To be asked only while Ollama answers on loopback, and of an address that is not on loopback.
    """
    how = symptom(error)
    if how is None or wall is None or not wall.on:
        return None
    judged = judge(wall, python)
    if judged.outcome in {Outcome.FAIL, Outcome.WARN}:
        return Finding("firewall", Outcome.FAIL, f"the connection {how}: {judged.detail}", judged.hint)
    detail = f"the connection {how}, as the firewall does it, which is on"
    if wall.stealth and how == "got no answer":
        detail += "; in its stealth mode a port at which nobody listens gives no answer either"
    return Finding("firewall", Outcome.FAIL, detail, line(python.program) if python and python.path else "")
