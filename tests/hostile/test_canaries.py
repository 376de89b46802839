"""What the logs and the dashboard never hold: canaries in all of a request and an answer, before a real process."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import pytest
import uvloop

from proxy.dashboard.export import answers, document
from proxy.dashboard.live import last_refusals
from proxy.dashboard.page_files import page_files
from proxy.manage.machine.log_index import index_files
from tests.dashboard.indexed import Indexed
from tests.support.patience import PATIENCE
from tests.support.proxy_process import Process
from tests.support.raw_http import CLOSE, CUT, LAST_CHUNK, Step, Upstream, chunk, ok, stream_head, until

if TYPE_CHECKING:
    from collections.abc import Mapping

CHAT = "/v1/chat/completions"

BLANK = "canary0123456789abcdef"
"""What stands in a row for its canary: as long as one, so that framing can be made around it; `$` in short."""


class Row(NamedTuple):
    """One request, and the script that answers it."""

    request: bytes
    script: tuple[bytes | Step, ...] = ()
    leaves: bool = False  # the client goes once it has sent


def get(target: str = "/api/tags", *lines: str) -> Row:
    """Return a GET with `lines` next to the usual ones."""
    head = "\r\n".join((f"GET {target} HTTP/1.1", "Host: mac", *lines))
    return Row(head.encode() + b"\r\n\r\n", (ok(),))


def post(content: str, path: str = CHAT, *script: bytes | Step) -> Row:
    """Return a POST, answered by `script`."""
    head = f"POST {path} HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\n\r\n"
    return Row(head.encode() + framed(content) + LAST_CHUNK, script or (ok(b'{"model":"m"}'),))


def answered(*script: bytes | Step, path: str = CHAT) -> Row:
    """Return a POST that is answered by `script`."""
    return post('{"model":"m"}', path, *script)


def framed(text: str) -> bytes:
    """Return `text` as one chunk."""
    return chunk(text.replace("$", BLANK).encode())


def whole(content: str, status: str = "200 OK") -> bytes:
    """Return a whole JSON answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + framed(content) + LAST_CHUNK


def streamed(*events: str) -> bytes:
    """Return the beginning of an event stream."""
    return stream_head() + b"".join(framed(f"{event}\n\n") for event in events)


DONE = framed("data: [DONE]\n\n") + LAST_CHUNK
ASKED = b"GET /api/tags HTTP/1.1\r\nHost: mac\r\n"
CHUNKED = b"POST /api/show HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\n\r\n"
PREFLIGHT = b"OPTIONS /api/show HTTP/1.1\r\nHost: mac\r\nOrigin: app://a\r\nAccess-Control-Request-Method: "
OK = b"HTTP/1.1 200 OK\r\n"
TWO = b"Content-Length: 2\r\n\r\n{}"

SILENT = {
    # Fields of a well-formed request.
    **{
        f"field_{name}": get("/api/tags", f"{name}: $")
        for name in (
            *(
                "Authorization",
                "Proxy-Authorization",
                "X-Api-Key",
                "Cookie",
                "Referer",
                "Via",
                "Forwarded",
                "TE",
                "From",
            ),
            *("X-Forwarded-For", "X-Real-IP", "Connection", "Keep-Alive", "Upgrade", "Accept", "Accept-Encoding"),
            *("anthropic-version", "anthropic-beta", "OpenAI-Organization", "Tailscale-User-Login", "Sec-Fetch-Site"),
            *("Access-Control-Request-Method", "Access-Control-Request-Headers", "X-Stainless-Arch", "Content-Type"),
            *("Content-Encoding", "Date", "If-None-Match", "Range", "Trailer", "Max-Forwards", "X-Anything"),
        )
    },
    "field_name": get("/api/tags", "X-$: 1"),
    "basic_credentials": get("/api/tags", "Authorization: Basic $base64"),
    "origin_refused": get("/api/tags", "Origin: https://$.example.org"),
    "origin_allowed": get("/api/tags", "Origin: app://$"),
    "origin_repeated": get("/api/tags", "Origin: app://a", "Origin: app://$"),
    "expectation": get("/api/tags", "Expect: $"),
    "via_names_us": get("/api/tags", "Via: 1.1 $, 1.1 remote-ollama-proxy ($)"),
    "request_id_not_plain": get("/api/tags", "X-Request-Id: a $"),
    "request_id_repeated": get("/api/tags", "X-Request-Id: a", "X-Request-Id: $"),
    "user_in_the_host": Row(b"GET /api/tags HTTP/1.1\r\nHost: me:$@mac\r\n\r\n"),
    "host_repeated": get("/api/tags", "Host: $"),
    "preflight_fields": Row(PREFLIGHT + b"POST\r\nAccess-Control-Request-Headers: x-$\r\n\r\n"),
    "preflight_method": Row(PREFLIGHT + b"$\r\n\r\n"),
    # The target beyond its path.
    "query_name": get("/api/tags?$=1"),
    "query_value": get("/api/tags?key=$"),
    "query_escaped": get("/api/tags?key=$percent"),
    "query_of_a_refused_path": get("/api/pull?key=$"),
    "query_of_an_absolute_form": get("http://mac/api/tags?$"),
    "user_of_an_absolute_form": get("http://me:$@mac/api/tags"),
    "user_of_an_authority_form": Row(b"CONNECT $@mac:443 HTTP/1.1\r\nHost: mac\r\n\r\n"),
    # Content of requests.
    "prompt": post('{"model":"m","messages":[{"role":"user","content":"$"}]}'),
    "prompt_escaped": post('{"model":"m","messages":[{"role":"user","content":"$json"}]}'),
    "content_key": post('{"model":"m","$":1}'),
    "content_not_json": post("$"),
    "model_no_text": post('{"model":{"name":"$"}}'),
    "content_of_messages": post('{"model":"m","system":"$"}', "/v1/messages"),
    "content_of_a_refused_path": post("$", "/api/delete"),
    "chunk_extension": Row(CHUNKED + b'2;$="$"\r\n{}\r\n0\r\n\r\n', (ok(),)),
    "trailer_name": Row(CHUNKED + b"2\r\n{}\r\n0\r\nX-$: 1\r\n\r\n", (ok(),)),
    "trailer_value": Row(CHUNKED + b"2\r\n{}\r\n0\r\nAuthorization: $\r\n\r\n", (ok(),)),
    "content_cut": Row(b"POST /api/show HTTP/1.1\r\nHost: mac\r\nContent-Length: 9999\r\n\r\n{$", leaves=True),
    "behind_a_request": Row(get().request + b"$\r\n\r\n", (ok(),)),
    # Bytes that make no request.
    "method": Row(b"$ /api/tags HTTP/1.1\r\nHost: mac\r\n\r\n"),
    "version": Row(b"GET /api/tags $\r\nHost: mac\r\n\r\n"),
    "no_http": Row(b"$\r\n\r\n"),
    "target_with_a_space": Row(b"GET /api/tags $ HTTP/1.1\r\nHost: mac\r\n\r\n"),
    "target_not_ascii": Row(b"GET /\xff$ HTTP/1.1\r\nHost: mac\r\n\r\n"),
    "target_that_yarl_chokes_on": Row(b"GET http://$[fe80::1%25eth0]@ HTTP/1.1\r\nHost: mac\r\n\r\n"),
    "space_before_colon": Row(ASKED + b"X-$ : 1\r\n\r\n"),
    "control_in_a_value": Row(ASKED + b"Authorization: $\x01\r\n\r\n"),
    "bare_line_feed": Row(ASKED + b"Authorization: $\nX: $\r\n\r\n"),
    "folded_line": Row(ASKED + b"X: 1\r\n $\r\n\r\n"),
    "no_colon": Row(ASKED + b"$\r\n\r\n"),
    "content_length": Row(ASKED + b"Content-Length: $\r\n\r\n"),
    "content_length_repeated": Row(ASKED + b"Content-Length: 2\r\nContent-Length: $\r\n\r\n"),
    "transfer_encoding": Row(ASKED + b"Transfer-Encoding: $\r\n\r\n"),
    "chunk_size": Row(CHUNKED + b"$\r\n"),
    "long_field": Row(ASKED + b"X: $%b\r\n\r\n" % (b"x" * 70_000)),
    "long_target": Row(b"GET /?$%b HTTP/1.1\r\nHost: mac\r\n\r\n" % (b"x" * 70_000)),
    "many_fields": Row(ASKED + b"X-$: $\r\n" * 200 + b"\r\n"),
    "unfinished_head": Row(ASKED + b"Authorization: $", leaves=True),
    "http_2": Row(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n$"),
    "tls_hello": Row(b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03\x00\x00\x12$.example.org"),
    # Answers.
    "reason_phrase": answered(whole('{"model":"m"}', "200 $")),
    "answer_field_name": answered(OK + b"X-$: 1\r\n" + TWO),
    "answer_field_value": answered(OK + b"Set-Cookie: $\r\n" + TWO),
    "answer_request_id": answered(OK + b"X-Request-Id: $\r\n" + TWO),
    "answer_connection": answered(OK + b"Connection: $\r\n" + TWO),
    "answer_type": answered(OK + b"Content-Type: text/event-stream; $\r\n" + TWO),
    "answer_encoding": answered(OK + b"Content-Encoding: $\r\n" + TWO),
    "answer_text": answered(whole('{"model":"m","choices":[{"message":{"content":"$"}}]}')),
    "answer_id": answered(whole('{"id":"$","model":"m","usage":{"prompt_tokens":"$"}}')),
    "answer_model_no_text": answered(whole('{"model":["$"]}')),
    "answer_not_json": answered(whole('{"$')),
    "answer_chunk_extension": answered(OK + b"Transfer-Encoding: chunked\r\n\r\n2;$\r\n{}\r\n0\r\n\r\n"),
    "answer_trailer": answered(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n$: $\r\n\r\n"),
    "answer_of_messages": answered(whole('{"model":"m","content":[{"text":"$"}]}'), path="/v1/messages"),
    "error_of_upstream": answered(whole('{"error":{"message":"$","type":"$"}}', "404 Not Found")),
    "error_500_of_upstream": answered(whole('{"error":"$"}', "500 Internal Server Error")),
    "stream_text": answered(streamed('data: {"model":"m","choices":[{"delta":{"content":"$"}}]}'), DONE),
    "stream_comment": answered(streamed(": $", 'data: {"model":"m"}'), DONE),
    "stream_event_name": answered(streamed('event: $\ndata: {"model":"m"}'), DONE),
    "stream_usage": answered(streamed('data: {"model":"m","usage":{"prompt_tokens":"$"}}'), DONE),
    "stream_error": answered(streamed('data: {"error":{"message":"$"}}'), LAST_CHUNK),
    "stream_cut": answered(streamed('data: {"model":"m","t":"$"}'), CUT),
    "stream_cut_inside_an_event": answered(stream_head(), framed("data: $"), CLOSE),
    "stream_without_its_end": answered(streamed('data: {"model":"m","t":"$"}'), LAST_CHUNK),
    "stream_of_responses_cut": answered(
        streamed('event: response.created\ndata: {"response":{"id":"$","model":"m"}}'), CUT, path="/v1/responses"
    ),
    "stream_of_messages": answered(
        streamed('event: content_block_delta\ndata: {"delta":{"text":"$"}}', "event: message_stop\ndata: {}"),
        LAST_CHUNK,
        path="/v1/messages",
    ),
    "stream_goes_on_as_garbage": answered(streamed('data: {"model":"m"}'), b"$\r\n$"),
    "interim_field": answered(b"HTTP/1.1 103 Early Hints\r\nLink: $\r\n\r\n", whole("{}")),
    "no_answer": answered(b"$\r\n\r\n", CLOSE),
    "answer_version": answered(b"HTTP/$ 200 OK\r\n\r\n"),
    "answer_status": answered(b"HTTP/1.1 $ OK\r\n\r\n"),
    "answer_status_unknown": answered(b"HTTP/1.1 999 $\r\nX: $\r\nContent-Length: 0\r\n\r\n"),
    "answer_space_before_colon": answered(OK + b"X-$ : 1\r\n\r\n"),
    "answer_control_in_a_value": answered(OK + b"X: $\x01$\r\n\r\n"),
    "answer_content_length": answered(OK + b"Content-Length: $\r\n\r\n"),
    "answer_transfer_encoding": answered(OK + b"Transfer-Encoding: $\r\n\r\n"),
    "answer_switches": answered(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: $\r\n\r\n$"),
    "answer_head_too_long": answered(OK + b"X: $%b\r\n\r\n" % (b"x" * 140_000)),
    "answer_chunk_size": answered(OK + b"Transfer-Encoding: chunked\r\n\r\n$\r\n"),
    "answer_behind_the_end": answered(ok() + b"HTTP/1.1 200 $\r\nContent-Length: 2\r\n\r\n$$"),
    "answer_until_close": answered(OK + b"Content-Type: application/json\r\n\r\n$", CLOSE),
}

TOLD = {
    "host": Row(b"GET /api/tags HTTP/1.1\r\nHost: $\r\n\r\n", (ok(),)),
    "host_refused": Row(b"GET /api/tags HTTP/1.1\r\nHost: $.example.org\r\n\r\n"),
    "user_agent": get("/api/tags", "User-Agent: $"),
    "request_id": get("/api/tags", "X-Request-Id: $"),
    "path": get("/$"),
    "model_in_the_path": get("/v1/models/$"),
    "path_escaped": get("/%2f$"),
    "model_asked_for": post('{"model":"$"}', "/api/show"),
    "model_in_the_answer": answered(whole('{"model":"$"}')),
    "model_in_a_stream": answered(streamed('data: {"model":"$"}'), DONE),
}


MODELS = {"model_asked_for", "model_in_the_answer", "model_in_a_stream"}
"""The positions that the model's name comes from."""

KEPT = ("access", "diagnostics", "stderr", "index", "page", "export")
"""What is kept of requests, or can be made of it."""


def canary(position: str) -> str:
    """Return the canary of `position`: letters and digits, so that it can stand anywhere."""
    return f"canary{hashlib.sha256(position.encode()).hexdigest()[:16]}"


def filled(octets: bytes, bird: str) -> bytes:
    """Return `octets` with the canary in its place."""
    forms = {
        b"$base64": base64.b64encode(bird.encode()),
        b"$percent": "".join(f"%{ord(c):02X}" for c in bird).encode(),
        b"$json": "".join(f"\\u{ord(c):04x}" for c in bird).encode(),
        b"$": bird.encode(),
        BLANK.encode(): bird.encode(),
    }
    for form, text in forms.items():
        octets = octets.replace(form, text)
    return octets


def found(bird: str, log: str) -> bool:
    """Return whether `log` holds the canary: plain, in any letter case, percent-encoded, JSON-escaped or in base64."""
    unescaped = re.sub(r"\\+[ux](?:00)?([0-9a-fA-F]{2})", lambda escape: chr(int(escape[1], 16)), log)
    views = (log, unquote(log), unescaped, unquote(unescaped))
    # Where its first byte falls in a group of three makes three spellings; their ends depend on the neighbours.
    spellings = [base64.b64encode(b" " * shift + bird.encode())[4:-4].decode() for shift in range(3)]
    return any(bird in view.lower() for view in views) or any(spelling in log for spelling in spellings)


class Logs(NamedTuple):
    """What one run left behind."""

    access: str
    diagnostics: str
    stderr: str
    index: str  # of the dashboard: every byte of it
    page: str  # what the dashboard's page gets
    export: str  # the page as one file
    statuses: dict[str, int]  # what the client of each row was answered; 0 when it left


async def run(folder: Path) -> Logs:
    """Send every row through one process, and stop it."""
    diagnostics = folder / "diagnostics.log"
    statuses = {}
    async with AsyncExitStack() as stack:
        upstream = Upstream()
        await upstream.start()
        stack.push_async_callback(upstream.stop)
        named = {"PROXY_DIAGNOSTICS_LOG": diagnostics, "PROXY_LOG_LEVEL": "debug", "PROXY_LOCAL_ONLY": "false"}
        process = await Process.start(folder, upstream.port, **named)
        stack.push_async_callback(process.kill)
        await until(lambda: diagnostics.exists() and "listening" in diagnostics.read_text(), patience=PATIENCE)
        for position, row in (SILENT | TOLD).items():
            bird = canary(position)
            upstream.answers(*(filled(step, bird) if isinstance(step, bytes) else step for step in row.script))
            client = await process.connect()
            await client.send(filled(row.request, bird))
            statuses[position] = 0 if row.leaves else (await client.answer()).status
            client.close()
        process.signal(SIGTERM)
        code, stderr = await process.exit()
        assert code == 0
    texts = process.access_log.read_text(), diagnostics.read_text(), stderr
    return Logs(*texts, *await dashboard(process.access_log), statuses)


async def dashboard(log: Path) -> tuple[str, str, str]:
    """Return what the dashboard has of a log: its index, what its page gets, and its export."""
    indexed = Indexed(log.parent, now=time.time())

    async def ask(query: Mapping[str, str]) -> dict[str, Any]:
        others = {name: value for name, value in query.items() if name != "period"}
        return {"index": {"state": "ready", "log": str(log)}, **indexed.history(query["period"], **others)}

    answered = await answers(ask, lambda *_: None)
    page = json.dumps([answered, indexed.lines(limit="200"), last_refusals(str(log))])
    files = [Path(each) for each in index_files(str(log))]
    kept = "".join(each.read_bytes().decode("latin-1") for each in files if each.exists())
    return kept, page, document(page_files(), answered, str(log), time.time())


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """Give what one run with all rows left behind."""
    return uvloop.run(run(tmp_path_factory.mktemp("canaries")))


@pytest.mark.parametrize("position", SILENT)
def test_never_logged(logs: Logs, position: str) -> None:
    """No text of a request or an answer reaches a log or the dashboard, but for the few that the access log is for."""
    bird = canary(position)
    assert [name for name in KEPT if found(bird, getattr(logs, name))] == []


@pytest.mark.parametrize("position", TOLD)
def test_logged(logs: Logs, position: str) -> None:
    """Host, User-Agent, a plain X-Request-Id, path and model stand in the access log, and on the page with its lines.

    Only the model is also in the index and in the export.
    """
    bird = canary(position)
    places = ["access", "index", "page", "export"] if position in MODELS else ["access", "page"]
    assert [name for name in KEPT if found(bird, getattr(logs, name))] == places


def test_every_request_has_its_line(logs: Logs) -> None:
    """Each of these requests leaves one line, whatever was wrong with it."""
    lines = [json.loads(line) for line in logs.access.splitlines()]
    assert sorted(line.get("status", 0) for line in lines) == sorted(logs.statuses.values())


@pytest.mark.parametrize("form", [b"$", b"$percent", b"$json", b"--$base64", b"$base64"])
@pytest.mark.parametrize("ahead", ["", "x", "xy"])
def test_search(form: bytes, ahead: str) -> None:
    """The search finds a canary in each form that a log could hold it in."""
    bird = canary("search")
    assert found(bird, f'{{"key":"{filled(form, bird).decode()}"}}')
    assert found(bird, base64.b64encode(f"{ahead}{bird}".encode()).decode())
    assert not found(bird, canary("other"))
