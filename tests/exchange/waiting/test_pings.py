"""A client that waits hears of it in a form that it ignores, at the right moment, and failures keep their words."""

from __future__ import annotations

import time

import orjson
import pytest

from proxy.exchange.streams import Events
from proxy.exchange.waiting.pings import Failure, Pace, Times, early_head, failure_of, may_begin_early, ping
from proxy.policy.heads import RequestHead
from proxy.policy.routes import ROUTES, Dialect
from proxy.reading.asked import Asked, Naming

ROUTE = {route.path: route for route in ROUTES if route.method == "POST"}
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate")
AT = 1785000000.25


def asked(*, streams: bool = True, prompt: bool = True) -> Asked:
    return Asked(Naming.NAMED, "tiny", streams=streams, prompt=prompt)


def head(path: str, agent: str = "curl/8", version: tuple[int, int] = (1, 1)) -> RequestHead:
    return RequestHead("POST", path, version, ((b"Host", b"mac"), (b"User-Agent", agent.encode())))


@pytest.mark.parametrize(
    ("path", "number", "octets"),
    [
        ("/v1/messages", -1, b'event: ping\ndata: {"type": "ping"}\n\n'),
        (
            "/v1/chat/completions",
            -1,
            b'data: {"id":"chatcmpl-wait","object":"chat.completion.chunk","created":1785000000,"model":"tiny",'
            b'"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}\n\n',
        ),
        ("/v1/completions", -1, b": waiting\n\n"),
        ("/v1/responses", -1, b": waiting\n\n"),
        ("/v1/responses", 0, b'event: keepalive\ndata: {"type":"keepalive","sequence_number":0}\n\n'),
        ("/v1/responses", 41, b'event: keepalive\ndata: {"type":"keepalive","sequence_number":41}\n\n'),
        (
            "/api/chat",
            -1,
            b'{"model":"tiny","created_at":"2026-07-25T17:20:00.250000Z",'
            b'"message":{"role":"assistant","content":""},"done":false}\n',
        ),
        (
            "/api/generate",
            -1,
            b'{"model":"tiny","created_at":"2026-07-25T17:20:00.250000Z","response":"","done":false}\n',
        ),
    ],
)
def test_octets_of_a_ping(path, number, octets, monkeypatch):
    """Each surface has its own ping, whose time is UTC wherever the machine is."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    assert ping(ROUTE[path], model="tiny", at=AT, sequence_number=number) == octets
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("path", STREAMED)
def test_a_ping_is_a_whole_event_that_ends_nothing(path):
    """After a ping another event may follow, and the stream isn't complete by it."""

    class Facts:
        model = tokens_in = tokens_out = events = None

    events = Events(Facts(), ROUTE[path].dialect)
    events.feed(ping(ROUTE[path], model='a"b\n', at=AT, sequence_number=3))
    assert events.at_border
    assert not events.terminated
    assert not events.complete()


# --- the early head ---


@pytest.mark.parametrize(
    ("path", "agent", "may"),
    [
        *((path, "curl/8", True) for path in STREAMED),
        ("/api/embed", "curl/8", False),
        ("/v1/responses", "codex_exec/0.171.0", False),
        ("/v1/responses", "OpenAI/Python 3.57.0", False),
        ("/v1/responses", "AsyncOpenAI/Python 3.57.0", False),
        ("/v1/responses", "OpenAI/JS 6.49.0", True),
        ("/v1/chat/completions", "OpenAI/Python 3.57.0", True),
    ],
)
def test_who_may_get_an_early_head(path, agent, may):
    """Every stream may begin early, except on /v1/responses for those who wait longer without a head."""
    assert may_begin_early(ROUTE[path], head(path, agent), asked()) is may


@pytest.mark.parametrize(
    ("request_head", "what"),
    [
        (head("/v1/messages"), asked(streams=False)),
        (head("/v1/messages", version=(1, 0)), asked()),
        (head("/v1/messages"), asked(prompt=False)),
    ],
    ids=["no_stream", "http_1_0", "only_a_load"],
)
def test_what_never_begins_early(request_head, what):
    """A response that isn't a stream, or has no chunks to put pings into, never begins early."""
    assert not may_begin_early(ROUTE["/v1/messages"], request_head, what)


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        (Dialect.CHAT, b"Content-Type: text/event-stream\r\nDate: D\r\n"),
        (Dialect.NDJSON, b"Content-Type: application/x-ndjson\r\nDate: D\r\n"),
        (Dialect.RESPONSES, b"Content-Type: text/event-stream\r\nDate: D\r\nCache-Control: no-cache\r\n"),
    ],
)
def test_octets_of_an_early_head(dialect, fields):
    """The early head is that of Ollama's streams, with the proxy's own fields."""
    octets = early_head(dialect, request_id="r1", date=b"D", origin=None, keep_alive=True)
    assert octets == b"HTTP/1.1 200 OK\r\n" + fields + b"Transfer-Encoding: chunked\r\nx-request-id: r1\r\n\r\n"


def test_an_early_head_has_all_that_the_client_needs():
    """Anthropic's request id, the page's CORS fields and the end of the connection are in it."""
    octets = early_head(Dialect.MESSAGES, request_id="r1", date=b"D", origin=b"http://page", keep_alive=False)
    assert b"\r\nrequest-id: r1\r\n" in octets
    assert b"\r\nAccess-Control-Allow-Origin: http://page\r\n" in octets
    assert octets.endswith(b"\r\nConnection: close\r\n\r\n")


# --- when ---


def test_the_head_comes_after_the_first_silence():
    """The early head is due `after` seconds after the request, once."""
    pace = Pace(Times(15.0, 30.0), early=True, since=100.0)
    assert [pace.head_due(now) for now in (100.0, 114.9, 115.0)] == [False, False, True]
    pace.began(115.0)
    assert not pace.head_due(200.0)


def test_pings_follow_the_head():
    """A ping is due `every` seconds after the head, after another ping, and after Ollama's last bytes."""
    pace = Pace(Times(15.0, 30.0), early=True, since=0.0)

    def due(now: float) -> bool:
        return pace.ping_due(now, unsent=0, between_events=True)

    pace.began(15.0)
    assert (due(44.9), due(45.0)) == (False, True)
    pace.pinged(45.0)
    assert (due(74.9), due(75.0)) == (False, True)
    pace.passed(80.0)
    assert (due(109.9), due(110.0)) == (False, True)
    pace.pinged(110.0)
    assert pace.pings == 2


def test_short_times_count():
    """Times of less than a second are times, too."""
    pace = Pace(Times(0.5, 0.5), early=True, since=0.0)
    assert [pace.head_due(now) for now in (0.4, 0.5)] == [False, True]
    assert [pace.ping_due(now, unsent=0, between_events=True) for now in (0.4, 0.5)] == [False, True]


@pytest.mark.parametrize(
    ("times", "early"), [(Times(0.0, 30.0), True), (Times(15.0, 30.0), False)], ids=["never", "not_this_client"]
)
def test_no_head_is_due(times, early):
    """With `after` 0, or for a client that must not get one, no early head is ever due."""
    assert not Pace(times, early=early, since=0.0).head_due(1e9)


@pytest.mark.parametrize(
    ("times", "unsent", "between_events"),
    [
        (Times(15.0, 30.0), 1, True),
        (Times(15.0, 30.0), 0, False),
        (Times(0.0, 30.0), 0, True),
        (Times(15.0, 0.0), 0, True),
    ],
    ids=["one_is_unsent", "inside_an_event", "never", "never_again"],
)
def test_no_ping_is_due(times, unsent, between_events):
    """No ping is sent behind one that the client hasn't taken, inside an event, or when they are off."""
    assert not Pace(times, early=True, since=0.0).ping_due(1e9, unsent=unsent, between_events=between_events)


# --- failures ---


@pytest.mark.parametrize(
    ("dialect", "status", "body", "failure"),
    [
        (
            Dialect.CHAT,
            404,
            b'{"error":{"message":"model \'m\' not found","type":"not_found_error","param":null,"code":null}}\n',
            Failure(404, "model 'm' not found", "not_found_error"),
        ),
        (
            Dialect.MESSAGES,
            503,
            b'{"type":"error","error":{"type":"overloaded_error","message":"busy"},"request_id":"req_1"}\n',
            Failure(503, "busy", "overloaded_error"),
        ),
        (Dialect.MESSAGES, 503, b'{"error":"busy"}', Failure(503, "busy", "overloaded_error")),
        (Dialect.RESPONSES, 500, b'{"error":"it died"}', Failure(500, "it died", "api_error")),
        (Dialect.NDJSON, 500, b'{"error":"it died"}', Failure(500, "it died", "api_error")),
        (Dialect.CHAT, 500, b'{"error":{"message":"m","type":"odd"}}', Failure(500, "m", "odd")),
        (Dialect.CHAT, 500, b'{"error":{"message":"m","type":""}}', Failure(500, "m", "api_error")),
        (Dialect.CHAT, 500, b'{"error":{"message":"m","type":7}}', Failure(500, "m", "api_error")),
        (Dialect.CHAT, 500, b" \xff died ", Failure(500, "\ufffd died", "api_error")),
        (Dialect.CHAT, 500, b"", Failure(500, "Ollama answered with status 500 and no message", "api_error")),
        (Dialect.CHAT, 404, b"404 page not found", Failure(404, "404 page not found", "not_found_error")),
        (Dialect.CHAT, 500, b'{"error":{"message":7}}', Failure(500, '{"error":{"message":7}}', "api_error")),
    ],
)
def test_a_failure_keeps_its_words(dialect, status, body, failure):
    """The words and the type are those of Ollama's response, in whichever shape it came."""
    assert failure_of(dialect, status, body) == failure


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "model_not_found"), (503, "server_is_overloaded"), (429, "rate_limit_exceeded"), (500, "server_error")],
)
def test_codex_reads_the_code(status, code):
    """On /v1/responses the code says what the status would have said."""
    event = Failure(status, "words", "api_error").event(Dialect.RESPONSES, 7, "resp_1")
    told = orjson.loads(event.partition(b"data: ")[2])
    assert told["response"]["error"] == {"code": code, "message": "words"}
    assert (told["sequence_number"], told["response"]["id"]) == (7, "resp_1")


def test_a_failure_has_the_type_of_its_status():
    """The event of a surface carries the type that its SDK would have read from the status."""
    event = Failure(503, "busy", "overloaded_error").event(Dialect.MESSAGES)
    assert event == b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'


def test_a_failed_response_before_any_event():
    """A response that fails before its first event has no id yet, and its number is the first."""
    event = Failure(500, "it died", "api_error").event(Dialect.RESPONSES)
    assert event == (
        b'event: response.failed\ndata: {"type":"response.failed","sequence_number":0,"response":{"id":"",'
        b'"object":"response","status":"failed","error":{"code":"server_error","message":"it died"}},'
        b'"error":{"message":"it died","type":"api_error","code":"server_error"}}\n\n'
    )
