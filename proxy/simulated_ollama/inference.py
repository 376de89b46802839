"""The life of a request for an answer: read, admitted, scheduled, answered; and what happens if its client leaves.

Ollama runs a request under a context that ends when the caller leaves; here that is a cancellation of the task, and
`_left` says what comes of it at each stage.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from proxy.reading.names import ModelNameError, is_cloud, normal_name
from proxy.simulated_ollama.asks import MESSAGES_TYPES, READERS, TYPES, Complaint
from proxy.simulated_ollama.go.http import BodyError
from proxy.simulated_ollama.go.json import Json, JsonError, dump, first_value, folded, struct
from proxy.simulated_ollama.models import Model, registry_name
from proxy.simulated_ollama.runner import Ask, Dropped, Failed, Message, Plan, Stage, plan, speak
from proxy.simulated_ollama.voices import NATIVE_JSON, V1_JSON, Voice, native_error

if TYPE_CHECKING:
    from proxy.simulated_ollama.go.head import Head
    from proxy.simulated_ollama.go.http import Connection, Reply
    from proxy.simulated_ollama.scheduler import Scheduler

# The unpacked size limit of a zstd body in bytes, and the first version that unpacks one.
_UNPACKED_LIMIT = 20 << 20
_ZSTD_SINCE = (0, 18, 0)
_CLOUD_OFF = "ollama cloud is disabled: remote model is unavailable"
SIGN_IN = {"error": "unauthorized", "signin_url": "https://ollama.com/connect?name=mac&key=c3NoLWVkMjU1MTk"}


class Host(Protocol):
    """What of the simulated Ollama an answer needs."""

    models: dict[str, Model]
    registry: dict[str, Model]
    blobs: set[str]
    pull_rate: float
    pulled: dict[str, int]
    version: str
    signed_out: bool
    scheduler: Scheduler
    release: tuple[int, ...]
    tokens_per_second: float
    speed: float
    leak_window: float
    cloud: bool
    disconnects: int
    leaked: int
    stopped: int

    def changed(self) -> None:
        """Wake those who wait for a counter."""


async def content(reply: Reply, head: Head, release: tuple[int, ...]) -> bytes:
    """Return the request's content, unpacked on /v1. Raises Failed."""
    try:
        body = await reply.body()
        if head.get("content-encoding") == "zstd" and head.path.startswith("/v1/") and release >= _ZSTD_SINCE:
            body = _unpacked(body)
    except BodyError as error:
        raise Failed(400, str(error)) from None
    return body


def _unpacked(body: bytes) -> bytes:
    try:
        import zstandard  # noqa: PLC0415 - optional: without it a packed body is as strange as a gzip one
    except ImportError:
        return body
    reader = zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(body)
    try:
        unpacked: bytes = reader.read(_UNPACKED_LIMIT + 1)
    except zstandard.ZstdError as error:
        raise BodyError(str(error)) from None
    if len(unpacked) > _UNPACKED_LIMIT:
        raise BodyError("http: request body too large")
    return unpacked


async def refuse_cloud(host: Host, reply: Reply, name: str, text: str = _CLOUD_OFF, *, shows: bool = False) -> bool:
    """Answer a request for a model that runs elsewhere, in native shape on every surface.

    By `cloudPassthroughMiddleware` in server/cloud_proxy.go, and `ChatHandler` and `GetModelInfo` in server/routes.go:
    with the cloud on, what is here of a stub is shown (`shows`).
    """
    model = find(host, name)
    if not is_cloud(name) and not (model and model.remote_host and not (shows and host.cloud)):
        return False
    refusal = (401, SIGN_IN) if host.cloud else (403, native_error(403, text))
    await reply.whole(refusal[0], dump(refusal[1]), NATIVE_JSON)
    return True


def find(host: Host, name: str) -> Model | None:
    """Return the model of that name, if it is one and there is one."""
    try:
        return host.models.get(normal_name(name))
    except ModelNameError:
        return None


async def infer(handler: str, host: Host, head: Head, reply: Reply, connection: Connection) -> None:
    """Answer one of the routes that make a model speak; `handler` is its name among READERS."""
    body = await content(reply, head, host.release)
    if await refuse_cloud(host, reply, _named(body)):
        return
    reader, go_type, error = READERS[handler]
    messages = {"messages": MESSAGES_TYPES[handler]} if handler in MESSAGES_TYPES else {}
    try:
        ask, voice = reader(struct(body, go_type, TYPES | messages), host.release)
    except (JsonError, Complaint) as complaint:
        text = "missing request body" if error is native_error and str(complaint) == "EOF" else str(complaint)
        await reply.whole(400, dump(error(400, text)), NATIVE_JSON)
        return
    if ask.stream:
        for name, value in voice.lead:
            reply.set(name, value)
    try:
        if not ask.name and handler != "generate":
            raise Failed(400, "model is required")
        purpose = "generate" if handler in ("generate", "completions") else "chat"
        await _attend(host, admitted(host, ask, purpose), ask, voice, reply, connection)
    except Failed as failure:
        await _fail(host, failure, ask, voice, reply)


def _named(body: bytes) -> str:
    try:
        name = folded(first_value(body)).get("model")
    except JsonError:
        return ""
    return name if isinstance(name, str) else ""


def admitted(host: Host, ask: Ask, purpose: str = "chat") -> Model:
    """Return the model that `ask` names, if it can do what is asked; `purpose` is the word for that. Raises Failed."""
    if not ask.name:
        raise Failed(404, "model '' not found")
    try:
        model = host.models.get(normal_name(ask.name))
    except ModelNameError:
        raise Failed(400, "invalid model name") from None
    if model is None:
        raise Failed(404, f"model '{ask.name}' not found")
    if not model.can("completion"):
        raise Failed(400, f'"{ask.name}" does not support {purpose}')
    if ask.tools and not model.can("tools"):
        raise Failed(400, f"{registry_name(model)} does not support tools")
    if ask.think and ask.think_strictly and not model.can("thinking"):
        raise Failed(400, f'"{ask.name}" does not support thinking')
    return model


async def _attend(host: Host, model: Model, ask: Ask, voice: Voice, reply: Reply, connection: Connection) -> None:
    """Schedule and speak for as long as the caller stays. Raises Failed."""
    task = connection.task
    begun = time.monotonic_ns()
    connection.watch(task.cancel)
    try:
        await asyncio.sleep(host.leak_window)  # the scheduler's moment, in which a caller's leaving is overlooked
        if ask.load_only and ask.keep_alive == 0:
            if (loaded := host.scheduler.runners.get(model.name)) is not None:
                host.scheduler.unload(loaded)
            await _whole(reply, voice, Message(reason="unload"))
            return
        runner = await host.scheduler.runner(model, ask)
        host.scheduler.begin(runner)
        try:
            if ask.load_only:
                await _loaded(reply, voice)
                return
            async with runner.slots:
                ask.stage = Stage.RUNNING
                await _speak(host, plan(ask, model), time.monotonic_ns() - begun, voice, reply)
        finally:
            host.scheduler.end(runner)
    except asyncio.CancelledError:
        if not connection.left:
            raise  # the server is closing
        task.uncancel()
        _left(host, ask, reply, connection)
    except Dropped:
        connection.finish()
    except Failed as failure:
        if failure.runner_died:
            host.scheduler.unload(runner)
        raise
    finally:
        connection.watch(None)


def _left(host: Host, ask: Ask, reply: Reply, connection: Connection) -> None:
    """Note that the caller left. Raises Failed with what Ollama still says to it."""
    if ask.stage in (Stage.SCHEDULER, Stage.QUEUED):
        host.leaked += 1
        connection.keep()
        host.changed()
        return
    if ask.stage is Stage.RUNNING:
        host.stopped += 1
        host.disconnects += reply.begun
    host.changed()
    if ask.stage is Stage.LOADING:
        raise Failed(499, "request canceled")
    raise Failed(500, "error reading llama-server response: context canceled" if reply.begun else "context canceled")


async def _loaded(reply: Reply, voice: Voice) -> None:
    """Answer a request that only loads: at once on /api whatever it says of streams, as an empty answer on /v1."""
    if voice.json_type == V1_JSON and voice.ask.stream:
        await _say(reply, voice, Message(reason="stop"))
        await reply.end()
    else:
        await _whole(reply, voice, Message(reason="load"))


async def _whole(reply: Reply, voice: Voice, message: Message) -> None:
    await reply.whole(200, voice.json(voice.whole(message)), voice.json_type)


async def _say(reply: Reply, voice: Voice, message: Message) -> None:
    if not reply.begun:
        reply.set("Content-Type", voice.stream_type)
    for data in voice.say(message):
        await reply.chunk(data)


async def _speak(host: Host, plan: Plan, load: int, voice: Voice, reply: Reply) -> None:
    """Send what the runner says: as it comes, or gathered. Raises Failed, Dropped."""
    said = Message()
    async for message in speak(plan, host.tokens_per_second, host.speed, load):
        if voice.ask.stream:
            await _say(reply, voice, message)
        else:
            said = _joined(said, message)
    if voice.ask.stream:
        await reply.end()
    else:
        await _whole(reply, voice, said)


def _joined(said: Message, more: Message) -> Message:
    return Message(
        text=said.text + more.text,
        thinking=said.thinking + more.thinking,
        calls=said.calls + more.calls,
        reason=more.reason,
        stats=more.stats,
    )


async def _fail(host: Host, failure: Failed, ask: Ask, voice: Voice, reply: Reply) -> None:
    """Answer with an error, or break off an answer as the surface does: with HTTP none the wiser."""
    if reply.begun:
        for data in voice.broken(failure.text):
            await reply.chunk(data)
        await reply.end()
        host.changed()
        return
    error: Json = voice.error(failure.status, failure.text)
    if ask.stream and ask.stage is Stage.RUNNING:  # the stream had been opened, so the error is chunked
        reply.set("Content-Type", V1_JSON)
        await reply.chunk(voice.json(error), failure.status)
        await reply.end()
    else:
        await reply.whole(failure.status, voice.json(error), voice.json_type)
