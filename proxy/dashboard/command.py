"""`dashboard`: serves the page until Ctrl-C, and opens it in a browser; or writes the history as one file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from proxy import PROGRAM
from proxy.dashboard import browser, export
from proxy.dashboard.bar import bar
from proxy.dashboard.guard import Guard, new_token
from proxy.dashboard.page_files import page_files
from proxy.dashboard.past import Past, UnreadableError
from proxy.dashboard.server import Dashboard, application, runner
from proxy.manage.machine.live_client import Live
from proxy.manage.machine.services import settings_environ
from proxy.settings.settings import load
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.terminal.printer import Printer

LOOPBACK = "127.0.0.1"

OPENED_WITHIN = 60.0
"""Seconds after which the file that leads the browser here is removed, whether or not it was opened."""

_COMMAND = f"{PROGRAM} dashboard"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:
    """Serve the page until a signal comes, or write a file."""
    others = {name: value for name, value in flags.items() if name != "port"}
    environ = settings_environ(machine)
    settings = load(others, environ).settings
    log = None if settings.access_log == "-" else os.path.abspath(settings.access_log)
    if args.export is not None:
        return _export(log, Path(args.export), out)
    out.lines_only()
    with _bound(flags.get("port", "0")) as listening:
        asyncio.run(_serve(Past(log), machine, others, Live(settings.port, environ), listening, out, not args.no_open))
    return Result()


# --- the page ---------------------------------------------------------------------------------------------------------


def _bound(port: str) -> socket.socket:
    """Return a socket that listens on loopback. CommandError if that is impossible."""
    if not port.isascii() or not port.isdecimal() or not (port == "0" or 1024 <= int(port) <= 65535):
        raise CommandError(f"--port {port} is not 0 or a number from 1024 to 65535", f"{_COMMAND} --help", Exit.WRONG)
    try:
        return socket.create_server((LOOPBACK, int(port)))
    except OSError as error:
        text = f"the page can't be served on {LOOPBACK}:{port}: {error.strerror}"
        raise CommandError(text, f"{_COMMAND} (chooses a free port)") from error


async def _serve(
    past: Past,
    machine: Machine,
    flags: Mapping[str, str],
    proxy: Live,
    listening: socket.socket,
    out: Printer,
    opens: bool,
) -> None:
    """Serve until a signal comes."""
    token, port = new_token(), listening.getsockname()[1]
    over = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    made = application(Dashboard(machine, flags, proxy, past), Guard(token, port))
    serving = runner(made)
    await serving.setup()
    await web.SockSite(serving, listening).start()
    await past.start()
    building = asyncio.create_task(_ready(past))
    url = f"http://{LOOPBACK}:{port}/#{token}"
    out.line(json.dumps({"url": url}) if out.as_json else url)
    sys.stdout.flush()
    try:
        await _shown(url, port, over, out, opens=opens)
    finally:
        building.cancel()
        await serving.cleanup()
        await past.stop()


async def _ready(past: Past) -> None:
    """Bring the index up to date and read the page's first view once, while the browser starts."""
    await _building(past)
    with suppress(UnreadableError):
        await past.history({})


async def _building(past: Past) -> None:
    """Show how far the index is, until it is ready."""
    if past.keeper is not None:
        with bar("reading the access log") as shown:
            await past.keeper.settled(lambda progress: shown(progress.done, progress.total))


async def _shown(url: str, port: int, over: asyncio.Event, out: Printer, *, opens: bool) -> None:
    """Open the page, if that is possible from here, and wait for the end."""
    why = browser.why_not(os.environ, sys.platform)
    if tunnel := browser.tunnel(os.environ, port):
        out.note(f"on the machine that you sit at, run: {tunnel}")
        out.note("then open the link above there")
    elif opens and why:
        out.note(f"no browser is opened: {why}")
    out.note("the page shows this machine's requests; Ctrl-C ends it")
    if opens and not why:
        opening = browser.Opening(url)
        try:
            opening.open(lambda: out.note("no browser could be opened; open the link above"))
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), OPENED_WITHIN)
        finally:
            opening.remove()
    await over.wait()


# --- the file ---------------------------------------------------------------------------------------------------------


def _export(log: str | None, path: Path, out: Printer) -> Result:
    """Write what the log holds as one file. CommandError if that is impossible."""
    if path.suffix.lower() not in {".html", ".htm"}:
        raise CommandError(f"--export {path} doesn't end in .html", f"{_COMMAND} --export {path}.html", Exit.WRONG)
    if log is None:
        text = "the access log goes to standard output (access_log is `-`), so there is nothing to export"
        raise CommandError(text, f"{_COMMAND} --access-log FILE --export {path}")
    try:
        answered = asyncio.run(_answers(Past(log)))
        export.write(path, export.document(page_files(), answered, log, time.time()))
    except OSError as error:
        raise CommandError(f"{path} can't be written: {error.strerror}", f"ls -ld {path.absolute().parent}") from error
    except KeyboardInterrupt:
        raise CommandError(f"ended before {path} was written") from None
    out.say(f"wrote {path}, which has names and addresses of your devices, but no line of the log")
    return Result(data={"file": str(path)})


async def _answers(past: Past) -> dict[str, dict[str, object]]:
    try:
        await past.start()
        await _building(past)
        progress = past.progress()
        if progress.state != "ready":
            raise CommandError(progress.problem or "the access log can't be read", progress.hint or f"{PROGRAM} status")
        with bar("writing the file") as shown:
            return await export.answers(past.history, shown)
    finally:
        await past.stop()
