"""Fixtures: a home with access rules, for one test or for all tests of a module."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.tailnet.access.home import Home, open_home
from tests.tailnet.machines import Tailnet

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Give a home that no test changes."""
    with ExitStack() as undo:
        yield open_home(Tailnet(tmp_path_factory.mktemp("home"), undo))


@pytest.fixture
def home(tailnet: Tailnet) -> Home:
    """Give a home of its own to a test."""
    return open_home(tailnet)
