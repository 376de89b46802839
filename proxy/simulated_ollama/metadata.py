"""The routes that describe models without running one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.reading.names import ModelNameError, normal_name
from proxy.simulated_ollama.go.json import Json, JsonError, dump, struct
from proxy.simulated_ollama.inference import Host, content, refuse_cloud
from proxy.simulated_ollama.models import Model, openai_entry, ps_entry, show, tag_entry
from proxy.simulated_ollama.runner import Failed
from proxy.simulated_ollama.voices import NATIVE_JSON, V1_JSON, openai_error

if TYPE_CHECKING:
    from proxy.simulated_ollama.go.head import Head
    from proxy.simulated_ollama.go.http import Connection, Reply

_DETAILS_OFF = "ollama cloud is disabled: remote model details are unavailable"
_LISTED_SINCE, _SHOWN_SINCE = (0, 30, 0), (0, 6, 4)  # first reported capabilities, in /api/tags and show


async def tell_root(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """GET, HEAD /."""
    await reply.whole(200, b"Ollama is running", "text/plain; charset=utf-8")


async def tell_version(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """GET, HEAD /api/version."""
    await native(reply, {"version": host.version})


async def tell_status(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """GET /api/status, by `StatusHandler` in server/routes.go."""
    await native(reply, {"cloud": {"disabled": not host.cloud, "source": "none" if host.cloud else "env"}})


async def tell_tags(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """GET, HEAD /api/tags."""
    entries = [tag_entry(model) for model in _newest_first(host)]
    for entry in entries if host.release < _LISTED_SINCE else ():
        del entry["capabilities"]
    await native(reply, {"models": entries})


async def tell_ps(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """GET /api/ps: the loaded models, the longest-lived first."""
    runners = sorted(host.scheduler.runners.values(), key=lambda runner: runner.expires_at, reverse=True)
    entries = [
        ps_entry(runner.model, f"{runner.expires_at:%Y-%m-%dT%H:%M:%S.%f}Z", dict(runner.load).get("num_ctx"))
        for runner in runners
    ]
    await native(reply, {"models": entries})


async def tell_models(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """GET /v1/models; without models Go's nil slice is null."""
    entries = [openai_entry(model) for model in _newest_first(host)]
    await reply.whole(200, dump({"object": "list", "data": entries or None}) + b"\n", V1_JSON)


async def tell_model(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """GET /v1/models/{model}: the id is the text asked for."""
    asked = head.path.rpartition("/")[2]
    if await refuse_cloud(host, reply, asked, _DETAILS_OFF, shows=True):
        return
    try:
        name = normal_name(asked)
    except ModelNameError:
        status, answer = 400, openai_error(400, "invalid model name")
    else:
        model = host.models.get(name)
        shown = asked if ":" in asked else f"{asked}:latest"
        status = 200 if model else 404
        answer = openai_entry(model, asked) if model else openai_error(404, f"model '{shown}' not found")
    await reply.whole(status, dump(answer) + b"\n", V1_JSON)


async def tell_show(host: Host, head: Head, reply: Reply, connection: Connection) -> None:  # noqa: ARG001
    """POST /api/show."""
    asked = named(await native_fields(host, head, reply, "api.ShowRequest"))
    if not asked:
        raise Failed(400, "model is required")
    if not await refuse_cloud(host, reply, asked, _DETAILS_OFF, shows=True):
        model = existing(host, asked)
        told = show(model, asked if head.get("user-agent").startswith("GitHubCopilotChat/") else None)
        if host.release < _SHOWN_SINCE:
            del told["capabilities"]
        await native(reply, told)


async def native(reply: Reply, value: Json, status: int = 200) -> None:
    """Answer as the handlers of /api do."""
    await reply.whole(status, dump(value), NATIVE_JSON)


async def native_fields(host: Host, head: Head, reply: Reply, go_type: str) -> dict[str, Json]:
    """Return the decoded body of a native request. Raises Failed."""
    body = await content(reply, head, host.release)
    try:
        return struct(body, go_type, {"model": "string", "name": "string", "stream": "bool"})
    except JsonError as error:
        raise Failed(400, "missing request body" if str(error) == "EOF" else str(error)) from None


def named(fields: dict[str, Json]) -> str:
    """Return the model's name in a native request, "" without one."""
    name: str = fields.get("model") or fields.get("name") or ""
    return name


def normal(asked: str, otherwise: str = "invalid model name") -> str:
    """Return a name in its normal form. Raises Failed."""
    try:
        return normal_name(asked)
    except ModelNameError:
        raise Failed(400, otherwise) from None


def existing(host: Host, asked: str, *, tagged: bool = True) -> Model:
    """Return the model of that name. Raises Failed."""
    model = host.models.get(normal(asked))
    if model is None:
        shown = f"{asked}:latest" if tagged and ":" not in asked else asked
        raise Failed(404, f"model '{shown}' not found")
    return model


def _newest_first(host: Host) -> list[Model]:
    """By whole seconds, as Ollama sorts; within one second it keeps no order, here that of the store."""
    return sorted(host.models.values(), key=lambda model: -model.created)
