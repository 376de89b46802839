"""The standard streams keep their descriptors, even if the program was started with some of them closed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from proxy.logs.stdio import Stream
from tests.support.patience import PATIENCE

HOLD = """
import os
from proxy.logs.stdio import hold_standard_streams
for number in {closed}:
    os.close(number)
hold_standard_streams()
other = os.open(os.devnull, os.O_RDONLY)
os._exit(other)
"""


@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_closed_ones_are_held(closed: tuple[int, ...]) -> None:
    """However many of the three are closed, what is opened next is none of them."""
    done = subprocess.run([sys.executable, "-c", HOLD.format(closed=closed)], check=False, timeout=PATIENCE)
    assert done.returncode == 3


def test_held_stream_refuses() -> None:
    """A closed stream can't be written to: opening it is an error, and so is each line."""
    held = os.open(os.devnull, os.O_RDONLY)
    stream = Stream(held)
    try:
        with pytest.raises(OSError, match="a standard stream that is closed"):
            stream.open()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            stream.append(b"line\n")
    finally:
        os.close(held)


def test_open_stream() -> None:
    """A stream that can be written is simply used; it can't be removed, and has no other name to follow."""
    reading, writing = os.pipe()
    stream = Stream(writing)
    stream.open()
    assert (stream.append(b"line\n"), stream.renew(), stream.reopen()) == (5, b"", b"")
    assert os.read(reading, 9) == b"line\n"
    os.close(reading)
    os.close(writing)
