"""`cancel`: end one request, so that its slot is free for the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.machine.live_client import LiveError
from proxy.manage.top.place import live_of
from proxy.terminal.result import CommandError, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.terminal.printer import Printer


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:
    """End the requests with the id in `args`."""
    try:
        ended = live_of(machine, flags).cancel(args.id)
    except LiveError as error:
        raise CommandError(str(error), error.hint) from error
    if not ended:
        raise CommandError(f"no request {args.id} is running or waiting", f"{PROGRAM} top")
    out.say(f"ended {args.id}: its client got an error" if ended == 1 else f"ended {ended} requests called {args.id}")
    return Result(data={"ended": ended})
