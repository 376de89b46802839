"""The application firewall of macOS, as its tool reports it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    UNKNOWN = "listed in unknown words"


@dataclass(frozen=True, slots=True)
class Firewall:
    """The facts: whether it is on, blocks everything, and what it has noted of the proxy's Python."""

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

    printed = ask("--getglobalstate")
    state = re.search(r"state = (\d)", printed)
    if state is None:
        return None
    program = python.program if python is not None and python.path is not None else None
    blocks = re.search(r"enabled|set to on|set to block all", ask("--getblockall")) is not None
    return Firewall(
        on=state[1] != "0",
        blocks_all=state[1] == "2" or blocks,
        python=read_verdict(ask("--getappblocked", program), program) if program else Verdict.UNLISTED,
        stealth=re.search(r"stealth mode (is on|enabled)", f"{printed}\n{ask('--getstealthmode')}") is not None,
        trusts_signed=re.search(r"downloaded signed software enabled", ask("--getallowsigned")) is not None,
    )


def read_verdict(answer: str, program: Path) -> Verdict:
    """Return what an answer of `--getappblocked` says of a program.

    macOS 15 and 26 put the path into the sentence, so a home or user named `block` must not decide.
    """
    printed = answer.lower().replace(str(program).lower(), "")
    if "not part of the firewall" in printed:
        return Verdict.UNLISTED
    words = re.findall(r"\bis (permitted|allowed|blocked)\b", printed)
    if not words:
        return Verdict.UNKNOWN
    return Verdict.BLOCKED if words[-1] == "blocked" else Verdict.PERMITTED
