"""`dashboard`: serves the page until Ctrl-C, and opens it in a browser."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from proxy import PROGRAM
from proxy.dashboard import browser
from proxy.dashboard.guard import Guard, new_token
from proxy.dashboard.server import ENDS_WITHIN, Dashboard, application
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
    """Serve the page until a signal comes."""
    others = {name: value for name, value in flags.items() if name != "port"}
    environ = settings_environ(machine)
    settings = load(others, environ).settings
    log = None if settings.access_log == "-" else settings.access_log
    out.lines_only()
    with _bound(flags.get("port", "0")) as listening:
        dashboard = Dashboard(machine, others, Live(settings.port, environ), log)
        asyncio.run(_serve(dashboard, listening, out, opens=not args.no_open))
    return Result()


def _bound(port: str) -> socket.socket:
    """Return a socket that listens on loopback. CommandError if that is impossible."""
    if not port.isascii() or not port.isdecimal() or not (port == "0" or 1024 <= int(port) <= 65535):
        raise CommandError(f"--port {port} is not 0 or a number from 1024 to 65535", f"{_COMMAND} --help", Exit.WRONG)
    try:
        return socket.create_server((LOOPBACK, int(port)))
    except OSError as error:
        text = f"the page can't be served on {LOOPBACK}:{port}: {error.strerror}"
        raise CommandError(text, f"{_COMMAND} (chooses a free port)") from error


async def _serve(dashboard: Dashboard, listening: socket.socket, out: Printer, *, opens: bool) -> None:
    """Serve until a signal comes."""
    token, port = new_token(), listening.getsockname()[1]
    over = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    runner = web.AppRunner(application(dashboard, Guard(token, port)), access_log=None, shutdown_timeout=ENDS_WITHIN)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    url = f"http://{LOOPBACK}:{port}/#{token}"
    out.line(json.dumps({"url": url}) if out.as_json else url)
    sys.stdout.flush()
    try:
        await _shown(url, port, over, out, opens=opens)
    finally:
        await runner.cleanup()


async def _shown(url: str, port: int, over: asyncio.Event, out: Printer, *, opens: bool) -> None:
    """Open the page, if that is possible from here, and wait for the end."""
    why = browser.why_not(os.environ, sys.platform)
    if tunnel := browser.tunnel(os.environ, port):
        out.note(f"on the machine that you sit at: {tunnel}")
        out.note("then open the link above there")
    elif opens and why:
        out.note(f"no browser is opened: {why}")
    out.note("the page shows this machine's requests; Ctrl-C ends it")
    if not opens or why:
        await over.wait()
        return
    opening = browser.Opening(url)
    try:
        if not await asyncio.to_thread(opening.open):
            out.note("no browser could be opened; open the link above")
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), OPENED_WITHIN)
    finally:
        opening.remove()
    await over.wait()
