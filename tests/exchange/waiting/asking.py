"""Requests for a model, through a gateway with a room in front of a simulated Ollama."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from proxy.exchange.upstream.asking import Response

if TYPE_CHECKING:
    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Proxy, Wire

NEVER = 1000.0
TINY = "registry.ollama.ai/library/tiny:latest"
PATHS = ["/v1/chat/completions", "/v1/messages", "/api/chat"]


def body(model: str = "tiny", *, stream: bool = True, **more: Any) -> bytes:
    return orjson.dumps(
        {"model": model, "stream": stream, "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}], **more}
    )


async def ask(house: Proxy, path: str, content: bytes, source: str = "", **fields: str) -> Wire:
    """Ask from an address of loopback, each of which is a device of its own."""
    wire = await house.connect(source)
    await wire.request("POST", path, content, **fields)
    return wire


async def loading(ollama: SimulatedOllama, count: int = 1) -> None:
    await ollama.until(lambda: ollama.scheduler.loads == count)


class Mute:
    """An Ollama that gives no lists."""

    async def ask(self, _method: str, _path: str, _body: bytes = b"") -> Response:
        """Return an error."""
        return Response(500, b"")
