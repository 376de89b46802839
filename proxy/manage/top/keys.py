"""Keys that are pressed at a terminal, one by one."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

# What terminals send for the arrows: ECMA-48 cursor keys, in normal and in application mode.
_ARROWS = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1bOA": "up", b"\x1bOB": "down"}


class Keys:
    """Standard input without echo and without waiting for a line. Ctrl-C still interrupts."""

    def __enter__(self) -> Self:
        self._descriptor = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def pressed(self, within: float) -> str:
        """Return the next key, `up` or `down` for arrows; "" if none comes `within` so many seconds."""
        if not select.select([self._descriptor], [], [], within)[0]:
            return ""
        octets = os.read(self._descriptor, 16)
        if not octets:  # the terminal is gone
            raise KeyboardInterrupt
        return _ARROWS.get(octets[:3], octets[:1].decode("ascii", "replace"))
