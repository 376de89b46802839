"""The access rules in the settings file: what is wrong with each, and how they are written.

[[access]]
who = ["alice@example.com", "self"]
models = ["qwen3:*"]
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer

from proxy.policy.rule_keys import RuleSpec, read_also, read_max_active, read_models, read_who
from proxy.settings import config_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_KEYS: dict[str, Callable[[object], Any]] = {
    "who": read_who,
    "models": read_models,
    "also": read_also,
    "max_active": read_max_active,
}
_NEEDED = ("who", "models")
_TABLES = "tables, each below a line [[access]]"
_CAPABILITY = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+/[A-Za-z0-9/._-]{1,200}").fullmatch


class Fault(NamedTuple):
    """One mistake in the rules."""

    number: int  # of the rule, from 1; 0: in none of them
    key: str  # "" if it isn't in one of the keys
    value: object
    message: str


def faults(given: object, options: Collection[str] = ()) -> Iterator[Fault]:
    """Yield every mistake in the value of `access`; `options` are the names that don't belong into a rule."""
    tables = _tables(given)
    if isinstance(given, dict):
        yield Fault(0, "", given, "is one table: write [[access]], with two brackets, above each rule")
        return
    if tables is None:
        yield Fault(0, "", given, f"is not a list of {_TABLES}")
        return
    for number, table in enumerate(tables, 1):
        for key in _NEEDED:
            if key not in table:
                yield Fault(number, "", table, f"has no `{key}`")
        for key, value in table.items():
            message = _fault(key, value, options)
            if message is not None:
                yield Fault(number, key, value, message)


def _tables(given: object) -> list[dict[str, Any]] | None:
    """Return the rules as tables of keys; None if the value has another form."""
    if not isinstance(given, list | tuple) or not all(isinstance(each, dict | RuleSpec) for each in given):
        return None
    return [
        {k: v for k, v in each._asdict().items() if v is not None} if isinstance(each, RuleSpec) else each
        for each in given
    ]


def _fault(key: str, value: object, options: Collection[str]) -> str | None:
    read = _KEYS.get(key)
    if read is not None:
        try:
            read(value)
        except ValueError as error:
            return str(error)
        return None
    if key in options:
        return "is an option, and no key of a rule: write it above all tables"
    return "is no key of a rule" + (config_file.nearest(key, _KEYS) or f"; it has {', '.join(_KEYS)}")


def _rules(given: object) -> tuple[RuleSpec, ...]:
    """Return the rules; raise ValueError with every mistake."""
    found = [f"rule {each.number}, {each.key or 'as a whole'}: {each.message}" for each in faults(given)]
    if found:
        raise ValueError("; ".join(found))
    return tuple(RuleSpec(**{key: _KEYS[key](value) for key, value in table.items()}) for table in _tables(given) or ())


def _written(rules: tuple[RuleSpec, ...]) -> str:
    """Return the rules as an inline array of TOML."""
    tables = (
        ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in rule._asdict().items() if value)
        for rule in rules
    )
    return f"[{', '.join(f'{{ {each} }}' for each in tables)}]" if rules else ""


AccessRules = Annotated[
    tuple[RuleSpec, ...], BeforeValidator(_rules), PlainSerializer(_written, when_used="json"), Field(title=_TABLES)
]


def _capability(given: object) -> str | None:
    if isinstance(given, str):
        text = given.strip()
        if text == "off":
            return None
        if _CAPABILITY(text):
            return text
    raise ValueError("is not the name of a capability, as in example.com/cap/ollama, or off")


Capability = Annotated[
    str | None,
    BeforeValidator(_capability),
    PlainSerializer(lambda name: name or "off", when_used="json"),
    Field(title="a name such as example.com/cap/ollama, or off"),
]
