"""`dashboard` as a person starts it: what it prints, who can reach it, how it opens a browser, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM
from threading import Event
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
import pytest

from proxy.dashboard import browser
from proxy.dashboard.guard import TOKEN_FIELD
from tests.dashboard.indexed import line
from tests.support.patience import PATIENCE
from tests.support.proxy_process import ROOT
from tests.support.raw_http import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from signal import Signals

URL = re.compile(r"http://127\.0\.0\.1:([0-9]+)/#([A-Za-z0-9_-]{43})")


class Started:
    """One `python -m proxy dashboard`."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url
        found = URL.fullmatch(url)
        self.port, self.token = (int(found[1]), found[2]) if found else (0, "")

    async def get(self, path: str) -> Any:
        """Return what an endpoint answers."""
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{self.port}{path}"
            async with session.get(url, headers={TOKEN_FIELD: self.token}) as response:
                return await response.json()

    async def end(self, number: Signals = SIGINT) -> tuple[int | None, str, str]:
        """Send it a signal; return its exit code, and what it printed from then on, and on standard error."""
        self.process.send_signal(number)
        out, err = await asyncio.wait_for(self.process.communicate(), PATIENCE)
        return self.process.returncode, out.decode(), err.decode()

    def children(self) -> list[psutil.Process]:
        """Return the processes that it started."""
        return psutil.Process(self.process.pid).children()


Start = Callable[..., Awaitable[Started]]


@pytest.fixture
async def dashboard(tmp_path: Path) -> AsyncIterator[Start]:
    """Give a function that starts `dashboard` with more words and variables, until it has printed its link."""
    running: list[asyncio.subprocess.Process] = []
    (tmp_path / "config.toml").touch()

    async def start(*words: str, **variables: str) -> Started:
        log = tmp_path / "access.log"
        if not log.exists():
            log.write_bytes(line() + line())
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROXY_", "SSH_", "DISPLAY"))}
        paths = {"PROXY_ACCESS_LOG": str(log), "PROXY_CONFIG": str(tmp_path / "config.toml"), "TMPDIR": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "dashboard", *words),
            cwd=ROOT,
            env={**kept, **paths, **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        running.append(process)
        assert process.stdout is not None
        return Started(process, (await asyncio.wait_for(process.stdout.readline(), PATIENCE)).decode().strip())

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("number", [SIGINT, SIGTERM, SIGHUP])
async def test_serves_until_a_signal(dashboard: Start, number: Signals) -> None:
    """It prints its link and nothing else on standard output, serves history, and ends well with its builder."""
    started = await dashboard("--no-open")
    await until(lambda: started.children() != [], patience=PATIENCE)
    builder = started.children()
    for _ in range(100):
        found = await started.get("/api/history?period=all")
        if found["index"]["state"] == "ready":
            break
    assert found["totals"]["requests"] == 2
    code, out, _ = await started.end(number)
    assert (code, out) == (0, "")
    assert [each for each in builder if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []


async def test_listens_on_loopback_only(dashboard: Start) -> None:
    """Nothing of it can be reached from another machine, and its builder listens nowhere."""
    started = await dashboard("--no-open")
    await started.get("/api/index")
    everyone = [psutil.Process(started.process.pid), *started.children()]
    listening = [each.laddr for one in everyone for each in one.net_connections() if each.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", started.port)]


async def test_killed(dashboard: Start) -> None:
    """If the dashboard is killed, its builder ends by itself."""
    started = await dashboard("--no-open")
    await until(lambda: started.children() != [], patience=PATIENCE)
    (builder,) = started.children()
    await started.end(SIGKILL)
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [builder], PATIENCE)
    assert gone == [builder]


async def test_killed_builder(dashboard: Start) -> None:
    """If the builder is killed, the page learns why there is no history, and what to do."""
    started = await dashboard("--no-open")
    await until(lambda: started.children() != [], patience=PATIENCE)
    for each in started.children():
        each.kill()
    while (found := await started.get("/api/index"))["state"] != "failed":
        await asyncio.sleep(0)
    assert "ended with code -9" in found["problem"]
    assert found["hint"]


async def test_json(dashboard: Start) -> None:
    """With --json, the link is an object."""
    started = await dashboard("--no-open", "--json")
    assert URL.fullmatch(json.loads(started.url)["url"])


async def test_chosen_port(dashboard: Start) -> None:
    """--port is the page's; if it is taken, the error says so and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        started = await dashboard("--no-open", "--port", str(number))
        _, err = await asyncio.wait_for(started.process.communicate(), PATIENCE)
        assert started.process.returncode == 1
        assert f"127.0.0.1:{number}" in err.decode()
        assert "hint:" in err.decode()
    again = await dashboard("--no-open", "--port", str(number))
    assert again.port == number


@pytest.mark.parametrize("port", ["80", "65536", "-1", "x", "٨١٢٣", ""])
async def test_wrong_port(dashboard: Start, port: str) -> None:
    """A port that no page can have is wrong usage."""
    started = await dashboard("--no-open", f"--port={port}")
    _, err = await asyncio.wait_for(started.process.communicate(), PATIENCE)
    assert started.process.returncode == 2
    assert "1024 to 65535" in err.decode()


async def test_browser_gets_a_private_file(dashboard: Start, tmp_path: Path) -> None:
    """The browser is started with a file that only its owner can read, and the token isn't in its arguments."""
    seen = tmp_path / "seen"
    program = tmp_path / "browser"
    script = '#!/bin/sh\nfile="${1#file://}"\n{ echo "$*"; ls -l "$file"; cat "$file"; } > SEEN.new\nmv SEEN.new SEEN\n'
    program.write_text(script.replace("SEEN", f"'{seen}'"))
    program.chmod(0o700)
    started = await dashboard(BROWSER=f"{program} %s", DISPLAY=":99")
    await until(seen.exists, patience=PATIENCE)
    arguments, mode, content = seen.read_text().split("\n", 2)
    assert (mode[:10], started.token in arguments, f"url={started.url}" in content) == ("-rw-------", False, True)
    opened = tmp_path / arguments.removeprefix("file://")
    assert opened.exists()
    await started.end()
    assert not opened.parent.exists()


@pytest.mark.parametrize("number", [SIGINT, SIGTERM, SIGHUP])
async def test_browser_that_stays_in_the_foreground(dashboard: Start, tmp_path: Path, number: Signals) -> None:
    """The dashboard ends at once with a browser whose command lasts as long as its window, and removes the file."""
    seen, program = tmp_path / "seen", tmp_path / "browser"
    script = '#!/bin/sh\necho $$ "${1#file://}" > SEEN.new\nmv SEEN.new SEEN\nexec sleep 999 >/dev/null 2>&1\n'
    program.write_text(script.replace("SEEN", f"'{seen}'"))
    program.chmod(0o700)
    started = await dashboard(BROWSER=f"{program} %s", DISPLAY=":99")
    await until(seen.exists, patience=PATIENCE)
    process, path = seen.read_text().split()
    opened = tmp_path / path
    try:
        code, _, _ = await started.end(number)
        assert (code, opened.exists()) == (0, False)
    finally:
        os.kill(int(process), SIGKILL)


async def test_over_ssh(dashboard: Start) -> None:
    """Over SSH no browser is opened; it prints the command that brings the page to the machine of the owner."""
    started = await dashboard(
        SSH_CONNECTION="192.0.2.1 5000 192.0.2.7 22", DISPLAY=":99", BROWSER="false %s", USER="me"
    )
    code, _, err = await started.end()
    assert code == 0
    assert f"ssh -N -L {started.port}:127.0.0.1:{started.port} me@192.0.2.7" in err


@pytest.mark.parametrize(
    ("connection", "user", "command"),
    [
        ("192.0.2.1 5000 192.0.2.7 22", "me", "ssh -N -L 8123:127.0.0.1:8123 me@192.0.2.7"),
        ("192.0.2.1 5000 192.0.2.7 2222", "me", "ssh -N -L 8123:127.0.0.1:8123 -p 2222 me@192.0.2.7"),
        ("fd7a::1 5000 fd7a::7 22", "", "ssh -N -L 8123:127.0.0.1:8123 fd7a::7"),
        ("", "me", ""),
        ("192.0.2.1 5000", "me", ""),
    ],
    ids=["usual", "other_port", "ipv6", "no_ssh", "torn"],
)
def test_tunnel(connection: str, user: str, command: str) -> None:
    """The command has the same port on both sides, because the page is served under one exact address."""
    assert browser.tunnel({"SSH_CONNECTION": connection, "USER": user}, 8123) == command


@pytest.mark.parametrize(
    ("environ", "platform", "opens"),
    [
        ({}, "darwin", True),
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "w"}, "linux", True),
        ({"SSH_CONNECTION": "a b c d"}, "darwin", False),
    ],
    ids=["mac", "no_screen", "x11", "wayland", "ssh"],
)
def test_when_a_browser_is_opened(environ: dict[str, str], platform: str, opens: bool) -> None:
    """A browser is opened only where the owner would see it."""
    assert (browser.why_not(environ, platform) == "") == opens


def test_file_for_the_browser() -> None:
    """The file is private from the start, and goes with its folder; a browser that can't be started is no error."""
    opening = browser.Opening("http://127.0.0.1:1/#a&b")
    assert stat.S_IMODE(opening.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(opening.path.parent.stat().st_mode) == 0o700
    assert "url=http://127.0.0.1:1/#a&amp;b" in opening.path.read_text()

    def broken(_url: str) -> bool:
        raise OSError("no browser")

    failed = Event()
    opening.open(failed.set, broken)
    assert failed.wait(PATIENCE)
    opening.remove()
    opening.remove()
    assert not opening.path.parent.exists()


# --- the file ---------------------------------------------------------------------------------------------------------


async def test_export(dashboard: Start, tmp_path: Path) -> None:
    """--export writes the file, says so, and ends."""
    path = tmp_path / "week.html"
    started = await dashboard("--export", str(path))
    await asyncio.wait_for(started.process.communicate(), PATIENCE)
    assert (started.process.returncode, started.url.startswith(f"wrote {path}")) == (0, True)
    assert "period=all&model=qwen3%3A8b" in path.read_text().replace("\\u0026", "&")


@pytest.mark.parametrize(
    ("words", "variables", "code", "says"),
    [
        pytest.param(["--export", "access.log"], {}, 2, "doesn't end in .html", id="no_page"),
        pytest.param(["--export", "/nowhere/a.html"], {}, 1, "can't be written", id="no_folder"),
        pytest.param(["--export", "a.html", "--access-log", "-"], {}, 1, "standard output", id="log_not_kept"),
        pytest.param(["--export", "a.html", "--access-log", "/nowhere/a.log"], {}, 1, "/nowhere/a.log", id="no_log"),
    ],
)
async def test_export_that_fails(
    dashboard: Start, words: list[str], variables: dict[str, str], code: int, says: str
) -> None:
    """An export that is impossible says why and what to do, and writes nothing."""
    started = await dashboard(*words, **variables)
    _, err = await asyncio.wait_for(started.process.communicate(), PATIENCE)
    assert started.process.returncode == code
    assert says in err.decode()
    assert "hint:" in err.decode()
