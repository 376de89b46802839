"""Reads fields of Tailscale's answers. A field that is missing, null or of another kind counts as not reported."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

TEXT_LIMIT = 256
"""Characters of a text that are kept; a name in DNS has at most 253."""


def table(value: object) -> dict[str, Any]:
    """Return a table; an empty one if `value` is none."""
    return value if isinstance(value, dict) else {}


def text(value: object) -> str | None:
    """Return a text that isn't empty, cut; orjson has checked that UTF-8 can hold it."""
    return value[:TEXT_LIMIT] if isinstance(value, str) and value else None


def texts(value: object) -> list[str]:
    """Return the texts in a list that aren't empty."""
    return [each for each in value if isinstance(each, str) and each] if isinstance(value, list) else []


def moment(value: object) -> datetime | None:
    """Return a time of RFC 3339; Go writes the year 1 for none."""
    written = text(value)
    try:
        found = datetime.fromisoformat(written) if written else None
    except ValueError:
        return None
    if found is None or found.year == 1:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def name(value: object) -> str | None:
    """Return a name without the final dot of a whole one."""
    found = text(value)
    return found.removesuffix(".") or None if found else None
