"""docs/api-contract.md and the diagnostics in docs/access-log.md name all that there is, in the program's own words."""

from __future__ import annotations

import re

from proxy.exchange.message import forwarding
from proxy.policy import refusals
from proxy.policy.gate import Policy, judge_origin
from proxy.policy.refusals import Reason, Refusal
from proxy.policy.replies import PREFLIGHT_MAX_AGE, cors_fields, error_event, reply
from proxy.policy.routes import Dialect, Surface
from tests.docs.test_docs import CONTRACT, PAGES, SOURCES, marked, section, table
from tests.test_layout import SERVING

TOUCHED = section(CONTRACT, "## Fields touched")


def test_every_touched_field_is_told():
    """Each field that is removed or rewritten on either way stands in the tables, and no other."""
    there, back = (
        {
            name.strip().lower()
            for row in table(part)
            for name in re.split(r", | and the fields that it names, ", row[0])
        }
        for part in TOUCHED.split("On the way back:")
    )
    removed = {name.decode() for name in forwarding._DROPPED | forwarding.CREDENTIALS | {b"via"}}
    forged = {
        name for name in there if forwarding.FORGEABLE(name.removesuffix(" and similar fields").encode())
    } - removed
    assert len(forged) == 8
    assert there - forged == removed | {f"{prefix.decode()}*" for prefix in forwarding._DROPPED_PREFIXES}
    assert {"x-request-id", "request-id", "access-control-*"} <= back
    assert {name.decode() for name in forwarding._ANSWER_DROPPED - forwarding.HOP_BY_HOP} <= {*back, "content-length"}


def test_error_events_are_the_programs():
    """The table of error events has, but for what differs each time, the bytes that are written."""
    reported = [row[1] for row in table(section(CONTRACT, "### Error events"))]
    texts = {dialect: error_event(dialect, "text", response_id="…").decode().strip() for dialect in Dialect}
    event, data = texts[Dialect.RESPONSES].replace('"sequence_number":0', '"sequence_number":N').split("\n")
    assert reported[0] == f"`{texts[Dialect.CHAT]}`"
    assert reported[1].startswith(f"`{event}` with `{data}`".replace('"…"', "…"))
    assert reported[2] == "`{}` with `{}`".format(*texts[Dialect.MESSAGES].split("\n"))
    assert reported[3].startswith(f"`{texts[Dialect.NDJSON]}`")


def test_shapes_of_refusals_are_the_programs():
    """The table of shapes has what a refusal's content is for each API, and where there is no path."""
    reported = [marked(row[1])[0] for row in table(section(CONTRACT, "## Refusals")) if row[1].startswith("`{")]
    for shape, surface in zip(reported, (Surface.NATIVE, Surface.ANTHROPIC, Surface.OPENAI, None), strict=True):
        refusal = Refusal(Reason.LOOP, 403, "text")
        octets = reply(refusal, surface=surface, request_id="id", keep_alive=True, origin=None, date=b"")
        content = octets.partition(b"\r\n\r\n")[2].decode()
        content = content.replace('"invalid_request_error"', "…").replace('"loop"', "reason").replace('"id"', "…")
        assert shape == content


def test_closing_statuses_are_told():
    """The statuses after which the connection ends are those of the program."""
    sentence = re.search(r"After ([\d, and]+) the proxy closes", CONTRACT)[1]
    assert set(map(int, re.findall(r"\d+", sentence))) == refusals._CLOSING


def test_cors_is_told():
    """The origins that are allowed by default are, and the fields that pages get are the program's."""
    reported = section(CONTRACT, "## Web pages (CORS)")
    for line in cors_fields(b"x").decode().splitlines():
        name, _, value = line.partition(": ")
        assert name in reported
        assert value in ("x", "Origin") or f"{name}: {value}" in reported
    assert f"{PREFLIGHT_MAX_AGE // 3600} hours" in reported.replace("two", "2")
    policy = Policy.of(max_body=1)
    hosts = [text for text in marked(reported) if re.fullmatch(r"localhost|[\d.]+", text)]
    schemes = [text for text in marked(reported) if text.endswith("://")]
    assert (len(hosts), len(schemes)) == (3, 5)
    for origin in [f"{scheme}://{host}:1" for scheme in ("http", "https") for host in hosts] + schemes:
        assert judge_origin(origin.encode(), policy) is None


def test_every_diagnostic_is_told():
    """The table of diagnostics has each event that the program logs, and no other."""
    reported = {marked(row[0])[0] for row in table(section(PAGES["docs/access-log.md"], "## Diagnostics"))}
    calls = r'\b(?:_?log\.\w+|_?note|_?warn|_?diagnose|_?complain|say|_tell)\(\s*"([a-z_]+)"'
    texts = {
        name: path.read_text().partition('"""\n')[2]
        for name, path in SOURCES.items()
        if name.rpartition(".")[0] in SERVING
    }
    there = {event for text in texts.values() for event in re.findall(calls, text)}
    there |= set(re.findall(r'"event": "([a-z_]+)"', texts["logs.diagnostics"]))
    there |= set(re.findall(r'event = "([a-z_]+)" if .+ else "([a-z_]+)"', texts["serving.binding"])[0])
    assert reported == there
