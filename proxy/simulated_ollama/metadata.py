"""The routes that describe models without running one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.manage.ollama.model_names import ModelNameError, normal_name
from proxy.simulated_ollama.go.json import Json, JsonError, dump, struct
from proxy.simulated_ollama.inference import Host, content, find, refuse_cloud
from proxy.simulated_ollama.models import Model, openai_entry, ps_entry, show, tag_entry
from proxy.simulated_ollama.voices import NATIVE_JSON, V1_JSON, native_error, openai_error

if TYPE_CHECKING:
    from proxy.simulated_ollama.go.head import Head
    from proxy.simulated_ollama.go.http import Reply

_DETAILS_OFF = "ollama cloud is disabled: remote model details are unavailable"
_LISTED_SINCE, _SHOWN_SINCE = (
    (0, 30, 0),
    (0, 6, 4),
)  # the versions that first reported capabilities, in /api/tags and show


async def tell_root(host: Host, head: Head, reply: Reply, parameter: str) -> None:  # noqa: ARG001
    """GET, HEAD /."""
    await reply.whole(200, b"Ollama is running", "text/plain; charset=utf-8")


async def tell_version(host: Host, head: Head, reply: Reply, parameter: str) -> None:  # noqa: ARG001
    """GET, HEAD /api/version."""
    await native(reply, {"version": host.version})


async def tell_status(host: Host, head: Head, reply: Reply, parameter: str) -> None:  # noqa: ARG001
    """GET /api/status."""
    await native(reply, {"cloud": {"disabled": not host.cloud, "source": "none" if host.cloud else "env"}})


async def tell_tags(host: Host, head: Head, reply: Reply, parameter: str) -> None:  # noqa: ARG001
    """GET, HEAD /api/tags."""
    entries = [tag_entry(model) for model in _newest_first(host)]
    for entry in entries if host.release < _LISTED_SINCE else ():
        del entry["capabilities"]
    await native(reply, {"models": entries})


async def tell_ps(host: Host, head: Head, reply: Reply, parameter: str) -> None:  # noqa: ARG001
    """GET /api/ps: the loaded models, the longest-lived first."""
    runners = sorted(host.scheduler.runners.values(), key=lambda runner: runner.expires_at, reverse=True)
    entries = [ps_entry(runner.model, f"{runner.expires_at:%Y-%m-%dT%H:%M:%S.%f}Z") for runner in runners]
    await native(reply, {"models": entries})


async def tell_models(host: Host, head: Head, reply: Reply, parameter: str) -> None:  # noqa: ARG001
    """GET /v1/models; without models Go's nil slice is null."""
    entries = [openai_entry(model) for model in _newest_first(host)]
    await reply.whole(200, dump({"object": "list", "data": entries or None}) + b"\n", V1_JSON)


async def tell_model(host: Host, head: Head, reply: Reply, parameter: str) -> None:  # noqa: ARG001
    """GET /v1/models/{model}: the id is the text asked for."""
    if await refuse_cloud(host, reply, parameter, _DETAILS_OFF):
        return
    try:
        name = normal_name(parameter)
    except ModelNameError:
        status, answer = 400, openai_error(400, "invalid model name")
    else:
        model = host.models.get(name)
        shown = parameter if ":" in parameter else f"{parameter}:latest"
        status = 200 if model else 404
        answer = openai_entry(model, parameter) if model else openai_error(404, f"model '{shown}' not found")
    await reply.whole(status, dump(answer) + b"\n", V1_JSON)


async def tell_show(host: Host, head: Head, reply: Reply, parameter: str) -> None:  # noqa: ARG001
    """POST /api/show."""
    fields = await native_fields(host, head, reply, "api.ShowRequest")
    if fields is None:
        return
    asked = fields.get("model") or fields.get("name") or ""
    if not asked:
        await native(reply, native_error(400, "model is required"), 400)
    elif not await refuse_cloud(host, reply, asked, _DETAILS_OFF):
        model = await existing(host, reply, asked)
        copilot = head.get("user-agent").startswith("GitHubCopilotChat/")
        if model is not None:
            told = show(model, asked if copilot else None)
            if host.release < _SHOWN_SINCE:
                del told["capabilities"]
            await native(reply, told)


async def native(reply: Reply, value: Json, status: int = 200) -> None:
    """Answer as the handlers of /api do."""
    await reply.whole(status, dump(value), NATIVE_JSON)


async def native_fields(host: Host, head: Head, reply: Reply, go_type: str) -> dict[str, Json] | None:
    """Return the decoded body of a native request; answer and return None if there is none."""
    body = await content(reply, head, host.release)
    if body is None:
        return None
    try:
        return struct(body, go_type, {"model": "string", "name": "string", "stream": "bool"})
    except JsonError as error:
        text = "missing request body" if str(error) == "EOF" else str(error)
        await native(reply, native_error(400, text), 400)
        return None


async def existing(host: Host, reply: Reply, asked: str, *, tagged: bool = True) -> Model | None:
    """Return the model of that name; answers 400 or 404 and returns None without one."""
    try:
        normal_name(asked)
    except ModelNameError:
        await native(reply, native_error(400, "invalid model name"), 400)
        return None
    model = find(host, asked)
    if model is None:
        shown = f"{asked}:latest" if tagged and ":" not in asked else asked
        await native(reply, native_error(404, f"model '{shown}' not found"), 404)
    return model


def _newest_first(host: Host) -> list[Model]:
    """By whole seconds, as Ollama sorts; within one second it keeps no order, here that of the store."""
    return sorted(host.models.values(), key=lambda model: -model.created)
