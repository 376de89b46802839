"""The keys of an access rule, as the settings or a grant of Tailscale's policy have them. Pure.

Each `read_…` takes a value of any kind. Its ValueError is the end of a sentence that begins with the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from proxy.policy.askers import FORMS, Entry
from proxy.policy.gate import open_rows
from proxy.reading.names import ModelNameError, ModelPattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MOST_ACTIVE = 1024
"""The largest `max_active`."""


class RuleSpec(NamedTuple):
    """A rule as the owner wrote it, free of mistakes."""

    who: tuple[str, ...]
    models: tuple[str, ...]
    also: tuple[str, ...] = ()  # names of opt-in rows
    max_active: int | None = None


def read_who(given: object) -> tuple[str, ...]:
    """Return the entries of `who`."""
    return _read(given, Entry.read) or _nothing(f"names nobody: write {FORMS}")


def read_models(given: object) -> tuple[str, ...]:
    """Return the patterns of `models`."""
    return _read(given, _pattern) or _nothing('names no model: write ["*"] to allow every model')


def read_also(given: object) -> tuple[str, ...]:
    """Return the names of the opt-in rows that `also` opens."""
    return tuple(row.name for row in open_rows(_texts(given), "also") if row.opt_in)


def read_max_active(given: object) -> int:
    """Return the number in `max_active`."""
    if type(given) is not int or not 1 <= given <= MOST_ACTIVE:
        raise ValueError(f"is not a whole number from 1 to {MOST_ACTIVE}")
    return given


def read_grants(values: Iterable[object], *, may_open_rows: bool) -> tuple[RuleSpec | None, tuple[str, ...]]:
    """Return the rule that the values of one capability add up to, and what is wrong with those that count as nothing.

    The limits of several values don't add up: the largest holds. There is no rule without a model.
    """
    models: dict[str, None] = {}
    also: dict[str, None] = {}
    limits, faults = [], []
    for value in values:
        try:
            found = _grant(value)
        except ValueError as error:
            faults.append(str(error))
            continue
        models.update(dict.fromkeys(found.models))
        also.update(dict.fromkeys(found.also))
        if found.max_active is not None:
            limits.append(found.max_active)
    if also and not may_open_rows:
        faults.append(f"`also` opens {', '.join(also)} only with `capability_may_open_rows = true`")
        also.clear()
    if not models:
        return None, tuple(faults)
    return RuleSpec((), tuple(models), tuple(also), max(limits, default=None)), tuple(faults)


def _grant(value: object) -> RuleSpec:
    """Return one value of a capability. A value with a mistake counts as nothing, because the mistake may be a limit.

    Other keys are left alone: the owner may use them for something else.
    """
    if not isinstance(value, dict):
        raise ValueError("the value is not an object with `models`")
    given = dict(value)
    found: dict[str, object] = {"models": (), "also": (), "max_active": None}
    for key, read in (("models", read_models), ("also", read_also), ("max_active", read_max_active)):
        if key in given:
            try:
                found[key] = read(given[key])
            except ValueError as error:
                raise ValueError(f"`{key}` {error}") from None
    return RuleSpec((), **found)  # type: ignore[arg-type]


def _texts(given: object) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise ValueError("is not a list of texts")
    return tuple(dict.fromkeys(each.strip() for each in given))


def _read(given: object, read: Callable[[str], object]) -> tuple[str, ...]:
    """Return the texts of a list, each of which `read` understands; a ValueError names every wrong one."""
    texts, faults = _texts(given), []
    for text in texts:
        try:
            read(text)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))
    return texts


def _pattern(text: str) -> ModelPattern:
    try:
        return ModelPattern(text)
    except ModelNameError:
        raise ValueError(f"`{text}` is not a model's name, in which `*` may stand for any characters") from None


def _nothing(message: str) -> tuple[str, ...]:
    raise ValueError(message)
