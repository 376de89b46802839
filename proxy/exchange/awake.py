"""Keep a Mac from idle sleep while a model answers, with `/usr/bin/caffeinate`.

An exchange only counts itself in and out. Separate tasks start and end the program. If it fails, that costs a
diagnostic, never an exchange. `-w PID` ends it with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from proxy.policy.routes import Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.policy.gate import Verdict

CAFFEINATE = "/usr/bin/caffeinate"

# Seconds that the machine is kept awake after the last answer, in which a coding tool's next request usually comes.
LINGER = 60.0
# Seconds after which a program that failed is tried again, which is also how often a failure is reported.
RETRY_AFTER = 60.0
# Seconds that the program may take to end.
END_WITHIN = 2.0


def is_service() -> bool:
    """Return whether this process is a job of launchd on macOS."""
    return sys.platform == "darwin" and os.getppid() == 1


def arguments(pid: int) -> tuple[str, ...]:
    """Return the arguments with which caffeinate keeps the machine from idle sleep for the process `pid`."""
    return ("-i", "-w", str(pid))


class Awake:
    """Counts the running answers. Holds a power assertion while there are any, and for `LINGER` longer."""

    def __init__(
        self,
        note: Callable[..., object],
        warn: Callable[..., object],
        *,
        program: str = CAFFEINATE,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`note` reports the begin and end of a hold, `warn` reports trouble. Each takes an event and its fields."""
        self.enabled = True  # the setting; a reload may change it
        self._note = note
        self._warn = warn
        self._program = program
        self._clock = clock
        self._answers = 0  # running answers
        self._until = 0.0  # when the last hold ends, once no answer runs
        self._retry_at = 0.0
        self._holding: asyncio.Task[None] | None = None
        self._ending = False  # it has been asked to end

    def __repr__(self) -> str:
        """Show what is counted and whether a hold is on."""
        return f"<Awake {self._answers} answers, {'holding' if self._holding else 'not holding'}>"

    def begin(self, route: Route) -> None:
        """Count an admitted exchange in, if a model must answer it."""
        if route.needs_model:
            self._answers += 1
            if self._holding is None:
                self._hold()

    def end(self, verdict: Verdict | None) -> None:
        """Count out an exchange that was counted in. Others change nothing."""
        if isinstance(verdict, Route) and verdict.needs_model:
            self._answers -= 1
            self._until = self._clock() + LINGER

    def tick(self) -> None:
        """End a hold that is over, and start one again that failed. Call it each second."""
        wanted = self.enabled and (self._answers > 0 or self._clock() < self._until)
        if self._holding is None and wanted:
            self._hold()
        elif self._holding is not None and not wanted:
            self._release()

    async def close(self) -> None:
        """End the hold, if there is one."""
        self.enabled = False
        if self._holding is not None:
            self._release()
            await asyncio.gather(self._holding, return_exceptions=True)

    def _hold(self) -> None:
        if self.enabled and self._clock() >= self._retry_at:
            self._holding = asyncio.get_running_loop().create_task(self._run())
            self._holding.add_done_callback(self._held)

    def _release(self) -> None:
        if self._holding is not None and not self._ending:
            self._ending = True
            self._holding.cancel()

    def _held(self, task: asyncio.Task[None]) -> None:
        self._holding = None
        self._ending = False
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(type(error).__name__)

    async def _run(self) -> None:
        """Run the program until cancelled. It should never end by itself."""
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                *arguments(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            self._failed(error.strerror or type(error).__name__)
            return
        began = self._clock()
        self._note("kept_awake", program=self._program, pid=process.pid)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            self._note("may_sleep_again", seconds=round(self._clock() - began))
        else:
            self._note("may_sleep_again", seconds=round(self._clock() - began))
            self._failed(f"it ended by itself with code {code}")

    def _failed(self, problem: str) -> None:
        self._retry_at = self._clock() + RETRY_AFTER
        self._warn("not_kept_awake", problem=problem, hint=f"the Mac may sleep during an answer; see {self._program}")


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_WITHIN):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
