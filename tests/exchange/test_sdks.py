"""The SDKs of OpenAI, Anthropic and Ollama behave through the proxy as they do against Ollama itself.

Everything is a real process but the SDKs, and but the scripted upstream where the pace of a stream is the question.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from typing import TYPE_CHECKING

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest

from proxy.manage.demo.command import Child
from tests.support.ports import free_ports
from tests.support.raw_http import LAST_CHUNK, NEXT, Upstream, chunk, stream_head, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# A picture of one pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
# What steers the simulated model: as fast as can be.
FAST = "@@ttft=0 tps=0 tokens=5@@"
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
# Identifiers, times and durations: what differs from one answer to the next of the same server.
VOLATILE = [
    (r"\b((?:chat)?cmpl-|(?:resp|rs|fc|msg|req|call)_)\w+", r"\1N"),
    (r'("(?:created_at|completed_at|expires_at|created)":\s?)(?:"[^"]+"|[\d.]+)', r"\1 0"),
    (r'("\w+_duration":\s?)\d+', r"\1 0"),
]


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Give base URLs: Ollama's, the default proxy's, that of one with open rows, and of one before a port to script."""
    folder = tmp_path_factory.mktemp("servers")
    ports = dict(zip(("ollama", "proxy", "open", "puppet", "script"), free_ports(5), strict=True))
    rows = "POST /api/chat,POST /api/generate,POST /api/embed,GET /api/ps"
    (folder / "config.toml").touch()

    def proxy(name: str, upstream: str, allow: str = "") -> Child:
        settings = {
            "LISTEN": "127.0.0.1",
            "PORT": str(ports[name]),
            "UPSTREAM": f"http://127.0.0.1:{ports[upstream]}",
            "ALLOW": allow,
            "LOCAL_ONLY": "false" if name == "open" else "true",
            "ACCESS_LOG": str(folder / f"{name}.log"),
            "CONFIG": str(folder / "config.toml"),
        }
        environ = {f"PROXY_{option}": value for option, value in settings.items()}
        return Child(name, folder, "proxy", port=ports[name], **environ)

    children = [
        Child("ollama", folder, "proxy.simulated_ollama", "--port", str(ports["ollama"]), port=ports["ollama"]),
        proxy("proxy", "ollama"),
        proxy("open", "ollama", rows),
        proxy("puppet", "script", rows),
    ]
    try:
        for child in children:
            child.start()
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        for child in reversed(children):
            child.end()


# --- clients ----------------------------------------------------------------------------------------------------------


class Tee(httpx.SyncByteStream, httpx.AsyncByteStream, httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A response's bytes on their way to an SDK, noted."""

    def __init__(self, response) -> None:
        self.status = response.status_code
        self.type = response.headers["content-type"] if response.request.method != "HEAD" else None
        self.request = f"{response.request.method} {response.request.url.path}"
        self.octets = b""
        self._stream = response.stream
        response.stream = self

    def __iter__(self) -> Iterator[bytes]:
        for octets in self._stream:
            self.octets += octets
            yield octets

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for octets in self._stream:
            self.octets += octets
            yield octets

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


# Whatever HTTP_PROXY says; and without loading certificates, which takes 40 ms a client and isn't asked for here.
PLAIN = {"mounts": {"http://": None}, "verify": False}


class Clients:
    """All SDKs for one base URL, with their own settings as far as can be, retries included; `seen` is every answer."""

    def __init__(self, base: str) -> None:
        self.seen: list[Tee] = []
        hooks = {"event_hooks": {"response": [self._note]}} | PLAIN
        self.openai = openai.OpenAI(base_url=f"{base}/v1", api_key="k", http_client=openai.DefaultHttpxClient(**hooks))
        self.anthropic = anthropic.Anthropic(
            base_url=base, auth_token="k", http_client=anthropic.DefaultHttpxClient(**hooks)
        )
        self.ollama = ollama.Client(base, trust_env=False, **hooks)
        self.raw = httpx2.Client(base_url=base, trust_env=False, **hooks)

    def _note(self, response) -> None:
        self.seen.append(Tee(response))

    def run(self, call):
        """Return what a call brings: an object, or the list of a stream's."""
        return gathered(call(self))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info: object) -> None:
        for client in (self.openai, self.anthropic, self.ollama, self.raw):
            client.close()


class AsyncClients:
    """The same, not blocking."""

    def __init__(self, base: str) -> None:
        self.seen: list[Tee] = []
        hooks = {"event_hooks": {"response": [self._note]}} | PLAIN
        self.openai = openai.AsyncOpenAI(
            base_url=f"{base}/v1", api_key="k", http_client=openai.DefaultAsyncHttpxClient(**hooks)
        )
        self.anthropic = anthropic.AsyncAnthropic(
            base_url=base, auth_token="k", http_client=anthropic.DefaultAsyncHttpxClient(**hooks)
        )
        self.ollama = ollama.AsyncClient(base, trust_env=False, **hooks)
        self.raw = httpx2.AsyncClient(base_url=base, trust_env=False, **hooks)

    async def _note(self, response) -> None:
        self.seen.append(Tee(response))

    async def run(self, call):
        """Return what a call brings: an object, or the list of a stream's."""
        result = call(self)
        if inspect.isawaitable(result):
            result = await result
        if hasattr(result, "__aiter__") and not hasattr(result, "model_dump"):
            return [gathered(each) async for each in result]
        return gathered(result)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for client in (self.openai, self.anthropic, self.ollama):
            await client.close()
        await self.raw.aclose()


def gathered(result):
    """Return a result as plain values; a stream is read to its end."""
    if isinstance(result, httpx2.Response):
        return result.json()
    if hasattr(result, "model_dump"):
        return result.model_dump(mode="json", warnings=False)
    return [gathered(each) for each in result]


def settled(value) -> str:
    """Return a value as JSON, or bytes as text, without what differs each time."""
    text = value.decode() if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, indent=0)
    for pattern, replacement in VOLATILE:
        text = re.sub(pattern, replacement, text)
    return text


def answers(clients) -> list[tuple[str, int, str | None, str]]:
    """Return every answer that came: the request, status, media type, and the bytes of its content."""
    return [(tee.request, tee.status, tee.type, settled(tee.octets)) for tee in clients.seen]


# --- calls ------------------------------------------------------------------------------------------------------------


def user(text):
    """Return a conversation of one turn."""
    return [{"role": "user", "content": text}]


def chat(text=FAST, model="tiny", **more):
    """Return a call of POST /v1/chat/completions."""
    return lambda c: c.openai.chat.completions.create(model=model, messages=user(text), **more)


def responses(asked=FAST, model="tiny", **more):
    """Return a call of POST /v1/responses."""
    return lambda c: c.openai.responses.create(model=model, input=asked, **more)


def messages(text=FAST, model="tiny", **more):
    """Return a call of POST /v1/messages."""
    return lambda c: c.anthropic.messages.create(model=model, messages=user(text), max_tokens=99, **more)


def native(text=FAST, model="tiny", **more):
    """Return a call of POST /api/chat."""
    images = more.pop("images", None)
    return lambda c: c.ollama.chat(model, [{**user(text)[0], **({"images": images} if images else {})}], **more)


THINK, CALL, JSON = ("@@ttft=0 tps=0 script=think@@", "@@ttft=0 tps=0 script=tool@@", "@@ttft=0 tps=0 script=json@@")
FUNCTION = {"name": "weather", "description": "Weather", "parameters": CITY}
CHAT_TOOLS = [{"type": "function", "function": FUNCTION}]
RESPONSES_TOOLS = [{"type": "function", **FUNCTION}]
MESSAGES_TOOLS = [{"name": "weather", "description": "Weather", "input_schema": CITY}]
CHAT_IMAGE = [
    {"type": "text", "text": FAST},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
]
RESPONSES_IMAGE = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": FAST},
            {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"},
        ],
    }
]
MESSAGES_IMAGE = [
    {"type": "text", "text": FAST},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
]
BETA = {"betas": ["context-1m-2025-08-07"], "model": "tiny", "max_tokens": 99, "messages": user(FAST)}

# name -> (base, call)
CALLS = {
    "chat": ("proxy", chat()),
    "chat_stream": ("proxy", chat(stream=True)),
    "chat_stream_usage": ("proxy", chat(stream=True, stream_options={"include_usage": True})),
    "chat_cut_by_length": ("proxy", chat(max_tokens=2)),
    "chat_long": ("proxy", chat("@@ttft=0 tps=0 tokens=20 big=5000@@", stream=True)),
    "chat_json": ("proxy", chat(JSON, response_format={"type": "json_object"})),
    "chat_tools": ("proxy", chat(CALL, "tools", tools=CHAT_TOOLS)),
    "chat_tools_stream": ("proxy", chat(CALL, "tools", tools=CHAT_TOOLS, stream=True)),
    "chat_image": ("proxy", chat(CHAT_IMAGE)),
    "chat_thinking": ("proxy", chat(THINK, "thinker", reasoning_effort="high")),
    "chat_thinking_stream": ("proxy", chat(THINK, "thinker", stream=True)),
    "models": ("proxy", lambda c: c.openai.models.list()),
    "model": ("proxy", lambda c: c.openai.models.retrieve("tiny:latest")),
    "responses": ("proxy", responses()),
    "responses_stream": ("proxy", responses(stream=True)),
    "responses_tools": ("proxy", responses(CALL, "tools", tools=RESPONSES_TOOLS)),
    "responses_tools_stream": ("proxy", responses(CALL, "tools", tools=RESPONSES_TOOLS, stream=True)),
    "responses_image": ("proxy", responses(RESPONSES_IMAGE)),
    "responses_thinking_stream": ("proxy", responses(THINK, "thinker", stream=True)),
    "messages": ("proxy", messages()),
    "messages_stream": ("proxy", messages(stream=True)),
    "messages_system": ("proxy", messages(system="Be brief.")),
    "messages_tools": ("proxy", messages(CALL, "tools", tools=MESSAGES_TOOLS)),
    "messages_tools_stream": ("proxy", messages(CALL, "tools", tools=MESSAGES_TOOLS, stream=True)),
    "messages_image": ("proxy", messages(MESSAGES_IMAGE)),
    "messages_thinking": ("proxy", messages(THINK, "thinker", thinking={"type": "enabled", "budget_tokens": 1024})),
    "messages_thinking_stream": ("proxy", messages(THINK, "thinker", stream=True)),
    "messages_beta": ("proxy", lambda c: c.anthropic.beta.messages.create(**BETA)),
    "messages_beta_stream": ("proxy", lambda c: c.anthropic.beta.messages.create(**BETA, stream=True)),
    "version": ("proxy", lambda c: c.raw.get("/api/version")),
    "tags": ("proxy", lambda c: c.ollama.list()),
    "show": ("proxy", lambda c: c.ollama.show("thinker")),
    "api_chat": ("open", native()),
    "api_chat_stream": ("open", native(stream=True)),
    "api_chat_tools_stream": ("open", native(CALL, "tools", tools=CHAT_TOOLS, stream=True)),
    "api_chat_image": ("open", native(images=[PIXEL])),
    "api_chat_thinking_stream": ("open", native(THINK, "thinker", think=True, stream=True)),
    "api_generate_stream": ("open", lambda c: c.ollama.generate("tiny", FAST, stream=True)),
    "api_ps": ("open", lambda c: c.ollama.ps()),
}
each_call = pytest.mark.parametrize(("base", "call"), CALLS.values(), ids=CALLS)


@each_call
def test_calls_bring_the_same(base, call, servers):
    """A call brings the same bytes, and the same objects, through the proxy as from Ollama itself."""
    with Clients(servers["ollama"]) as direct, Clients(servers[base]) as through:
        expected = direct.run(call)
        assert settled(through.run(call)) == settled(expected)
        assert answers(through) == answers(direct)
        assert [(tee.status, bool(tee.octets)) for tee in direct.seen] == [(200, True)]
        assert expected


@each_call
async def test_async_calls_bring_the_same(base, call, servers):
    """The SDKs' asynchronous clients bring the same through the proxy as from Ollama itself."""
    async with AsyncClients(servers["ollama"]) as direct, AsyncClients(servers[base]) as through:
        expected = await direct.run(call)
        assert settled(await through.run(call)) == settled(expected)
        assert answers(through) == answers(direct)
        assert [(tee.status, bool(tee.octets)) for tee in direct.seen] == [(200, True)]
        assert expected


def test_all_routes_are_called(servers):
    """The comparison covers every row of the table that is open by default."""
    seen = set()
    with Clients(servers["proxy"]) as clients:
        for base, call in CALLS.values():
            if base == "proxy":
                clients.run(call)
        seen = {tee.request for tee in clients.seen}
    assert seen == {
        "POST /v1/chat/completions",
        "GET /v1/models",
        "GET /v1/models/tiny:latest",
        "POST /v1/responses",
        "POST /v1/messages",
        "GET /api/version",
        "GET /api/tags",
        "POST /api/show",
    }


def test_what_was_asked_for_is_in_the_answers(servers):
    """The comparisons above compare something: a tool call, a thought, and the words of an answer."""
    with Clients(servers["proxy"]) as clients:
        called = clients.openai.chat.completions.create(model="tools", messages=user(CALL), tools=CHAT_TOOLS)
        function = called.choices[0].message.tool_calls[0].function
        assert (function.name, json.loads(function.arguments)) == ("weather", {"city": "Paris", "days": 3})
        with clients.anthropic.messages.stream(model="thinker", messages=user(THINK), max_tokens=99) as stream:
            thought, said = stream.get_final_message().content
        assert (thought.thinking, said.text) == ("let me think about it", "The answer is forty-two.")
        with clients.openai.responses.stream(model="tiny", input=FAST) as stream:
            assert stream.get_final_response().output_text == "Are of may sound see"


# --- errors -----------------------------------------------------------------------------------------------------------

ERRORS = {
    "chat_unknown_model": ("proxy", chat(model="nope"), openai.NotFoundError),
    "chat_unknown_model_stream": ("proxy", chat(model="nope", stream=True), openai.NotFoundError),
    "chat_image_by_url": (
        "proxy",
        chat([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]),
        openai.BadRequestError,
    ),
    "model_unknown": ("proxy", lambda c: c.openai.models.retrieve("nope"), openai.NotFoundError),
    "responses_unknown_model": ("proxy", responses(model="nope"), openai.NotFoundError),
    "messages_unknown_model": ("proxy", messages(model="nope"), anthropic.NotFoundError),
    "messages_tools_unknown": ("proxy", messages(tools=MESSAGES_TOOLS), anthropic.BadRequestError),
    "show_unknown_model": ("proxy", lambda c: c.ollama.show("nope"), ollama.ResponseError),
    "api_chat_unknown_model": ("open", native(model="nope"), ollama.ResponseError),
    "chat_cloud_model": ("open", chat(model="gpt-oss:120b-cloud"), openai.PermissionDeniedError),
    "chat_runner_fails": ("proxy", chat("@@err=500@@"), openai.InternalServerError),
    "messages_runner_fails": ("proxy", messages("@@err=500@@", stream=True), anthropic.InternalServerError),
}


@pytest.mark.parametrize(("base", "call", "kind"), ERRORS.values(), ids=ERRORS)
def test_errors_are_the_same(base, call, kind, servers):
    """What Ollama itself refuses raises the same error with the same words, after as many tries."""
    with Clients(servers["ollama"]) as direct, Clients(servers[base]) as through:
        for clients in (direct, through):
            clients.openai.max_retries = clients.anthropic.max_retries = 1
        with pytest.raises(kind) as expected:
            direct.run(call)
        with pytest.raises(kind) as raised:
            through.run(call)
        assert settled(str(raised.value)) == settled(str(expected.value))
        assert raised.type is expected.type
        assert answers(through) == answers(direct)


BLOCKED = {
    "cloud_chat": (chat(model="gpt-oss:120b-cloud"), "`local_only = false`"),
    "cloud_messages": (messages(model="gpt-oss:120b-cloud"), "`local_only = false`"),
    "cloud_show": (lambda c: c.ollama.show("gpt-oss:120b-cloud"), "`local_only = false`"),
    "pull": (lambda c: c.ollama.pull("tiny"), "`ollama pull`"),
    "delete": (lambda c: c.ollama.delete("tiny"), "`ollama rm`"),
    "copy": (lambda c: c.ollama.copy("tiny", "mine"), "`ollama cp`"),
    "create": (lambda c: c.ollama.create("mine", from_="tiny"), "`ollama create`"),
    "push": (lambda c: c.ollama.push("tiny"), "`ollama push`"),
    "api_chat": (native(), '`allow = ["POST /api/chat"]`'),
    "api_chat_stream": (native(stream=True), '`allow = ["POST /api/chat"]`'),
    "api_generate": (lambda c: c.ollama.generate("tiny", FAST), '`allow = ["POST /api/generate"]`'),
    "api_ps": (lambda c: c.ollama.ps(), '`allow = ["GET /api/ps"]`'),
    "embeddings": (lambda c: c.openai.embeddings.create(model="tiny", input="x"), '`allow = ["POST /v1/embeddings"]`'),
    "completions": (
        lambda c: c.openai.completions.create(model="tiny", prompt="x"),
        '`allow = ["POST /v1/completions"]`',
    ),
    "stored_response": (lambda c: c.openai.responses.retrieve("resp_1"), "GET /v1/responses/resp_1"),
    "files": (lambda c: c.openai.files.list(), "GET /v1/files"),
    "count_tokens": (
        lambda c: c.anthropic.messages.count_tokens(model="tiny", messages=user("x")),
        "POST /v1/messages/count_tokens",
    ),
    "batches": (lambda c: c.anthropic.messages.batches.list(), "GET /v1/messages/batches"),
}
KINDS = {"openai": openai.PermissionDeniedError, "anthropic": anthropic.PermissionDeniedError}


def raised_by(error: Exception) -> tuple[int, str]:
    """Return the status and the sentence that a user of any SDK is shown."""
    if isinstance(error, ollama.ResponseError):
        return error.status_code, error.error
    assert type(error) in KINDS.values()
    return error.status_code, error.body["error"]["message"] if "error" in error.body else error.body["message"]


@pytest.mark.parametrize(("call", "words"), BLOCKED.values(), ids=BLOCKED)
async def test_blocked_calls_raise_the_permission_error(call, words, servers):
    """A blocked call raises the SDK's own permission error, whose sentence helps, and is not tried again."""
    errors = (ollama.ResponseError, *KINDS.values())
    with Clients(servers["proxy"]) as clients:
        with pytest.raises(errors) as raised:
            clients.run(call)
        assert len(clients.seen) == 1
    async with AsyncClients(servers["proxy"]) as clients:
        with pytest.raises(errors) as raised_later:
            await clients.run(call)
        assert len(clients.seen) == 1
    for error in (raised.value, raised_later.value):
        status, sentence = raised_by(error)
        assert status == 403
        assert ("is not on this proxy's allowlist" in sentence) is ("local_only" not in words)
        assert words in sentence
        assert sentence in str(error)  # what is printed when nobody catches it


def test_blocked_calls_change_nothing(servers):
    """Ollama has the same models after every blocked call."""
    with Clients(servers["ollama"]) as direct, Clients(servers["proxy"]) as through:
        before = direct.run(lambda c: c.ollama.list())
        for name in ("pull", "delete", "copy", "create"):
            with pytest.raises(ollama.ResponseError):
                through.run(BLOCKED[name][0])
        assert direct.run(lambda c: c.ollama.list()) == before


BROKEN = "Ollama stopped before its answer was complete"
UNFINISHED = "Ollama ended its answer without finishing it"
BREAKS = {
    "chat_cut": ("proxy", chat("@@tps=0 drop=3@@", stream=True), openai.APIError, BROKEN),
    "chat_unfinished": ("proxy", chat("@@tps=0 die=3@@", stream=True), openai.APIError, UNFINISHED),
    "chat_repeats": ("proxy", chat("@@tps=0 repeat=3@@", stream=True), openai.APIError, UNFINISHED),
    "responses_cut": ("proxy", responses("@@tps=0 drop=3@@", stream=True), openai.APIError, BROKEN),
    "responses_unfinished": ("proxy", responses("@@tps=0 die=3@@", stream=True), openai.APIError, UNFINISHED),
    "messages_cut": ("proxy", messages("@@tps=0 drop=3@@", stream=True), anthropic.APIError, BROKEN),
    "messages_unfinished": ("proxy", messages("@@tps=0 die=3@@", stream=True), anthropic.APIError, UNFINISHED),
    "api_chat_cut": ("open", native("@@tps=0 drop=3@@", stream=True), ollama.ResponseError, BROKEN),
    "api_chat_told_by_ollama": ("open", native("@@tps=0 die=3@@", stream=True), ollama.ResponseError, "told to die"),
    "api_chat_repeats": ("open", native("@@tps=0 repeat=3@@", stream=True), ollama.ResponseError, UNFINISHED),
}


@pytest.mark.parametrize(("base", "call", "kind", "words"), BREAKS.values(), ids=BREAKS)
def test_broken_streams_raise(base, call, kind, words, servers):
    """An answer that is not complete raises the SDK's error, which says what happened, after what had arrived."""
    with Clients(servers[base]) as clients:
        stream = iter(call(clients))
        assert next(stream)
        with pytest.raises(kind) as raised:
            for _ in stream:
                pass
        assert words in str(raised.value)
        assert len(clients.seen) == 1


@pytest.mark.parametrize("name", ["chat_unfinished", "chat_repeats", "responses_unfinished", "messages_unfinished"])
def test_streams_that_end_unfinished_seem_whole_without_the_proxy(name, servers):
    """From Ollama itself an answer that failed after its first token looks complete: there the proxy adds something."""
    with Clients(servers["ollama"]) as direct:
        assert len(direct.run(BREAKS[name][1])) >= 3


# --- a coding client --------------------------------------------------------------------------------------------------


def test_requests_of_a_coding_client(servers):
    """Claude Code's probe is refused without content; its large request with query and long fields is answered."""
    asked = {"model": "tools", "max_tokens": 32_000, "stream": True, "messages": user(FAST), "tools": MESSAGES_TOOLS}
    asked["system"] = [{"type": "text", "text": "Be brief. " * 7_580, "cache_control": {"type": "ephemeral"}}]
    fields = {
        "User-Agent": "claude-cli/2.1.330 (external, cli)",
        "x-app": "cli",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": ",".join(f"some-feature-2026-01-{day:02}" for day in range(1, 29)),
    }
    with Clients(servers["ollama"]) as direct, Clients(servers["proxy"]) as through:
        refused = through.raw.head("/")
        assert (refused.status_code, refused.content) == (403, b"")
        content = json.dumps(asked).encode()
        assert len(content) > 76_000
        told = [c.raw.post("/v1/messages?beta=true", content=content, headers=fields) for c in (through, direct)]
        assert [answer.status_code for answer in told] == [200, 200]
        assert settled(told[0].content) == settled(told[1].content)
        assert "event: message_stop" in told[0].text


# --- one by one -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def script(servers):
    """Give an upstream that sends an event when the test says so, before which a proxy stands."""
    upstream = Upstream()
    upstream.lists = True
    await upstream.start(int(servers["script"].rpartition(":")[2]))
    yield upstream
    await upstream.stop()


STREAMS = {
    "chat": (chat(stream=True), "/v1/chat/completions"),
    "responses": (responses(stream=True), "/v1/responses"),
    "messages": (messages(stream=True), "/v1/messages"),
    "api_chat": (native(stream=True), "/api/chat"),
}


@pytest.mark.parametrize("call", [call for call, _ in STREAMS.values()], ids=STREAMS)
async def test_each_event_arrives_before_the_next_is_sent(call, servers, script):
    """Each event is in the SDK's hands before the upstream sends the next: nothing is held back, on any surface."""
    async with AsyncClients(servers["ollama"]) as direct:
        expected = await direct.run(call)
        octets = direct.seen[0].octets
        media_type = direct.seen[0].type
    end = b"\n" if media_type == "application/x-ndjson" else b"\n\n"
    events = [event + end for event in octets.split(end) if event]
    # The terminators that no SDK shows ([DONE]) go with the last event that it does.
    events[len(expected) - 1 :] = [b"".join(events[len(expected) - 1 :])]
    steps = [step for event in events for step in (chunk(event), NEXT)]
    script.answers(stream_head(media_type.encode()), *steps, LAST_CHUNK)
    async with AsyncClients(servers["puppet"]) as through:
        stream = await within(asyncio.ensure_future(call(through)))
        arrived = aiter(stream)
        for event in expected:
            assert settled(gathered(await within(anext(arrived)))) == settled(event)
            script.proceed()
        with pytest.raises(StopAsyncIteration):
            await within(anext(arrived))
        assert through.seen[0].octets == octets
    assert len(expected) >= 6


# --- base URLs that end in slashes ------------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": FAST}]
SLASHED = {
    "chat": (lambda c: c.openai.chat.completions.create(model="tiny", messages=HELLO), True),
    "chat_stream": (lambda c: c.openai.chat.completions.create(model="tiny", messages=HELLO, stream=True), True),
    "models": (lambda c: c.openai.models.list(), True),
    "responses": (lambda c: c.openai.responses.create(model="tiny", input=FAST), True),
    "messages": (lambda c: c.anthropic.messages.create(model="tiny", max_tokens=9, messages=HELLO), True),
    "native_chat": (lambda c: c.ollama.chat("tiny", HELLO), False),  # it cuts them itself
}


@pytest.mark.parametrize(("call", "redirected"), SLASHED.values(), ids=SLASHED)
def test_base_urls_that_end_in_slashes(call, redirected, servers):
    """SDKs follow the redirect from doubled slashes with their content, as they follow Ollama's own."""
    with Clients(servers["open"]) as right, Clients(f"{servers['open']}//") as wrong:
        assert settled(wrong.run(call)) == settled(right.run(call))
    assert [each.status for each in wrong.seen] == [*[308] * redirected, 200]
