"""The result of a check: one value that `--check`, preflight, `status` and `verify` all print."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of a check."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"  # it would serve, but not quite as expected
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; `hint` is a command or setting that helps, or nothing."""

    name: str
    outcome: Outcome
    detail: str
    hint: str = ""
