"""The clients: the SDKs as people use them, some that leave in the middle, and some that send malformed bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import ollama
import openai

from bench.soak.ledger import CURRENT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from bench.soak.ledger import Call, Ledger
    from bench.soak.stage import Stage

DEADLINE = 60.0
"""Seconds after which a request counts as hung. The longest answer takes under one, Ollama's longest absence a few."""

MODEL = "tiny"
OTHER = "thinker"
"""A model for which Ollama has no room next to the first one."""

OWN_WORDS = ("`max_waiting`", "(`cancel`)")
"""What the proxy's answers say to requests that are turned away or cancelled, as the soak wants some to be."""


class UnexpectedError(Exception):
    """An answer that isn't what it should be."""


class Callers:
    """All clients of one proxy. `faults` lists failures without an excuse."""

    def __init__(self, stage: Stage, ledger: Ledger, random: Random) -> None:
        self.faults: list[str] = []
        self.times: list[float] = []  # ms to the head of an answer; emptied by whoever samples
        self._stage = stage
        self._ledger = ledger
        self._random = random
        hooks: dict[str, Any] = {"event_hooks": {"request": [self._stamp], "response": [self._note]}}
        # Ignores HTTP_PROXY, and doesn't load certificates, which aren't needed here.
        plain: dict[str, Any] = {"mounts": {"http://": None}, "verify": False} | hooks
        base = stage.base
        # Each call is one request: without retries.
        self._openai = openai.AsyncOpenAI(
            base_url=f"{base}/v1", api_key="k", max_retries=0, http_client=openai.DefaultAsyncHttpxClient(**plain)
        )
        self._anthropic = anthropic.AsyncAnthropic(
            base_url=base, auth_token="k", max_retries=0, http_client=anthropic.DefaultAsyncHttpxClient(**plain)
        )
        self._ollama = ollama.AsyncClient(base, trust_env=False, verify=False, **hooks)
        self._calls: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("openai chat", self._openai_chat),
            ("openai chat, streamed", self._openai_stream),
            ("openai responses, streamed", self._openai_responses),
            ("openai models", self._openai_models),
            ("anthropic messages", self._anthropic_message),
            ("anthropic messages, streamed", self._anthropic_stream),
            ("ollama chat", self._ollama_chat),
            ("ollama chat, streamed", self._ollama_stream),
            ("ollama list", self._ollama_list),
            ("another model", self._another_model),
            ("refused: pull", self._pull),
            ("refused or not: embeddings", self._embeddings),
        ]

    async def close(self) -> None:
        """Close all connections."""
        await self._openai.close()
        await self._anthropic.close()
        await self._ollama._client.aclose()

    async def _stamp(self, request: httpx.Request) -> None:
        call = CURRENT.get()
        call.sent = True
        request.headers["x-request-id"] = call.id

    async def _note(self, _response: httpx.Response) -> None:
        call = CURRENT.get()
        call.answered = monotonic()
        self.times.append((call.answered - call.begun) * 1000)

    # --- the lives they lead ---

    async def warm_up(self) -> None:
        """Make each call once, because an SDK's first call is slow: it loads modules."""
        for name, make in self._calls:
            await self._make(name, make, leave_after=None)
        self.times.clear()

    async def work(self) -> None:
        """Send one request after the other, until cancelled."""
        while True:
            dice = self._random.random()
            if dice < 0.70:
                await self._make(*self._random.choice(self._calls), leave_after=None)
            elif dice < 0.85:
                await self._make(*self._random.choice(self._calls), leave_after=self._random.random() ** 2 * 0.3)
            else:
                await self._raw()
            await asyncio.sleep(self._random.random() * 0.05)

    async def _make(self, name: str, make: Callable[[], Awaitable[object]], leave_after: float | None) -> None:
        call = self._ledger.begin(name if leave_after is None else "left: " + name)
        CURRENT.set(call)
        try:
            async with asyncio.timeout(DEADLINE if leave_after is None else leave_after):
                await make()
        except TimeoutError:
            if leave_after is None:
                self.faults.append(f"{call} hung: nothing for {DEADLINE:g} s")
        except (openai.OpenAIError, anthropic.AnthropicError, ollama.ResponseError, httpx.HTTPError) as error:
            self._excuse(call, error)
        except (UnexpectedError, ConnectionError) as error:
            self._excuse(call, error)
        finally:
            call.ended = monotonic()

    def _excuse(self, call: Call, error: Exception) -> None:
        if any(words in str(error) for words in OWN_WORDS):
            self._ledger.turned_away += 1
        elif not self._stage.excused(call.begun, monotonic()):
            call.fault = f"{type(error).__name__}: {error}"
            self.faults.append(f"{call.kind}: {call.fault}")

    # --- with SDKs ---

    def _prompt(self) -> str:
        chance = self._random
        return f"@@ttft={chance.randrange(20)} tps={chance.choice((0, 100))} tokens={chance.randint(1, 30)}@@"

    def _turns(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self._prompt()}]

    async def _openai_chat(self) -> None:
        answer = await self._openai.chat.completions.create(model=MODEL, messages=self._turns())  # type: ignore[arg-type]
        expect(answer.choices[0].finish_reason, "stop")

    async def _openai_stream(self) -> None:
        last = None
        async for each in await self._openai.chat.completions.create(model=MODEL, messages=self._turns(), stream=True):  # type: ignore[call-overload]
            last = each
        expect(last and last.choices[0].finish_reason, "stop")

    async def _openai_responses(self) -> None:
        last = None
        async for each in await self._openai.responses.create(model=MODEL, input=self._prompt(), stream=True):
            last = each
        expect(last and last.type, "response.completed")

    async def _openai_models(self) -> None:
        expect(bool((await self._openai.models.list()).data), True)

    async def _anthropic_message(self) -> None:
        answer = await self._anthropic.messages.create(model=MODEL, max_tokens=100, messages=self._turns())  # type: ignore[arg-type]
        expect(answer.stop_reason, "end_turn")

    async def _anthropic_stream(self) -> None:
        last = None
        stream = await self._anthropic.messages.create(
            model=MODEL,
            max_tokens=100,
            messages=self._turns(),  # type: ignore[arg-type]
            stream=True,
        )
        async for each in stream:
            last = each
        expect(last and last.type, "message_stop")

    async def _ollama_chat(self) -> None:
        expect((await self._ollama.chat(MODEL, self._turns())).done, True)

    async def _ollama_stream(self) -> None:
        last = None
        async for each in await self._ollama.chat(MODEL, self._turns(), stream=True):
            last = each
        expect(last and last.done, True)

    async def _another_model(self) -> None:
        last = None
        stream = await self._openai.chat.completions.create(model=OTHER, messages=self._turns(), stream=True)  # type: ignore[call-overload]
        async for each in stream:
            last = each
        expect(last and last.choices[0].finish_reason, "stop")

    async def _ollama_list(self) -> None:
        expect(bool((await self._ollama.list()).models), True)

    async def _pull(self) -> None:
        try:
            await self._ollama.pull(MODEL)
        except ollama.ResponseError as error:
            expect(error.status_code, 403)
        else:
            raise UnexpectedError("a pull was let through")

    async def _embeddings(self) -> None:
        with contextlib.suppress(openai.PermissionDeniedError):  # until a reload has opened the route
            await self._openai.embeddings.create(model=MODEL, input="a few words")

    # --- with bytes ---

    async def _raw(self) -> None:
        """Send the beginning of a request and leave, or send malformed bytes."""
        content = json.dumps({"model": MODEL, "messages": self._turns(), "stream": True}).encode()
        whole = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: %d\r\n\r\n%b" % (
            len(content),
            content,
        )
        kind = self._random.choice(("cut off", "reset", "malformed"))
        if kind == "malformed":
            message = b"GET /api/tags HTTP/1.1\r\nHost: mac\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx"
        else:
            message = whole[: self._random.randint(1, len(whole))]
        self._ledger.kinds[f"bytes: {kind}"] += 1
        try:
            async with asyncio.timeout(DEADLINE):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._stage.proxy.port)
                self._ledger.nameless_maybe += 1
                writer.write(message)
                await writer.drain()
                if kind == "reset":  # which may overtake the bytes
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                    return
                self._ledger.nameless += 1
                self._ledger.nameless_maybe -= 1
                if kind == "malformed":
                    expect((await reader.read())[:13], b"HTTP/1.1 400 ")
                writer.close()
        except TimeoutError:
            self.faults.append(f"bytes ({kind}) hung: nothing for {DEADLINE:g} s")
        except (ConnectionError, UnexpectedError) as error:
            self.faults.append(f"bytes ({kind}): {type(error).__name__}: {error}")


def expect(found: object, wanted: object) -> None:
    """Return if an answer, or its end, is as it should be. Raises UnexpectedError."""
    if found != wanted:
        raise UnexpectedError(f"{found!r} instead of {wanted!r}")
