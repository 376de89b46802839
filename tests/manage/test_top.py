"""`top` and `cancel`: what they show of a running proxy, their keys, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
import termios
from asyncio.subprocess import PIPE
from signal import SIGINT
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from proxy.manage.machine.live_client import LiveError
from proxy.manage.top import command
from proxy.manage.top.command import Watch
from proxy.manage.top.screen import KEYS, parts, screen
from tests.support.proxy_process import ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.proxy_process import Process


def request(**given: Any) -> dict[str, Any]:
    """Return one request as the socket shows it."""
    usual = {"id": "a1", "peer": "100.64.0.7", "device": "laptop", "model": "tiny", "phase": "content"}
    return {**usual, "seconds": 75.2, "position": None, "events": 42, **given}


def state(*exchanges: dict[str, Any], now: float = 4000.0, **more: Any) -> dict[str, Any]:
    """Return what the socket shows of these requests."""
    totals = {"now": now, "started": 400.0, "connections": 3, "counters": {}, "models": []}
    return {"exchanges": list(exchanges), **totals, **more}


def text(shown: Any) -> str:
    """Return what a wide terminal would show."""
    console = Console(width=200)
    with console.capture() as captured:
        for part in shown:
            console.print(part)
    return captured.get()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param({}, ("laptop", "tiny", "streams", "1 min 15 s", "42"), id="streaming"),
        pytest.param({"device": None}, ("100.64.0.7",), id="nameless_device"),
        pytest.param({"model": None, "phase": "upload"}, ("?", "sends its request"), id="unread"),
        pytest.param({"phase": "queue", "position": 3}, ("waits, number 3",), id="queued"),
        pytest.param(
            {"phase": "queue", "position": 3, "limit": "rule 2 of `access`"},
            ("waits, number 3 (`max_active` of rule 2 of `access`)",),
            id="held by a limit",
        ),
        pytest.param({"phase": "load", "position": 1}, ("waits for the load",), id="loading"),
        pytest.param({"phase": "wait", "events": 0}, ("Ollama reads the prompt",), id="prompt"),
        pytest.param({"model": "a\x1b[31mb"}, ("a\\x1b[31mb",), id="control_characters"),
    ],
)
def test_request(given: dict[str, Any], words: tuple[str, ...]) -> None:
    """A row says who asks for what, and why nothing comes yet."""
    shown = text(parts(state(request(**given))))
    assert all(word in shown for word in words), shown


def test_models_and_totals() -> None:
    """Models are shown with memory and context, and totals with what went wrong."""
    model = {
        "name": "registry.ollama.ai/library/qwen3:8b",
        "state": "loading",
        "seconds": 95.0,
        "sent": 0,
        "waiting": 2,
    }
    counters = {"requests": 9, "loads": 3, "loads_failed": 1, "cancelled": 2}
    shown = text(parts(state(models=[{**model, "memory": 5_200_000_000, "context": 8192}], counters=counters)))
    for word in ("qwen3:8b", "loading for 1 min 35 s", "5.2 GB", "8192", "9 requests", "1 h", "3 loads (1 failed)"):
        assert word in shown
    assert "2 cancelled" in shown
    assert "library" not in shown


def test_one_is_singular() -> None:
    """One of something is named as one, and less than a tenth of a gigabyte in megabytes."""
    model = {"name": "tiny", "state": "loaded", "seconds": None, "sent": 1, "waiting": 0, "context": 2048}
    totals = {"counters": {"requests": 1, "loads": 1}, "connections": 1}
    shown = text(parts({**state(models=[{**model, "memory": 4_700_000}]), **totals}))
    assert "1 request for a model in 1 h, 0 waited, 1 load, 1 connection\n" in shown
    assert " 5 MB " in shown


def test_troubles_are_shown() -> None:
    """What seems wrong with Ollama stands below the totals, and can't control the terminal."""
    shown = text(parts({**state(), "troubles": ["tiny has been silent", "\x1b[2J"]}))
    assert shown.rstrip().endswith("tiny has been silent\n\\x1b[2J")


@pytest.mark.parametrize(
    ("chosen", "first", "last"),
    [(None, 0, 8), (0, 0, 8), (4, 0, 8), (20, 16, 24), (39, 31, 39)],
    ids=["none", "first", "near_the_top", "middle", "last"],
)
def test_low_terminal(chosen: int | None, first: int, last: int) -> None:
    """A screen never has more lines than the terminal: requests around the chosen one are shown, others counted."""
    many = state(*(request(id=f"<{number}>", device="a-name" * 20) for number in range(40)))
    console = Console(width=80, height=20)
    with console.capture() as captured:
        console.print(screen(many, {}, chosen, KEYS, 20))
    lines = captured.get().splitlines()
    assert len(lines) <= 20
    assert [f"<{number}>" in captured.get() for number in (first - 1, first, last, last + 1)] == [
        False,
        True,
        True,
        False,
    ]
    assert "31 of 40 not shown" in lines[0]
    assert KEYS in lines[-1]


# --- its keys ---


class Proxy:
    """A proxy whose states follow one another."""

    def __init__(self, *states: dict[str, Any] | LiveError) -> None:
        self.states = list(states)
        self.cancelled: list[str] = []

    def state(self) -> dict[str, Any]:
        found = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(found, LiveError):
            raise found
        return found

    def cancel(self, which: str) -> int:
        self.cancelled.append(which)
        return 1


class Screen:
    """Keeps every picture as text."""

    console = Console(width=200, height=50)

    def __init__(self) -> None:
        self.pictures: list[str] = []

    def update(self, picture: Any, *, refresh: bool) -> None:
        assert refresh
        self.pictures.append(text([picture]))


class Typed:
    """Keys that were typed; "" is a second without any."""

    def __init__(self, *keys: str) -> None:
        self.keys = [*keys, "q"]

    def pressed(self, within: float) -> str:
        assert within == command.EACH
        return self.keys.pop(0)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    """Give a function that types keys at `top` of a proxy and returns its pictures; each key takes a second."""
    clock = iter(range(1000))
    monkeypatch.setattr(command, "monotonic", lambda: float(next(clock)))

    def watched(proxy: Proxy, *keys: str) -> Screen:
        screen = Screen()
        Watch(proxy, proxy.state(), Typed(*keys), screen).run()
        return screen

    return watched


def test_chosen_request_ends(watch: Callable[..., Screen]) -> None:
    """`k` asks, and `y` ends the request that the arrows chose."""
    proxy = Proxy(state(request(id="a1"), request(id="b2")))
    screen = watch(proxy, "down", "down", "k", "y")
    assert proxy.cancelled == ["b2"]
    assert any("end request b2?" in picture for picture in screen.pictures)
    assert "ended b2" in screen.pictures[-1]


@pytest.mark.parametrize("keys", [("k",), ("k", "y"), ("down", "k", "n"), ("down", "k", "", "q")])
def test_nothing_ends_by_mistake(watch: Callable[..., Screen], keys: tuple[str, ...]) -> None:
    """Without a chosen request, or with any other answer than `y`, no request ends."""
    proxy = Proxy(state(request()))
    watch(proxy, *keys)
    assert proxy.cancelled == []


def test_choice_follows_the_request(watch: Callable[..., Screen]) -> None:
    """The chosen request stays chosen when another row comes above it, and none is chosen when it is over."""
    proxy = Proxy(state(request(id="b2")), state(request(id="a1"), request(id="b2")), state(request(id="a1")))
    screen = watch(proxy, "down", "", "k", "n")
    assert any("❯" in line and "b2" in line for line in screen.pictures[1].splitlines())
    assert "❯" not in screen.pictures[-1]


def test_speed_is_that_of_the_last_second(watch: Callable[..., Screen]) -> None:
    """Tokens a second come from two looks at the same request."""
    proxy = Proxy(state(request(events=10)), state(request(events=35), now=4000.5))
    assert " 50 " in watch(proxy, "").pictures[-1]


def test_proxy_that_restarts(watch: Callable[..., Screen]) -> None:
    """While the proxy is away, the last picture stays with the reason, and looking goes on."""
    proxy = Proxy(state(request()), LiveError("no proxy serves"), state(request(id="c3")))
    screen = watch(proxy, "", "")
    assert "no proxy serves; trying again" in screen.pictures[1]
    assert "c3" in screen.pictures[-1]
    assert KEYS in screen.pictures[-1]


# --- the real program ---


async def run(*words: str, **streams: Any) -> tuple[int, str, str]:
    """Run the program; return exit code, standard output and standard error."""
    pipes = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **streams}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "proxy", *words, cwd=ROOT, **pipes)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, (out or b"").decode(), (err or b"").decode()


async def test_real_commands(program: Callable[..., Awaitable[Process]]) -> None:
    """`top` and `cancel` find the proxy that serves with the same settings."""
    process = await program()
    await process.says("listening")
    port = ("--port", str(process.port))
    code, out, _ = await run("top", "--json", *port)
    assert (code, json.loads(out)["exchanges"]) == (0, [])
    code, out, _ = await run("top", *port)
    assert code == 0
    assert "none that needs a model" in out
    assert await run("cancel", "nothing", *port) == (
        1,
        "",
        "error: no request nothing is running or waiting\nhint: python -m proxy top\n",
    )


async def test_no_proxy() -> None:
    """Without a proxy, `top` and `cancel` say so and exit with 1."""
    for words in (("top",), ("cancel", "a1")):
        code, out, err = await run(*words, "--port", "1")
        assert (code, out) == (1, "")
        assert err.splitlines() == [
            "error: no proxy of this user serves on port 1",
            "hint: python -m proxy status",
        ]


@pytest.mark.parametrize("end", ["q", "interrupt"])
async def test_on_a_terminal(program: Callable[..., Awaitable[Process]], end: str) -> None:
    """On a terminal it shows a screen until `q` or an interrupt, and leaves the terminal as it was."""
    process = await program()
    await process.says("listening")
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    words = (sys.executable, "-m", "proxy", "top", "--port", str(process.port))
    top = await asyncio.create_subprocess_exec(*words, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    said = b""
    while b"k end the chosen request" not in said:
        said += await asyncio.to_thread(os.read, ours, 65536)
    if end == "q":
        os.write(ours, b"q")
    else:
        top.send_signal(SIGINT)
    while b"\x1b[?1049l" not in said:  # the screen from before
        said += await asyncio.to_thread(os.read, ours, 65536)
    assert await top.wait() == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
