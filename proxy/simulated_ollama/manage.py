"""The routes that change what is on the machine, or use its owner's account: what a proxy must never let through.

They work, so that a test of a way round the proxy sees the damage: a model that is gone, a pull that has begun.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from proxy.simulated_ollama.go.json import Json, dump
from proxy.simulated_ollama.inference import SIGN_IN, Host, find
from proxy.simulated_ollama.metadata import existing, named, native, native_fields, normal
from proxy.simulated_ollama.models import Model, copied
from proxy.simulated_ollama.runner import Failed
from proxy.simulated_ollama.voices import NATIVE_JSON, V1_JSON, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.simulated_ollama.go.head import Head
    from proxy.simulated_ollama.go.http import Connection, Reply

# Seconds between two reports of a download.
_REPORT_EVERY = 0.06
_NO_MANIFEST = "pull model manifest: file does not exist"


async def pull(host: Host, head: Head, reply: Reply, connection: Connection) -> None:
    """POST /api/pull: progress as NDJSON, and errors inside a 200 unless `stream` is false.

    Names in the simulated registry are available. A client that leaves stops the pull; the next one continues from
    there.
    """
    fields = await native_fields(host, head, reply, "api.PullRequest")
    lines = _pull(host, named(fields), normal(named(fields)))
    if fields.get("stream", True) is False:
        *_, last = lines
        error = "error" in last
        await reply.whole(500 if error else 200, dump(last), V1_JSON if error else NATIVE_JSON)
        return
    await _stream(host, lines, reply, connection)


def _pull(host: Host, asked: str, name: str) -> Iterator[Json]:
    """Yield a pull's reports as they come: what was reported of a layer stays if the pull ends there."""
    yield {"status": "pulling manifest"}
    model = host.registry.get(name)
    if model is None and "://" in asked:
        place, _, path = asked.partition("://")[2].partition("/")
        url = f"{asked.partition('://')[0]}://{place}/v2/{path.partition(':')[0]}/manifests/{name.rpartition(':')[2]}"
        yield {"error": f'pull model manifest: Get "{url}": dial tcp {place}: connect: connection refused'}
        return
    if model is None:
        yield {"error": _NO_MANIFEST}
        return
    for digest, size in _layers(model):
        for line in _layer(host, digest, size):
            yield line
            if model.pull_fails and 2 * host.pulled[digest] >= size:
                yield {"error": model.pull_fails}
                return
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
    host.models[name] = model
    host.changed()
    yield {"status": "success"}


def _layers(model: Model) -> Iterator[tuple[str, int]]:
    """Yield digest and bytes of each layer."""
    for number, size in enumerate(model.layers or (model.size,)):
        yield hashlib.sha256(f"{model.digest} {number}".encode()).hexdigest() if number else model.digest, size


def _layer(host: Host, digest: str, size: int) -> Iterator[Json]:
    """Yield the reports on one layer, from its present bytes on; a complete layer has one report."""
    report = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": size}
    here = host.pulled.setdefault(digest, 0)
    yield report | ({"completed": here} if here else {})
    step = int(host.pull_rate * _REPORT_EVERY) or -(-size // 4)
    while here < size:
        here = host.pulled[digest] = min(size, here + step)
        host.changed()
        yield report | {"completed": here}


async def _stream(host: Host, lines: Iterable[Json], reply: Reply, connection: Connection) -> None:
    """Send progress lines at their pace; stops when the caller leaves."""
    task = connection.task
    reply.set("Content-Type", "application/x-ndjson")
    connection.watch(task.cancel)
    try:
        for line in lines:
            await reply.chunk(dump(line) + b"\n")
            if "completed" in line:
                await asyncio.sleep(_REPORT_EVERY / host.speed)
        await reply.end()
    except asyncio.CancelledError:
        if not connection.left:
            raise
        task.uncancel()
        host.disconnects += 1
        host.changed()
    finally:
        connection.watch(None)


async def push(host: Host, head: Head, reply: Reply, connection: Connection) -> None:
    """POST /api/push: refused by the registry, because nobody is signed in."""
    fields = await native_fields(host, head, reply, "api.PushRequest")
    if find(host, named(fields)) is None:
        raise Failed(404, f"model '{fields.get('model', '')}' not found")
    error = "you are not authorized to push to this namespace, create the model under a namespace you own"
    await _stream(host, [{"status": "retrieving manifest"}, {"error": error}], reply, connection)


async def create(host: Host, head: Head, reply: Reply, connection: Connection) -> None:
    """POST /api/create: a copy of `from` under a new name."""
    fields = await native_fields(host, head, reply, "api.CreateRequest")
    name = normal(named(fields))
    source = find(host, fields.get("from", ""))
    if source is None:
        raise Failed(400, "neither 'from' or 'files' was specified")
    host.models[name] = copied(source, name, timestamp())
    lines: list[Json] = [{"status": "writing manifest"}, {"status": "success"}]
    await _stream(host, lines, reply, connection)


async def copy(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """POST /api/copy."""
    fields = await native_fields(host, head, reply, "api.CopyRequest")
    asked = fields.get("destination", "")
    target = normal(asked, f'destination "{asked}" is invalid')
    source = find(host, fields.get("source", ""))
    if source is None:
        raise Failed(404, f'model "{fields.get("source", "")}" not found')
    host.models[target] = copied(source, target, timestamp())
    await reply.whole(200)


async def delete(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """DELETE /api/delete."""
    asked = named(await native_fields(host, head, reply, "api.DeleteRequest"))
    model = existing(host, asked, tagged=False)
    del host.models[model.name]
    for digest, _ in _layers(model):
        host.pulled.pop(digest, None)
    await reply.whole(200)


async def blob_head(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """HEAD /api/blobs/{digest}."""
    await reply.whole(200 if head.path.rpartition("/")[2] in host.blobs else 404)


async def blob_put(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """POST /api/blobs/{digest}."""
    asked = head.path.rpartition("/")[2]
    digest = f"sha256:{hashlib.sha256(await reply.body()).hexdigest()}"
    if digest != asked:
        raise Failed(400, f"digest mismatch, expected {asked!r}, got {digest!r}")
    host.blobs.add(digest)
    await reply.whole(201)


async def me(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """POST /api/me, and other routes that need the owner's ollama.com account: nobody is signed in."""
    await native(reply, SIGN_IN, 401)


async def signout(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """POST /api/signout, DELETE /api/user/keys/{key}."""
    host.signed_out = True
    await native(reply, None)


async def recommendations(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """GET /api/experimental/model-recommendations."""
    await native(reply, {"recommendations": []})
