"""Write the history as one file that needs nothing else. It holds the page, its scripts, its styles and the answers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from proxy import __version__
from proxy.dashboard.filters import PERIODS
from proxy.dashboard.guard import policy_of_one_file
from proxy.dashboard.page_files import INDEX
from proxy.logs.logfile import utc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from proxy.dashboard.page_files import PageFile

    Ask = Callable[[Mapping[str, str]], Awaitable[dict[str, Any]]]

FILTERED = 10
"""The largest devices, models and reasons of each period that have an answer of their own."""

_FILTERS = (("device", "devices", "name"), ("model", "models", "name"), ("reason", "reasons", "reason"))

_STYLE = re.compile(r'<link rel="stylesheet" href="/page/([^"]+)">')
_SCRIPT = re.compile(r'<script src="/page/([^"]+)"></script>')
_DATA = '<script type="application/json" id="exported"></script>'

_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


class ExportError(Exception):
    """The file can't be written; the text says why."""


async def answers(ask: Ask, shown: Callable[[int, int], object]) -> dict[str, dict[str, Any]]:
    """Return the answers for the file, by their queries. `shown` gets the number of answers so far and in all."""
    found: dict[str, dict[str, Any]] = {}
    for at, period in enumerate(PERIODS):
        whole = found[f"period={period}"] = await ask({"period": period})
        filters = list(_filters(whole))
        for number, (name, value) in enumerate(filters):
            shown(at * len(filters) + number, len(PERIODS) * len(filters))
            answer = await ask({"period": period, name: value})
            found[f"period={period}&{name}={_encoded(value)}"] = answer
    return found


def _filters(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, table, key in _FILTERS:
        for row in answer.get(table, ())[:FILTERED]:
            yield name, row[key]


def _encoded(value: str) -> str:
    """Return a text as `encodeURIComponent` writes it."""
    return quote(value, safe="-_.!~*'()", errors="replace")


def document(files: Mapping[str, PageFile], answered: Mapping[str, dict[str, Any]], log: str, made: float) -> str:
    """Return the file."""
    name = Path(log).name
    kept = {key: {**answer, "index": {**answer["index"], "log": name}} for key, answer in answered.items()}
    data = {"made": utc(made), "version": __version__, "log": name, "answers": kept}
    inside = {"style": _STYLE, "script": _SCRIPT}
    page = files[INDEX].content.decode()
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def put_in(tag: str) -> Callable[[re.Match[str]], str]:
        def text(found: re.Match[str]) -> str:
            content = files[found[1]].content.decode()
            if f"</{tag}" in content.lower():
                raise ExportError(f"page/{found[1]} contains </{tag}, so it can't be put into one file")
            hashes[tag].append(f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'")
            return f"<{tag}>{content}</{tag}>"

        return text

    for tag, pattern in inside.items():
        page = pattern.sub(put_in(tag), page)
    policy = policy_of_one_file(*(" ".join(hashes[tag]) or "'none'" for tag in ("script", "style")))
    meta = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<meta name="referrer" content="no-referrer">'
    )
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{meta}', 1)
    return page.replace(_DATA, _DATA.replace("></", f">{_embedded(data)}</"), 1)


def _embedded(data: object) -> str:
    """Return JSON that can't end the element around it."""
    text = json.dumps(data, separators=(",", ":"))
    return "".join(_ESCAPED.get(each, each) for each in text)


def write(path: Path, text: str) -> None:
    """Write a file that only its owner can read, all of it or nothing. Raises OSError."""
    descriptor, spare = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(spare, path)
    except BaseException:
        os.unlink(spare)
        raise
