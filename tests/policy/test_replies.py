"""Our own words on the wire, byte for byte, and as the official SDKs read them."""

from __future__ import annotations

import asyncio
import contextlib

import anthropic
import ollama
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy import refusals, replies
from proxy.policy.heads import Preflight
from proxy.policy.refusals import Reason, Refusal
from proxy.policy.replies import cors_fields, error_event, preflight_reply, reply, surface_of
from proxy.policy.routes import Dialect, Surface

DATE = b"Mon, 23 Nov 2026 18:33:57 GMT"
REFUSED = Refusal(Reason.PATH_NOT_SERVED, 403, "no; ask")
FAILED = Refusal(Reason.UPSTREAM_CLOSED, 502, "broken", ((b"x-should-retry", b"false"),))
PLAIN = {"request_id": "r1", "keep_alive": True, "origin": None, "date": DATE}


@pytest.mark.parametrize(
    ("path", "surface"),
    [
        ("//api/tags", Surface.NATIVE),
        ("/api//tags/", Surface.NATIVE),
        ("//v1/messages", Surface.ANTHROPIC),
        ("/v1//messages", Surface.ANTHROPIC),
        ("//v1/models", Surface.OPENAI),
        ("/ollama/api/chat", Surface.NATIVE),
        ("/anthropic/v1/messages", Surface.ANTHROPIC),
        ("/api/v1/chat/completions", Surface.OPENAI),
        ("/api/v1/messages", Surface.ANTHROPIC),
        ("/api/chat", Surface.NATIVE),
        ("/api/", Surface.NATIVE),
        ("/v1/api/chat", Surface.NATIVE),
        ("/v1/v1/api/tags", Surface.NATIVE),
        ("/v1/messages", Surface.ANTHROPIC),
        ("/v1/messages/count_tokens", Surface.ANTHROPIC),
        ("/messages", Surface.ANTHROPIC),
        ("/v1/v1/messages", Surface.ANTHROPIC),
        ("/v1/chat/completions", Surface.OPENAI),
        ("/apis", Surface.OPENAI),
        ("/x/api/", Surface.OPENAI),
        ("/", Surface.OPENAI),
        ("", Surface.OPENAI),
        ("*", Surface.OPENAI),
    ],
)
def test_surface_is_the_one_the_client_means(path, surface):
    """What a base URL has too much of cut, `/api/…` is native, `/messages…` Anthropic's, all else OpenAI's."""
    assert surface_of(path) is surface


# --- all bytes -------------------------------------------------------------------------------------------------------


def test_reply_in_native_shape():
    """Native clients get a string, and nothing else, under `error`."""
    assert reply(REFUSED, surface=Surface.NATIVE, **PLAIN) == (
        b"HTTP/1.1 403 Forbidden\r\nDate: Mon, 23 Nov 2026 18:33:57 GMT\r\nContent-Type: application/json\r\n"
        b'Content-Length: 19\r\nx-request-id: r1\r\n\r\n{"error":"no; ask"}'
    )


def test_reply_in_openai_shape():
    """OpenAI's clients get their object; the code is the stable reason."""
    assert reply(REFUSED, surface=Surface.OPENAI, **PLAIN) == (
        b"HTTP/1.1 403 Forbidden\r\nDate: Mon, 23 Nov 2026 18:33:57 GMT\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\nx-request-id: r1\r\n\r\n"
        b'{"error":{"type":"invalid_request_error","message":"no; ask","param":null,"code":"path_not_served"}}'
    )


def test_reply_in_anthropic_shape():
    """Anthropic's clients get their object, with the request's id in it and in the field that they look at."""
    assert reply(REFUSED, surface=Surface.ANTHROPIC, **PLAIN) == (
        b"HTTP/1.1 403 Forbidden\r\nDate: Mon, 23 Nov 2026 18:33:57 GMT\r\nContent-Type: application/json\r\n"
        b"Content-Length: 95\r\nx-request-id: r1\r\nrequest-id: r1\r\n\r\n"
        b'{"type":"error","error":{"type":"invalid_request_error","message":"no; ask"},"request_id":"r1"}'
    )


def test_reply_without_a_path_reads_as_both():
    """Bytes that made no request get an object that is Anthropic's and OpenAI's at once."""
    octets = reply(refusals.MALFORMED, surface=None, **PLAIN)
    content = orjson.loads(octets.partition(b"\r\n\r\n")[2])
    assert content["type"] == "error"
    assert content["error"] == {
        "type": "invalid_request_error",
        "message": refusals.MALFORMED.message,
        "param": None,
        "code": "malformed",
    }


def fields_of(octets: bytes) -> list[bytes]:
    return octets.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


def test_reply_with_everything():
    """Further fields, CORS for an allowed page and the close follow in one head."""
    octets = reply(
        FAILED, surface=Surface.NATIVE, request_id="r1", keep_alive=False, origin=b"app://x", date=DATE, head_only=True
    )
    assert octets == (
        b"HTTP/1.1 502 Bad Gateway\r\nDate: Mon, 23 Nov 2026 18:33:57 GMT\r\nContent-Type: application/json\r\n"
        b"Content-Length: 18\r\nx-request-id: r1\r\nx-should-retry: false\r\n"
        b"Access-Control-Allow-Origin: app://x\r\nVary: Origin\r\n"
        b"Access-Control-Expose-Headers: x-request-id, request-id, retry-after, x-should-retry\r\n"
        b"Connection: close\r\n\r\n"
    )


def test_reply_to_a_websocket():
    """426 names what to use instead, in Upgrade, and says in Connection that it does so (RFC 9110, 15.5.22 and 7.8)."""
    plain = PLAIN | {"keep_alive": False, "origin": b"app://x"}
    head, _, content = reply(refusals.WEBSOCKET, surface=Surface.OPENAI, **plain).partition(b"\r\n\r\n")
    assert head.splitlines() == [
        b"HTTP/1.1 426 Upgrade Required",
        b"Date: Mon, 23 Nov 2026 18:33:57 GMT",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(content),
        b"x-request-id: r1",
        b"Upgrade: HTTP/1.1",
        b"Access-Control-Allow-Origin: app://x",
        b"Vary: Origin",
        b"Access-Control-Expose-Headers: x-request-id, request-id, retry-after, x-should-retry",
        b"Connection: upgrade, close",
    ]
    assert orjson.loads(content)["error"]["code"] == "websocket"


@pytest.mark.parametrize(
    ("surface", "content"),
    [
        (Surface.NATIVE, {"error": "M"}),
        (
            Surface.OPENAI,
            {"error": {"type": "invalid_request_error", "message": "M", "param": None, "code": "slashes"}},
        ),
        (
            Surface.ANTHROPIC,
            {"type": "error", "error": {"type": "invalid_request_error", "message": "M"}, "request_id": "r1"},
        ),
    ],
)
def test_reply_that_redirects(surface, content):
    """A redirect is a refusal in the client's own form, with a Location that no cache keeps, readable to its page."""
    refusal = refusals.slashes("GET", "//api/tags", "/api/tags", "?a=b")
    octets = reply(refusal, surface=surface, **PLAIN | {"origin": b"app://x"})
    fields = fields_of(octets)
    assert octets.startswith(b"HTTP/1.1 308 Permanent Redirect\r\n")
    assert {b"Location: /api/tags?a=b", b"Cache-Control: no-store", b"Access-Control-Allow-Origin: app://x"} <= {
        *fields
    }
    reported = octets.partition(b"\r\n\r\n")[2].decode().replace(orjson.dumps(refusal.message).decode(), '"M"')
    assert orjson.loads(reported) == content


@pytest.mark.parametrize(
    ("version", "keep_alive", "line"),
    [
        ((1, 1), True, None),
        ((1, 1), False, b"Connection: close"),
        ((1, 0), True, b"Connection: keep-alive"),
        ((1, 0), False, b"Connection: close"),
        ((2, 0), False, b"Connection: close"),
    ],
)
def test_connection_is_told_as_the_version_needs(version, keep_alive, line):
    """HTTP/1.1 clients get only `close`, HTTP/1.0 clients also `keep-alive`."""
    plain = PLAIN | {"keep_alive": keep_alive, "version": version}
    pre = preflight_reply(Preflight(("GET",), None), **plain | {"origin": b"app://x"})
    for octets in (reply(REFUSED, surface=Surface.OPENAI, **plain), pre):
        found = [field for field in fields_of(octets) if field.startswith(b"Connection")]
        assert found == ([line] if line else [])


@pytest.mark.parametrize("surface", [*Surface, None])
@pytest.mark.parametrize("refusal", [REFUSED, refusals.INTERNAL, FAILED])
def test_types_are_what_makes_clients_stop_or_go_on(refusal, surface):
    """Every 4xx is an `invalid_request_error`, without which aider repeats it for a minute; a 5xx is an `api_error`."""
    content = orjson.loads(reply(refusal, surface=surface, **PLAIN).partition(b"\r\n\r\n")[2])
    error = content["error"]
    if surface is Surface.NATIVE:
        assert error == refusal.message
    else:
        assert error["type"] == ("invalid_request_error" if refusal.status < 500 else "api_error")
        assert error["message"] == refusal.message


@given(st.text(), st.sampled_from([*Surface, None]), st.booleans())
def test_length_is_that_of_the_content(text, surface, head_only):
    """Content-Length is the content's, also in answer to HEAD, which has none."""
    refusal = refusals.path_not_served("GET", text)
    head, _, content = reply(refusal, surface=surface, head_only=head_only, **PLAIN).partition(b"\r\n\r\n")
    length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    whole = reply(refusal, surface=surface, **PLAIN).partition(b"\r\n\r\n")[2]
    assert (length, content) == (len(whole), b"" if head_only else whole)


CONSTANTS = [value for value in vars(refusals).values() if isinstance(value, Refusal)]


@pytest.mark.parametrize("refusal", [refusal for refusal in CONSTANTS if refusal.status])
def test_every_status_has_a_phrase(refusal):
    """Each status of the catalogue has its phrase in the status line."""
    line = reply(refusal, surface=None, **PLAIN).partition(b"\r\n")[0]
    assert line.split(b" ", 2)[:2] == [b"HTTP/1.1", str(refusal.status).encode()]
    assert len(line.split(b" ", 2)[2]) > 5


def test_only_a_foreign_peer_gets_no_reply():
    """A status of 0 closes the connection silently. It is for connections that are not served at all."""
    assert [refusal.reason for refusal in CONSTANTS if not refusal.status] == [Reason.PEER_NOT_ALLOWED]


def test_made_refusals_have_phrases_too():
    """So have the statuses of those that are worded for each request."""
    assert {403, 405, 408, 413, 431, 503} <= set(replies._PHRASES)


def test_preflight_reply():
    """A preflight is answered without content: what may be asked, with which headers, and for how long that holds."""
    octets = preflight_reply(Preflight(("GET", "HEAD"), b"authorization, x-api-key"), **PLAIN | {"origin": b"app://x"})
    assert octets == (
        b"HTTP/1.1 204 No Content\r\nDate: Mon, 23 Nov 2026 18:33:57 GMT\r\nx-request-id: r1\r\n"
        b"Access-Control-Allow-Origin: app://x\r\nVary: Origin\r\n"
        b"Access-Control-Expose-Headers: x-request-id, request-id, retry-after, x-should-retry\r\n"
        b"Access-Control-Allow-Methods: GET, HEAD\r\nAccess-Control-Allow-Headers: authorization, x-api-key\r\n"
        b"Access-Control-Max-Age: 7200\r\n\r\n"
    )


def test_preflight_reply_without_asked_headers():
    """A preflight that asks for no headers is allowed none, and its answer is the same but for that line."""
    octets = preflight_reply(Preflight(("GET",), None), **PLAIN | {"origin": b"app://x"})
    asked = preflight_reply(Preflight(("GET",), b"x"), **PLAIN | {"origin": b"app://x"})
    assert octets == asked.replace(b"Access-Control-Allow-Headers: x\r\n", b"")


def test_preflight_reply_for_a_private_network():
    """A page that asks whether it may reach a private network reads that it may, in a line of its own."""
    plain = PLAIN | {"origin": b"app://x"}
    octets = preflight_reply(Preflight(("GET",), None, private_network=True), **plain)
    without = preflight_reply(Preflight(("GET",), None), **plain)
    assert octets.replace(b"Access-Control-Allow-Private-Network: true\r\n", b"") == without != octets


def test_cors_fields_are_whole_lines():
    """The lines can stand anywhere in a head."""
    assert cors_fields(b"app://x").count(b"\r\n") == len(cors_fields(b"app://x").splitlines()) == 3


@pytest.mark.parametrize(
    ("dialect", "octets"),
    [
        (Dialect.CHAT, b'data: {"error":{"message":"it \\"broke\\"\\n","type":"api_error"}}\n\n'),
        (
            Dialect.MESSAGES,
            b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"it \\"broke\\"\\n"}}\n\n',
        ),
        (
            Dialect.RESPONSES,
            b'event: response.failed\ndata: {"type":"response.failed","sequence_number":7,"response":{"id":"resp_1",'
            b'"object":"response","status":"failed","error":{"code":"server_error","message":"it \\"broke\\"\\n"}},'
            b'"error":{"message":"it \\"broke\\"\\n","type":"api_error","code":"server_error"}}\n\n',
        ),
        (Dialect.NDJSON, b'{"error":"it \\"broke\\"\\n"}\n'),
    ],
)
def test_error_event_octets(dialect, octets):
    """Each dialect has one event, on lines of its own, that says why a stream broke."""
    assert error_event(dialect, 'it "broke"\n', sequence_number=7, response_id="resp_1") == octets


def test_error_event_of_an_unknown_response():
    """A stream that broke before its first event has no id to repeat and begins to count."""
    event = orjson.loads(error_event(Dialect.RESPONSES, "x").partition(b"data: ")[2])
    assert (event["sequence_number"], event["response"]["id"]) == (0, "")


# --- as the SDKs read them --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def answering(octets: bytes):
    """Yield the base URL of a server that gives every request the same `octets` and closes, and the requests it got."""
    requests = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length or 0))
        requests.append(head)
        writer.write(octets)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(30):
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


def openai_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x")


def anthropic_client(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="x")


HELLO = [{"role": "user", "content": "hello"}]


async def ask_chat(url: str, *, stream: bool = False) -> None:
    async with openai_client(url) as client:
        answer = await client.chat.completions.create(model="m", messages=HELLO, stream=stream)
        _ = [event async for event in answer]


async def ask_responses(url: str, *, stream: bool = False) -> None:
    async with openai_client(url) as client:
        answer = await client.responses.create(model="m", input="hello", stream=stream)
        _ = [event async for event in answer]


async def ask_messages(url: str, *, stream: bool = False) -> None:
    async with anthropic_client(url) as client:
        answer = await client.messages.create(model="m", messages=HELLO, max_tokens=9, stream=stream)
        _ = [event async for event in answer]


async def ask_native(url: str, *, stream: bool = False) -> None:
    answer = await ollama.AsyncClient(url).chat("m", HELLO, stream=stream)
    _ = [part async for part in answer]


SURFACES = [
    pytest.param(ask_chat, Surface.OPENAI, openai.PermissionDeniedError, id="openai_chat"),
    pytest.param(ask_responses, Surface.OPENAI, openai.PermissionDeniedError, id="openai_responses"),
    pytest.param(ask_messages, Surface.ANTHROPIC, anthropic.PermissionDeniedError, id="anthropic"),
    pytest.param(ask_native, Surface.NATIVE, ollama.ResponseError, id="ollama"),
]


@pytest.mark.parametrize(("ask", "surface", "error"), SURFACES)
async def test_sdks_show_a_refusal_and_do_not_repeat_it(ask, surface, error):
    """A refused person sees the message in the SDK's own error, after one request."""
    refusal = refusals.path_not_served("POST", "/api/pull")
    async with answering(reply(refusal, surface=surface, **PLAIN | {"keep_alive": False})) as (url, requests):
        with pytest.raises(error) as caught:
            await ask(url)
    assert refusal.message in str(caught.value)
    assert len(requests) == 1


@pytest.mark.parametrize("ask", [ask_chat, ask_responses, ask_messages])
@pytest.mark.parametrize("refusal", [refusals.UPSTREAM_MALFORMED, refusals.LOOP, refusals.INTERNAL, refusals.HTTP_2])
async def test_sdks_do_not_repeat_a_deliberate_5xx(ask, refusal):
    """`x-should-retry: false` keeps an SDK from a retry that can't help."""
    octets = reply(refusal, surface=None, **PLAIN | {"keep_alive": False})
    async with answering(octets) as (url, requests):
        with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)) as caught:
            await ask(url)
    assert refusal.message in str(caught.value)
    assert len(requests) == 1


async def test_anthropic_sdk_finds_the_request_id():
    """The id that the access log has is the one on the SDK's error."""
    octets = reply(REFUSED, surface=Surface.ANTHROPIC, **PLAIN | {"keep_alive": False})
    async with answering(octets) as (url, _):
        with pytest.raises(anthropic.PermissionDeniedError) as caught:
            await ask_messages(url)
    assert caught.value.request_id == "r1"


async def test_openai_sdk_finds_the_request_id():
    """So it is on OpenAI's."""
    octets = reply(REFUSED, surface=Surface.OPENAI, **PLAIN | {"keep_alive": False})
    async with answering(octets) as (url, _):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await ask_chat(url)
    assert (caught.value.request_id, caught.value.code) == ("r1", "path_not_served")


BEGUN = {
    Dialect.CHAT: b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":null}]}\n\n',
    Dialect.RESPONSES: b'event: response.created\ndata: {"response":{"id":"resp_1","object":"response","output":[],'
    b'"status":"in_progress"},"sequence_number":0,"type":"response.created"}\n\n',
    Dialect.MESSAGES: b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message",'
    b'"role":"assistant","model":"m","content":[],"usage":{"input_tokens":9,"output_tokens":0}}}\n\n',
    Dialect.NDJSON: b'{"model":"m","created_at":"2026-08-01T10:00:00.1Z",'
    b'"message":{"role":"assistant","content":"Hi"},"done":false}\n',
}


@pytest.mark.parametrize(
    ("ask", "dialect", "error"),
    [
        (ask_chat, Dialect.CHAT, openai.APIError),
        (ask_responses, Dialect.RESPONSES, openai.APIError),
        (ask_messages, Dialect.MESSAGES, anthropic.APIStatusError),
        (ask_native, Dialect.NDJSON, ollama.ResponseError),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
async def test_sdks_raise_the_message_of_an_error_event(ask, dialect, error, begun):
    """In the middle of a stream or at its beginning, the event makes the SDK raise its error with our message."""
    kind = b"application/x-ndjson" if dialect is Dialect.NDJSON else b"text/event-stream"
    stream = (BEGUN[dialect] if begun else b"") + error_event(dialect, "the model broke", sequence_number=1)
    octets = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nConnection: close\r\n\r\n%b" % (kind, stream)
    async with answering(octets) as (url, requests):
        with pytest.raises(error, match="the model broke"):
            await ask(url, stream=True)
    assert len(requests) == 1
