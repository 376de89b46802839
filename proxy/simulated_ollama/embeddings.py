"""The embedding routes: meaningless vectors, from models that are loaded as for any other request."""

from __future__ import annotations

import asyncio
import math
import struct as binary
import time
from typing import TYPE_CHECKING

import orjson

from proxy.simulated_ollama.asks import Complaint, load_options, seconds
from proxy.simulated_ollama.go.json import Json, JsonError, dump, struct
from proxy.simulated_ollama.inference import Host, admitted, content, find, refuse_cloud
from proxy.simulated_ollama.metadata import native, native_fields
from proxy.simulated_ollama.runner import Ask, Failed
from proxy.simulated_ollama.voices import V1_JSON, openai_error

if TYPE_CHECKING:
    from proxy.simulated_ollama.go.head import Head
    from proxy.simulated_ollama.go.http import Connection, Reply
    from proxy.simulated_ollama.models import Model


async def embed(host: Host, head: Head, reply: Reply, connection: Connection) -> None:
    """POST /api/embed."""
    started = time.perf_counter_ns()
    fields, model = await _asked_to_embed(host, head, reply, connection, "api.EmbedRequest")
    vectors, tokens = _embeddings(model, fields.get("input") or [])
    passed = time.perf_counter_ns() - started
    counts = {"total_duration": passed, "load_duration": passed, "prompt_eval_count": tokens}
    await native(reply, {"model": fields["model"], "embeddings": vectors, **counts})


async def embeddings(host: Host, head: Head, reply: Reply, connection: Connection) -> None:
    """POST /api/embeddings, the older one: one prompt, one vector."""
    fields, model = await _asked_to_embed(host, head, reply, connection, "api.EmbeddingRequest")
    await native(reply, {"embedding": _embeddings(model, fields.get("prompt", ""))[0][0]})


async def v1_embeddings(host: Host, head: Head, reply: Reply, connection: Connection) -> None:
    """POST /v1/embeddings."""
    body = await content(reply, head, host.release)
    try:
        fields = struct(body, "openai.EmbedRequest", {"model": "string"})
    except JsonError as error:
        await native(reply, openai_error(400, str(error)), 400)
        return
    if await refuse_cloud(host, reply, fields.get("model", "")):
        return
    try:
        model = _embedder(host, fields)
        await _load(host, model, Ask(model.name, stream=False, turns=[]), connection)
    except Failed as failure:
        await reply.whole(failure.status, dump(openai_error(failure.status, failure.text)) + b"\n", V1_JSON)
        return
    vectors, tokens = _embeddings(model, fields.get("input", ""))
    data = [{"object": "embedding", "embedding": vector, "index": index} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": fields["model"], "usage": usage}
    await reply.whole(200, dump(answer) + b"\n", V1_JSON)


async def _asked_to_embed(
    host: Host, head: Head, reply: Reply, connection: Connection, name: str
) -> tuple[dict[str, Json], Model]:
    """Return a request's fields and its model, now loaded. Raises Failed."""
    fields = await native_fields(host, head, reply, name)
    model = _embedder(host, fields)
    try:
        keep_alive = seconds(fields["keep_alive"]) if "keep_alive" in fields else None
    except Complaint as complaint:
        raise Failed(400, str(complaint)) from None
    await _load(
        host,
        model,
        Ask(model.name, stream=False, turns=[], keep_alive=keep_alive, load=load_options(fields)),
        connection,
    )
    return fields, model


def _embedder(host: Host, fields: dict[str, Json]) -> Model:
    name = fields.get("model", "")
    model = find(host, name)
    return model if model and "embedding" in model.capabilities else admitted(host, Ask(name, stream=False, turns=[]))


async def _load(host: Host, model: Model, ask: Ask, connection: Connection) -> None:
    """Have a model loaded. Raises Failed, also when the caller leaves meanwhile."""
    task = connection.task
    connection.watch(task.cancel)
    try:
        runner = await host.scheduler.runner(model, ask)
    except asyncio.CancelledError:
        if not connection.left:
            raise  # the server is closing
        task.uncancel()
        raise Failed(499, "request canceled") from None
    finally:
        connection.watch(None)
    host.scheduler.begin(runner)
    host.scheduler.end(runner)


def _embeddings(model: Model, asked: Json) -> tuple[list[Json], int]:
    """Return a vector for each text, the same for all, of length one; and the words of all texts."""
    texts = asked if isinstance(asked, list) else [asked]
    length = math.sqrt(sum((index % 7) ** 2 for index in range(model.shape.embedding)))
    vector = [_float32(index % 7 / length) for index in range(model.shape.embedding)]
    return [vector for _ in texts], sum(len(str(text).split()) for text in texts)


def _float32(number: float) -> Json:
    """Return a number as Go prints a float32: the shortest digits that mean it."""
    (single,) = binary.unpack("f", binary.pack("f", number))
    digits = next(
        text
        for text in (f"{single:.{places}g}" for places in range(1, 10))
        if binary.unpack("f", binary.pack("f", float(text))) == (single,)
    )
    return orjson.Fragment(digits.encode())
