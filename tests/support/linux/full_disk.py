"""A disk that is full under one open file. Linux only, for its /dev/full."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")


@contextmanager
def full_disk(path: str | Path) -> Iterator[None]:
    """Put /dev/full, where every write is ENOSPC, under the one descriptor that this process has open for a file."""
    number = _descriptor(Path(path))
    kept, full = os.dup(number), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, number)
    os.close(full)
    try:
        yield
    finally:
        with suppress(OSError):  # who had the file open may have closed it
            os.fstat(number)
            os.dup2(kept, number)
        os.close(kept)


def _descriptor(path: Path) -> int:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if os.path.samestat(os.fstat(int(entry.name)), path.stat()):
                found.append(int(entry.name))
    (one,) = found
    return one
