"""The Mac is kept awake while a model answers and a while longer, and no exchange depends on that."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from proxy.exchange import awake
from proxy.exchange.awake import LINGER, RETRY_AFTER, Awake
from proxy.policy.routes import ROUTES
from tests.support.raw_http import CUT, HANG, ok, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.raw_http import Proxy, Upstream

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: 2\r\n\r\n{}"
LIST = b"GET /v1/models HTTP/1.1\r\nHost: mac\r\n\r\n"
SHOW = b"POST /api/show HTTP/1.1\r\nHost: mac\r\nContent-Length: 2\r\n\r\n{}"


class Desk:
    """A gateway whose machine can be kept awake, what it said of that, and a clock that a test sets."""

    def __init__(self, gateway: Proxy, folder: Path) -> None:
        self.gateway = gateway
        self.now = 1000.0
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.program = folder / "caffeinate"
        self.called_with = folder / "called-with"
        self.script(f'echo "$@" >> "{self.called_with}"; exec sleep 100')
        self.awake = gateway.gateway.awake = Awake(self._say, self._say, program=str(self.program), clock=self._clock)

    def script(self, text: str) -> None:
        """Let the program do this."""
        self.program.write_text(f"#!/bin/sh\n{text}\n")
        self.program.chmod(0o755)

    def _say(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields))

    def _clock(self) -> float:
        return self.now

    @property
    def events(self) -> list[str]:
        """What was said, by name."""
        return [event for event, _ in self.said]

    async def said_so(self, *events: str) -> None:
        """Wait until just this was said."""
        await until(lambda: len(self.said) >= len(events))
        assert self.events == [*events]
        if events[-1:] == ("may_sleep_again",):  # which is said just before the hold is over
            await until(lambda: "not holding" in repr(self.awake))

    def pass_time(self, seconds: float) -> None:
        """Let time go by, and turn the wheel."""
        self.now += seconds
        self.awake.tick()

    async def asked(self, request: bytes) -> int:
        """Send a request and return its status."""
        wire = await self.gateway.connect()
        await wire.send(request)
        return (await wire.answer()).status


@pytest.fixture
async def desk(gateway: Proxy, upstream: Upstream, tmp_path: Path) -> AsyncIterator[Desk]:
    """Give a desk, and let its machine sleep in the end."""
    upstream.answers(ok())
    desk = Desk(gateway, tmp_path)
    yield desk
    await desk.awake.close()


# --- when -------------------------------------------------------------------------------------------------------------

NEEDING = {
    "POST /v1/chat/completions",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /api/chat",
    "POST /api/generate",
    "POST /api/embed",
    "POST /api/embeddings",
    "POST /v1/embeddings",
    "POST /v1/completions",
    "POST /v1/audio/transcriptions",
}


def test_routes_that_need_a_model() -> None:
    """A model works for answers, embeddings and transcriptions; not for lists, versions and descriptions."""
    assert {route.name for route in ROUTES if route.needs_model} == NEEDING


async def test_one_answer(desk: Desk) -> None:
    """An answer begins a hold in the name of this process, which ends a minute after it, each with a diagnostic."""
    assert await desk.asked(CHAT) == 200
    await desk.said_so("kept_awake")
    await until(desk.called_with.exists)
    await until(desk.called_with.read_text)
    assert desk.called_with.read_text() == f"-i -w {os.getpid()}\n"
    desk.pass_time(LINGER - 1)
    desk.pass_time(2)
    await desk.said_so("kept_awake", "may_sleep_again")
    assert desk.said[1][1]["seconds"] == LINGER + 1
    pid = desk.said[0][1]["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("request_", [LIST, SHOW], ids=["list", "show"])
async def test_no_model(desk: Desk, request_: bytes) -> None:
    """A request that needs no model keeps nobody awake."""
    assert await desk.asked(request_) == 200
    desk.pass_time(1)
    assert repr(desk.awake) == "<Awake 0 answers, not holding>"
    assert not desk.said


async def test_answers_that_overlap(desk: Desk, upstream: Upstream) -> None:
    """One hold covers all answers, and lasts until a minute after the last one."""
    upstream.answers_in_turn((HANG,), (ok(),))
    first = await desk.gateway.connect()
    await first.send(CHAT)
    await until(lambda: upstream.requests)
    assert await desk.asked(CHAT) == 200
    desk.pass_time(10 * LINGER)
    assert repr(desk.awake) == "<Awake 1 answers, holding>"
    first.close()
    await until(lambda: len(desk.gateway.audit) == 2)
    desk.pass_time(LINGER - 1)
    assert repr(desk.awake) == "<Awake 0 answers, holding>"
    assert await desk.asked(CHAT) == 200
    desk.pass_time(LINGER - 1)
    await desk.said_so("kept_awake")
    desk.pass_time(1)
    await desk.said_so("kept_awake", "may_sleep_again")


async def test_next_answer(desk: Desk) -> None:
    """After a hold the next answer begins another."""
    for count in (1, 2):
        assert await desk.asked(CHAT) == 200
        await until(lambda count=count: desk.events.count("kept_awake") == count)
        desk.pass_time(LINGER)
        await until(lambda count=count: desk.events.count("may_sleep_again") == count)


@pytest.mark.parametrize("script", [(CUT,), (b"nonsense",), (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",)])
async def test_answers_that_fail(desk: Desk, upstream: Upstream, script: Any) -> None:
    """However an exchange ends it is counted out."""
    upstream.answers(*script)
    wire = await desk.gateway.connect()
    await wire.send(CHAT)
    await wire.answer()
    await desk.gateway.lines(1)
    assert repr(desk.awake).startswith("<Awake 0 answers")


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def refused(*_command: str, **_options: Any) -> Any:
    """Fail as a system does that has no process left."""
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


async def never(*_command: str, **_options: Any) -> Any:
    """Start forever."""
    await asyncio.Event().wait()


async def mistaken(*_command: str, **_options: Any) -> Any:
    """Fail as nobody foresaw."""
    raise ZeroDivisionError


async def test_missing(desk: Desk) -> None:
    """Without the program answers are given as ever, which is reported once a minute."""
    desk.program.unlink()
    for _ in range(3):
        assert await desk.asked(CHAT) == 200
    await desk.said_so("not_kept_awake")
    assert desk.said[0][1]["problem"] == "No such file or directory"
    desk.pass_time(RETRY_AFTER - 1)
    assert await desk.asked(CHAT) == 200
    desk.pass_time(1)
    await desk.said_so("not_kept_awake", "not_kept_awake")


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        pytest.param(refused, "Resource temporarily unavailable", id="no_process_left"),
        pytest.param(mistaken, "ZeroDivisionError", id="a_mistake"),
        pytest.param(never, None, id="never_starts"),
    ],
)
async def test_start(desk: Desk, monkeypatch: pytest.MonkeyPatch, start: Any, problem: str | None) -> None:
    """A program that doesn't start keeps no answer waiting."""
    monkeypatch.setattr(awake.asyncio, "create_subprocess_exec", start)
    assert await desk.asked(CHAT) == 200
    if problem is None:
        assert not desk.said
        desk.pass_time(LINGER)
        await until(lambda: repr(desk.awake) == "<Awake 0 answers, not holding>")
    else:
        await desk.said_so("not_kept_awake")
        assert desk.said[0][1]["problem"] == problem


async def test_killed(desk: Desk, upstream: Upstream) -> None:
    """A hold that someone ends is reported, and begun again after a minute if it is still wanted."""
    upstream.answers(HANG)
    wire = await desk.gateway.connect()
    await wire.send(CHAT)
    await desk.said_so("kept_awake")
    os.kill(desk.said[0][1]["pid"], signal.SIGKILL)
    await desk.said_so("kept_awake", "may_sleep_again", "not_kept_awake")
    assert desk.said[2][1]["problem"] == "it ended by itself with code -9"
    desk.pass_time(RETRY_AFTER - 1)
    desk.pass_time(1)
    await desk.said_so("kept_awake", "may_sleep_again", "not_kept_awake", "kept_awake")


async def test_program_that_does_not_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that takes no notice of being asked to end is killed."""
    monkeypatch.setattr(awake, "END_WITHIN", 0.1)
    ready = desk.program.parent / "ready"
    desk.script(f'trap "" TERM; touch "{ready}"; while :; do sleep 0.01; done')
    assert await desk.asked(CHAT) == 200
    await until(ready.exists)
    desk.pass_time(LINGER)
    await until(lambda: desk.pass_time(0) or len(desk.said) == 2)  # the wheel turns on meanwhile
    await desk.said_so("kept_awake", "may_sleep_again")


# --- whether ----------------------------------------------------------------------------------------------------------


async def test_switched_off(desk: Desk, upstream: Upstream) -> None:
    """Switched off by a reload, a hold ends and none begins; switched on, one begins for what is under way."""
    upstream.answers(HANG)
    wire = await desk.gateway.connect()
    await wire.send(CHAT)
    await desk.said_so("kept_awake")
    desk.awake.enabled = False
    desk.pass_time(1)
    await desk.said_so("kept_awake", "may_sleep_again")
    desk.pass_time(1)
    desk.awake.enabled = True
    desk.pass_time(1)
    await desk.said_so("kept_awake", "may_sleep_again", "kept_awake")


async def test_stop(desk: Desk) -> None:
    """A stop ends the hold, and waits for that."""
    assert await desk.asked(CHAT) == 200
    await desk.said_so("kept_awake")
    await desk.awake.close()
    await desk.said_so("kept_awake", "may_sleep_again")


@pytest.mark.parametrize(
    ("platform", "parent", "service"),
    [("darwin", 1, True), ("darwin", 501, False), ("linux", 1, False)],
    ids=["launchd", "shell", "linux"],
)
def test_only_under_launchd(monkeypatch: pytest.MonkeyPatch, platform: str, parent: int, service: bool) -> None:
    """Only a job of launchd on macOS keeps the machine awake."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "getppid", lambda: parent)
    assert awake.is_service() is service
