"""How Tailscale is asked: through its LocalAPI if that can be read, otherwise through its command.

It runs next to live streams, so nothing here blocks the event loop, waits longer than its limit, keeps more of an
answer than a bound, or leaves a process behind. Other modules interpret the answers.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shlex
import shutil
import signal
import sys
from contextlib import aclosing, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import orjson

from proxy.event_loop.patience import within
from proxy.settings.kinds import printable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

LOCALAPI_TIMEOUT = 2.0
"""Seconds that the LocalAPI may take: it answers from memory, in about a millisecond."""

PROGRAM_TIMEOUT = 5.0
"""Seconds that a program may take. Started by launchd, the app's binary may open its window and never return."""

ANSWER_LIMIT = 2**20
"""Bytes of an answer that are read. A status without its peers has about 3,000."""

LSOF_INTERVAL = 60.0
"""Seconds until lsof, which takes almost a second, runs again after it found nothing."""

TOOL_INTERVAL = 30.0
"""Seconds until the command runs again after it gave no answer.

A run of the Mac app's binary takes about 100 ms of CPU, and all of PROGRAM_TIMEOUT if the app was quit.
"""

QUOTED = 240
"""Characters of a program's message, in place of an answer, that the owner gets to see."""

ERROR_LIMIT = 4096
"""Bytes of a program's standard error that are kept, to be quoted."""

# What the App Store app holds open: the file's name contains its port and token (`lsof -F n`: one name a line, after
# an `n`).
_PROOF = re.compile(rb"^n.*\.tailscale\.ipn\.macos/sameuserproof-([0-9]{1,5})-([!-~]+)$", re.MULTILINE)
_START = {"darwin": "open -a Tailscale; or, if it is Homebrew's: sudo brew services restart tailscale"}
_STDERR = 2
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the ways to ask Tailscale are; another root for tests."""

    sockets: tuple[str, ...] = ("/var/run/tailscaled.socket", "/var/run/tailscale/tailscaled.sock")
    app: str = "/Library/Tailscale"  # of the standalone app for macOS: its port and password
    tools: tuple[str, ...] = (  # after what PATH has, which under launchd is little
        "/Applications/Tailscale.app/Contents/MacOS/Tailscale",
        "/usr/local/bin/tailscale",
        "/opt/homebrew/bin/tailscale",
    )
    path: str | None = None  # searched for programs; None: as PATH says
    platform: str = sys.platform

    def program(self, name: str) -> str | None:
        """Return where the program `name` is; launchd's PATH holds all of the system's folders."""
        return shutil.which(name, path=self.path)

    def hint(self, advice: str) -> str:
        """Return `advice`, which may begin with a `tailscale` command, in a form that works on this machine.

        Most Macs have the command only inside the app (tailscale#11510): there the app's menu is named, or the
        command's full path.
        """
        if self.platform != "darwin" or not advice.startswith("tailscale ") or self.program("tailscale"):
            return advice
        tool = next((tool for tool in self.tools if os.access(tool, os.X_OK)), None)
        if tool is None:
            return advice
        command = shlex.quote(tool) + advice.removeprefix("tailscale")
        if advice == "tailscale up":
            return f"in the menu of the Tailscale app: Connect, or Log in; in a terminal: {command}"
        return command


class SilentError(Exception):
    """Tailscale doesn't answer at all; `str()` says who was asked and the result, `hint` what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class Reply(NamedTuple):
    """Tailscale's answer."""

    document: Any  # of JSON
    source: str  # "localapi" or "cli"
    found: bool = True  # False: Tailscale knows no such peer


class Written(NamedTuple):
    """What a program wrote to standard output, and the beginning of its standard error."""

    out: bytes
    err: bytes


class Door(NamedTuple):
    """One way into the LocalAPI: a Unix socket, or a port on loopback with a password."""

    socket: str
    port: int = 0
    password: str = ""


class Daemon:
    """Tailscale on this machine. Remembers the door and the tool that last answered."""

    def __init__(self, places: Places | None = None, clock: Callable[[], float] = monotonic) -> None:
        self.places = places or Places()
        self._clock = clock
        self._door: Door | None = None
        self._tool: str | None = None
        self._lsof_after = 0.0
        self._kept: dict[tuple[str, ...], tuple[float, Reply]] = {}  # the tool's answers that may be used again
        self._silent: tuple[float, SilentError] | None = None  # what came of the tool's last run, and until when

    def __repr__(self) -> str:
        """Show what is remembered, but no password."""
        door = self._door and (self._door.socket or f"port {self._door.port}")
        return f"<Daemon localapi={door} tool={self._tool}>"

    async def ask(self, target: str, *arguments: str, at_most: float | None = None) -> Reply:
        """Return the answer of `/localapi/v0/{target}`, or else the output of `tailscale {arguments}`.

        With `at_most`, the tool's last answer to the same question is used if it is younger than so many seconds.
        Raises SilentError if neither gives an answer that is JSON.
        """
        async with aclosing(self._doors()) as doors:
            async for door in doors:
                with suppress(
                    OSError, ValueError, OverflowError
                ):  # refused, late, no HTTP, no JSON, no port: try the next
                    reply = _understand(*await get(door, target))
                    self._door = door
                    self._silent = None
                    return reply
        self._door = None
        now = self._clock()
        if self._silent is not None and now < self._silent[0]:
            raise SilentError(str(self._silent[1]), self._silent[1].hint)
        kept = self._kept.get(arguments)
        if kept is not None and now - kept[0] < (at_most or 0.0):
            return kept[1]
        try:
            reply = await self._run_tool(arguments)
        except SilentError as error:
            self._silent = (self._clock() + TOOL_INTERVAL, error)
            raise
        self._silent = None
        if at_most is not None:
            self._kept[arguments] = (now, reply)
        return reply

    async def _doors(self) -> AsyncGenerator[Door, None]:
        """Yield the doors that seem to exist, beginning with the one that last opened."""
        last = self._door
        if last is not None:
            yield last
        for door in (*map(Door, filter(os.path.exists, self.places.sockets)), *_app_door(self.places.app)):
            if door != last:
                yield door
        if self.places.platform == "darwin" and self._clock() >= self._lsof_after:
            found = await self._app_store_door()
            if found is None:
                self._lsof_after = self._clock() + LSOF_INTERVAL
            elif found != last:
                yield found

    async def _app_store_door(self) -> Door | None:
        lsof = self.places.program("lsof")
        if lsof is None:
            return None
        try:
            listed = await run(lsof, "-n", "-a", f"-u{os.getuid()}", "-c", "IPNExtension", "-F", "n")
        except OSError:
            return None
        found = _PROOF.search(listed.out)
        return found and Door("", int(found[1]), found[2].decode())

    async def _run_tool(self, arguments: tuple[str, ...]) -> Reply:
        """Return the output of the first tool that prints something: a link on the PATH may crash (tailscale#11510)."""
        environ = {"SHLVL": "1", **os.environ, "TAILSCALE_BE_CLI": "1"}  # else the app's binary may be an app
        hint = "install Tailscale from https://tailscale.com/download, and log in"
        tried = []
        for tool in self._tools():
            try:
                output = await run(tool, *arguments, environ=environ)
                nobody = not output.out and b"peer not found" in output.err
                reply = Reply(None if nobody else orjson.loads(output.out), "cli", not nobody)
            except TimeoutError:
                tried.append(f"{tool} does not answer within {PROGRAM_TIMEOUT:g} s")
            except OSError as error:
                tried.append(f"{tool} can't be run: {error.strerror or error}")
            except ValueError:
                said = " ".join((output.out.strip() or output.err).decode("utf-8", "replace").split())
                tried.append(f"{tool} says: {printable(said[:QUOTED])}" if said else f"{tool} says nothing")
            else:
                self._tool = tool
                return reply
            hint = _START.get(self.places.platform, "sudo systemctl start tailscaled")
        self._tool = None
        raise SilentError("; ".join(tried) or "Tailscale was not found on this machine", hint)

    def _tools(self) -> Iterator[str]:
        found = (self._tool, self.places.program("tailscale"), *self.places.tools)
        yield from dict.fromkeys(tool for tool in found if tool and os.access(tool, os.X_OK))


def _understand(status: int, content: bytes) -> Reply:
    """Return an answer of the LocalAPI; raise ValueError if it is a refusal, or not Tailscale's."""
    if status == 404 and content.startswith(b"no match"):
        return Reply(None, "localapi", found=False)
    if status != 200:
        raise ValueError(f"status {status}")
    return Reply(orjson.loads(content), "localapi")


def _app_door(folder: str) -> tuple[Door, ...]:
    """Return the standalone app's door, if it left one and this user (an administrator) may read its password."""
    try:
        port = os.readlink(f"{folder}/ipnport")
        with open(f"{folder}/sameuserproof-{int(port)}", encoding="ascii") as file:
            password = file.read(4096).strip()
    except (OSError, ValueError):
        return ()
    return (Door("", int(port), password),) if password and 0 < int(port) < 2**16 else ()


async def get(door: Door, target: str) -> tuple[int, bytes]:
    """Return status and content of `GET /localapi/v0/{target}`; OSError without an answer, ValueError without HTTP.

    It uses HTTP/1.0, so that the content ends with the connection. Any Origin or Referer would be refused, and so
    would any Host but this one.
    """
    head = f"GET /localapi/v0/{target} HTTP/1.0\r\nHost: local-tailscaled.sock\r\n"
    if door.password:
        head += f"Authorization: Basic {base64.b64encode(f':{door.password}'.encode()).decode()}\r\n"
    async with within(LOCALAPI_TIMEOUT):
        if door.socket:
            reader, writer = await asyncio.open_unix_connection(door.socket)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        try:
            writer.write(f"{head}\r\n".encode())
            octets = await _all(reader)
        finally:
            writer.transport.abort()
    answer, found, content = octets.partition(b"\r\n\r\n")
    status = _STATUS_LINE.match(answer)
    if status is None or not found:
        raise ValueError("no HTTP")
    return int(status[1]), content


async def run(program: str, *arguments: str, environ: Mapping[str, str] | None = None) -> Written:
    """Return a program's output, whatever its exit code; raise OSError if it can't be run, or TimeoutError.

    The program and everything it starts are killed when its time is over or the caller is cancelled: the `tailscale`
    that the standalone app installs is a shell script, whose end alone would leave the app's binary behind.
    """
    output = _Output()
    start = asyncio.create_task(
        asyncio.get_running_loop().subprocess_exec(
            lambda: output,
            program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environ,
            start_new_session=True,  # a process group, so that all of it can be killed
        )
    )
    try:
        async with within(PROGRAM_TIMEOUT):
            await asyncio.shield(start)  # cancelled in the middle of it, asyncio would kill only the script
            await output.ended.wait()
    finally:
        transport, _ = await start
        if not output.ended.is_set():
            output.kill()
        transport.close()
        await output.exited.wait()  # otherwise it might outlast the event loop, which then complains
    if len(output.octets) > ANSWER_LIMIT:
        raise OSError("wrote too much")
    return Written(bytes(output.octets), bytes(output.errors))


class _Output(asyncio.SubprocessProtocol):
    """A program's output, and when it has ended and closed its output."""

    def __init__(self) -> None:
        self.octets = bytearray()
        self.errors = bytearray()
        self.exited = asyncio.Event()
        self.ended = asyncio.Event()  # also everything that it started and that inherited its output

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._process: int = cast("asyncio.SubprocessTransport", transport).get_pid()

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        if fd == _STDERR:
            self.errors += cast("bytes", data)[: ERROR_LIMIT - len(self.errors)]
        elif len(self.octets) <= ANSWER_LIMIT:
            self.octets += cast("bytes", data)
            if len(self.octets) > ANSWER_LIMIT:
                self.kill()

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.ended.set()

    def kill(self) -> None:
        """End the program and what it started."""
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            os.killpg(self._process, signal.SIGKILL)


async def _all(reader: asyncio.StreamReader) -> bytes:
    """Return everything until the end; raise OSError if that is too much."""
    try:
        await reader.readexactly(ANSWER_LIMIT + 1)
    except asyncio.IncompleteReadError as end:
        return end.partial
    raise OSError("wrote too much")
