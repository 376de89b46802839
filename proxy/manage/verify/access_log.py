"""Check the access log after the requests of `verify`: one line for each of them, with documented keys only."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.logs.audit import KEYS
from proxy.manage.facts.log_end import last_lines
from proxy.settings.kinds import printable
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOG_TIME = 5.0
"""Seconds until the lines of all requests must be in the access log; they come once an answer has left."""

_POLL = 0.1
_LOG_TAIL = 2**23  # bytes of an access log's end that are searched: about 17,000 requests


def access_log(log: str, ids: Sequence[str], seconds: float = LOG_TIME) -> Iterator[Finding]:
    """Report whether each request has exactly one line in the access log, with documented keys only."""
    name = "access log"
    if log == "-":
        yield Finding(name, Outcome.SKIP, "it goes to standard output, which can't be read here")
        return
    if not ids:
        yield Finding(name, Outcome.SKIP, "no request was answered by the proxy")
        return
    lines = lines_of(log, set(ids), seconds)
    missing = [each for each in ids if each not in lines]
    twice = [each for each in ids if len(lines.get(each, ())) > 1]
    if missing:
        absent = "" if Path(log).exists() else "; there is no such file: was the proxy started with other settings?"
        detail = f"{len(missing)} of {len(ids)} requests have no line in {log}, as {missing[0]}{absent}"
        yield Finding(name, Outcome.FAIL, detail, f"{PROGRAM} logs --diagnostics")
    if twice:
        detail = f"{len(twice)} of {len(ids)} requests have more than one line in {log}, as {twice[0]}"
        yield Finding(name, Outcome.FAIL, detail, f"grep {twice[0]} '{log}'")
    if not missing and not twice:
        yield Finding(name, Outcome.PASS, f"exactly one line for each of {len(ids)} requests")
    more = sorted({key for found in lines.values() for line in found for key in line if key not in KEYS})
    if more:
        detail = f"lines have keys that aren't documented: {printable(', '.join(more))}"
        yield Finding("access log keys", Outcome.FAIL, detail, f"{PROGRAM} logs --json --no-follow")
    elif lines:
        yield Finding("access log keys", Outcome.PASS, "only the documented keys: no query, prompt or credential")


def lines_of(log: str, ids: set[str], seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of each id, the log before the last rotation included, as soon as all are there."""
    end = time.monotonic() + seconds
    while True:
        found: dict[str, list[dict[str, Any]]] = {}
        for path in (log, f"{log}.1"):
            for line in last_lines(path, _LOG_TAIL):
                if (match := _ID.search(line)) and (own := match[1].decode()) in ids:
                    found.setdefault(own, []).append(json.loads(line))
        if len(found) == len(ids) or time.monotonic() >= end:
            return found
        time.sleep(_POLL)


_ID = re.compile(rb'"id":"([!-~]+?)"')
