"""64 MiB up, down, and up into an upstream that reads nothing: the speed, the CPU, and how memory grows.

What goes up is JSON with one long text.
"""

from __future__ import annotations

import select
import socket
from time import monotonic
from typing import TYPE_CHECKING

from bench import accounting
from bench.wire import traffic
from bench.wire.load import chat, crowd, request, whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contenders import Running
    from bench.stage import Stage

MIB = 1 << 20
_BLOCK = 256 * 1024
_PATIENCE = 60.0
_END = b'"}],"seed":7}'  # of a chat, from the end of its text on
_WARM = 0.1  # seconds of small requests, so that modules and buffers of any request are there already


async def measure(stage: Stage) -> None:
    """Measure all of them, each in a new process, because a process that has grown once doesn't grow again."""
    for title, move in (("up", _up), ("down", _down), ("up, into an upstream that takes nothing", _stalled)):

        async def one(running: Running, move: Callable[[Stage, Running], None] = move) -> None:
            if not running.pids:
                move(stage, running)
                return
            with stage.running(running.contender) as fresh:
                async with crowd(fresh.port, traffic.requests(fresh.port), 16) as warm:
                    await warm.run(16, _WARM)
                move(stage, fresh)

        takers = stage.takers("bulk", direct=move is not _stalled)
        await stage.rounds(f"{stage.scale.bulk / MIB:.0f} MiB {title}", takers, stage.scale.fewer, one)


class _Watch:
    """Measures memory and CPU while bytes pass."""

    def __init__(self, running: Running) -> None:
        self._running = running
        accounting.reset_peak(running.pids)
        self._memory = accounting.peak(running.pids)
        self._cpu = running.cpu()
        self._began = monotonic()

    def note(self, stage: Stage, direction: str) -> None:
        """Record the cost of moving them."""
        took, name = monotonic() - self._began, self._running.name
        stage.figures.note(f"{direction}_time", name, took)
        stage.figures.note(f"{direction}_rate", name, stage.scale.bulk / MIB / took)
        if self._running.pids:
            stage.figures.note(f"{direction}_cpu", name, (self._running.cpu() - self._cpu) * 1e3)
            stage.figures.note(f"{direction}_growth", name, self.growth())

    def growth(self) -> float:
        """Return by how many MiB memory has been above its first value."""
        return (accounting.peak(self._running.pids) - self._memory) / MIB


def _upload(stage: Stage, order: str) -> tuple[bytes, memoryview, int, bytes]:
    """Return the beginning of an upload, the block that is repeated after it, for how many bytes, and the end."""
    content = chat(order)
    head = request("POST", "/v1/chat/completions", content)
    head = head.replace(b"Content-Length: %d\r\n" % len(content), b"Content-Length: %d\r\n" % stage.scale.bulk)
    begin, end = head[: -len(_END)], head[-len(_END) :]
    return begin, memoryview(b"a" * _BLOCK), stage.scale.bulk - len(content), end


def _up(stage: Stage, running: Running) -> None:
    head, block, left, end = _upload(stage, "")
    with socket.create_connection(("127.0.0.1", running.port), _PATIENCE) as sock:
        watch = _Watch(running)
        sock.sendall(head)
        while left:
            sock.sendall(block[:left])
            left -= min(left, len(block))
        sock.sendall(end)
        answer = sock.recv(65536)
        while not whole(answer):
            more = sock.recv(65536)
            if not more:
                raise RuntimeError(f"{running.name}: cut after {answer!r}")
            answer += more
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{running.name}: {answer!r}")
        watch.note(stage, "up")


def _down(stage: Stage, running: Running) -> None:
    room = bytearray(_BLOCK)
    with socket.create_connection(("127.0.0.1", running.port), _PATIENCE) as sock:
        watch = _Watch(running)
        sock.sendall(request("POST", "/v1/chat/completions", chat(f"size={stage.scale.bulk}")))
        received = 0
        while received < stage.scale.bulk:
            size = sock.recv_into(room)
            if not size:
                raise RuntimeError(f"{running.name}: cut after {received} bytes")
            received += size
        watch.note(stage, "down")


def _stalled(stage: Stage, running: Running) -> None:
    """Send until nothing has been read for a while."""
    head, block, left, _ = _upload(stage, "stall=1")
    with socket.create_connection(("127.0.0.1", running.port), _PATIENCE) as sock:
        watch = _Watch(running)
        sock.sendall(head)
        sock.setblocking(False)
        until = monotonic() + stage.scale.stalled
        while left and select.select((), (sock,), (), max(0.0, until - monotonic()))[1]:
            left -= sock.send(block[:left])
            until = monotonic() + stage.scale.stalled
        stage.figures.note("stalled_growth", running.name, watch.growth())
