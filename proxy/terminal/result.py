"""What a command returns, and the exit codes that all commands share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from proxy.terminal.finding import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.terminal.finding import Finding


class Exit(IntEnum):
    """The exit codes of all commands."""

    WELL = 0
    FAILED = 1  # a check or a step failed
    WRONG = 2  # wrong usage or settings
    MISSING = 3  # macOS, or another thing that the command needs

    @classmethod
    def of(cls, findings: Iterable[Finding], failed: Exit | None = None) -> Exit:
        """Return `failed` (default: FAILED) if one of `findings` failed, else WELL."""
        wrong = any(finding.outcome is Outcome.FAIL for finding in findings)
        return (cls.FAILED if failed is None else failed) if wrong else cls.WELL


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended. `data` is what `--json` prints: plain values and dataclasses, None for nothing."""

    code: Exit = Exit.WELL
    data: object = None
    errors: tuple[str, ...] = ()
    hint: str = ""


class CommandError(Exception):
    """A command can't go on, and `result` is how it ends. `hint` is a command that helps, or nothing."""

    def __init__(self, error: str, hint: str = "", code: Exit = Exit.FAILED, *more: str) -> None:
        """`more` are further errors."""
        super().__init__(error)
        self.hint, self.result = hint, Result(code, None, (error, *more), hint)
