"""Record the heads that the real SDKs send, in their installed versions.

python -m bench.wire.record writes them to bench/heads/

In a head, `@HOST@` and `@LENGTH@` replace what differs from request to request. `@ID@` would replace anything else that
is new each time, but the present SDKs send no such thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import anthropic
import openai

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HEADS = Path(__file__).parent.parent / "heads"

_SAID = [{"role": "user", "content": "Say something."}]


class Listener:
    """A server that keeps the heads of requests, and answers none of them."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep one head, and refuse it in a way that isn't retried."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))  # type: ignore[index]
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()


def _calls(url: str) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return a name for each kind of request, and what makes it."""
    sync = openai.OpenAI(base_url=f"{url}/v1", api_key="ollama", max_retries=0)
    aio = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="ollama", max_retries=0)
    claude = anthropic.Anthropic(base_url=url, api_key="ollama", max_retries=0)
    aclaude = anthropic.AsyncAnthropic(base_url=url, api_key="ollama", max_retries=0)
    asked = {"model": "tiny", "messages": _SAID}
    message = {**asked, "max_tokens": 100}
    return {
        "openai-chat": lambda: asyncio.to_thread(sync.chat.completions.create, **asked),
        "openai-chat-async": lambda: aio.chat.completions.create(**asked),
        "openai-chat-stream": lambda: asyncio.to_thread(sync.chat.completions.create, **asked, stream=True),
        "openai-chat-stream-async": lambda: aio.chat.completions.create(**asked, stream=True),
        "openai-responses": lambda: asyncio.to_thread(sync.responses.create, model="tiny", input="Say something."),
        "anthropic-messages": lambda: asyncio.to_thread(claude.messages.create, **message),
        "anthropic-messages-async": lambda: aclaude.messages.create(**message),
        "anthropic-messages-stream-async": lambda: aclaude.messages.create(**message, stream=True),
    }


def holed(head: bytes) -> bytes:
    """Return a head with placeholders for what differs from request to request."""
    head = re.sub(rb"(?i)(\r\ncontent-length: )\d+", rb"\1@LENGTH@", head)
    head = re.sub(rb"(?i)(\r\nhost: )[^\r]+", rb"\1@HOST@", head)
    return re.sub(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", b"@ID@", head)


async def record() -> dict[str, bytes]:
    """Return the head of each kind of request, with placeholders."""
    listener = Listener()
    found = {}
    async with await asyncio.start_server(listener.serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for name, call in _calls(url).items():
            with contextlib.suppress(openai.BadRequestError, anthropic.BadRequestError):
                await call()
            found[name] = holed(listener.heads[-1])
    return found


def main() -> None:
    """Write them."""
    HEADS.mkdir(exist_ok=True)
    for name, head in asyncio.run(record()).items():
        (HEADS / f"{name}.http").write_bytes(head)
        print(f"{name}: {head.count(b':')} fields")


if __name__ == "__main__":
    main()
