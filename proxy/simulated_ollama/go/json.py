"""JSON as Go's encoding/json reads and writes it, so that every byte is the real Ollama's.

Reading: only the first value counts, field names match in any letter case (folded beyond ASCII: `ſtream` is
`stream`), the last duplicate wins, and every mistake has Go's own words.
Writing: `<`, `>`, `&` and the two Unicode line separators are escaped, floats that are whole lose their point.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

# A JSON value from a client: nothing is known of it until a handler has looked.
Json = Any

_BLANK = " \t\r\n"
# A surrogate escape without its other half, which Go reads as U+FFFD.
_LONE_SURROGATE = re.compile(r"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w)\\u[dD][c-fC-F]\w\w")
# What Python calls a mistake, and how Go ends the sentence about it.
_CONTEXTS = {
    "Expecting value": "looking for beginning of value",
    "Expecting property name": "looking for beginning of object key string",
    "Illegal trailing comma": "looking for beginning of object key string",
    "Expecting ':'": "after object key",
    "Expecting ','": "after object key:value pair",
    "Invalid control character": "in string literal",
    "Invalid \\escape": "in string escape code",
    "Invalid \\uXXXX": "in \\u hexadecimal character escape",
}


class JsonError(ValueError):
    """A body that Go would not decode; its text is Go's error."""


def first_value(body: bytes) -> Json:
    """Return the first JSON value of `body`; what follows it is not looked at. Raises JsonError."""
    text = body.decode("utf-8", "replace")
    start = len(text) - len(text.lstrip(_BLANK))
    if start == len(text):
        raise JsonError("EOF")
    if "\\u" in text:
        text = _LONE_SURROGATE.sub("\\\\ufffd", text)
    decoder = json.JSONDecoder(object_pairs_hook=_last_wins, parse_constant=_no_constant)
    try:
        return decoder.raw_decode(text, start)[0]
    except RecursionError:
        bracket = text[start]
        raise JsonError(f"invalid character '{bracket}' exceeded max depth") from None
    except json.JSONDecodeError as error:
        raise JsonError(_go_words(text, error)) from None


def _last_wins(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Keep the last of equal names, and keep it where it came: folding decides later which spelling was last."""
    found: dict[str, Json] = {}
    for name, value in pairs:
        found.pop(name, None)
        found[name] = value
    return found


def _no_constant(name: str) -> Json:
    raise JsonError(f"invalid character '{name[0]}' looking for beginning of value")


def _go_words(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :]
    if error.msg.startswith("Invalid \\escape"):
        rest = rest[1:]  # Go complains of what follows the backslash
    elif not error.msg.startswith("Invalid"):
        rest = rest.lstrip(_BLANK)
    if not rest or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    context = next((go for python, go in _CONTEXTS.items() if error.msg.startswith(python)), "in literal")
    # Go names the byte, not the character: it complains about a byte order mark as 'ï'.
    octet = chr(rest[0].encode()[0])
    shown = {"'": "\\'", "\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(
        octet, octet if octet.isprintable() else f"\\x{ord(octet):02x}"
    )
    return f"invalid character '{shown}' {context}"


def folded(value: Json) -> dict[str, Json]:
    """Return an object's members under folded names, the last of equal ones winning; {} for anything else."""
    return {name.casefold(): member for name, member in value.items()} if isinstance(value, dict) else {}


def kind(value: Json) -> str:
    """What Go calls a JSON value in a type error."""
    names = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}
    return names[type(value)]


def struct(body: bytes, go_type: str, types: dict[str, str]) -> dict[str, Json]:
    """Decode `body` into the members of a Go struct, folded; nulls count as absent.

    `types` maps a folded field name to its Go type, which is checked. Raises JsonError with Go's words.
    """
    value = first_value(body)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise JsonError(f"json: cannot unmarshal {kind(value)} into Go value of type {go_type}")
    fields = {name: member for name, member in folded(value).items() if member is not None}
    for name, wanted in types.items():
        if name in fields and not _fits(fields[name], wanted):
            where = f"{go_type.rpartition('.')[2]}.{name}"
            found = kind(fields[name])
            raise JsonError(f"json: cannot unmarshal {found} into Go struct field {where} of type {wanted}")
    return fields


def _fits(value: Json, wanted: str) -> bool:
    if wanted.startswith("["):
        return isinstance(value, list)
    return kind(value) == {"int": "number", "float64": "number"}.get(wanted, wanted)


def whole(number: float) -> float | int:
    """Return a float as Go prints it: 1.0 is written 1."""
    return int(number) if float(number).is_integer() else number


def dump(value: Json) -> bytes:
    """Write `value` as Go's json.Marshal does. Key order is the caller's."""
    text = orjson.dumps(value)
    if b"<" in text or b">" in text or b"&" in text:
        text = text.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
    if b"\xe2\x80" in text:
        text = text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return text


def dump_map(value: Json) -> bytes:
    """Write `value` as Go writes a map: keys in alphabetical order, at every depth."""
    return dump(sorted_keys(value))


def sorted_keys(value: Json) -> Json:
    """Return `value` with the keys of all its objects in alphabetical order."""
    if isinstance(value, dict):
        return {name: sorted_keys(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [sorted_keys(member) for member in value]
    return value
