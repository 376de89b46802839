"""Fixtures: a tailnet of its own for each test, which is there in a second, and a machine in it that serves."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.tailnet.machines import Tailnet
from tests.tailnet.served import Served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.tailnet.machines import Machine

# Only `make test-tailnet` sets it; `make test` doesn't even import them.
ON_DEMAND = bool(os.environ.get("TEST_TAILNET"))
collect_ignore_glob = [] if ON_DEMAND else ["test_*.py", "access/test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def _on_demand() -> None:
    """Skip a test that is named on pytest's command line, where the programs may not be built."""
    if not ON_DEMAND:
        pytest.skip("needs a real tailnet: sudo make test-tailnet")


@pytest.fixture
def make_tailnet(tmp_path: Path) -> Iterator[Callable[..., Tailnet]]:
    """Give a function that makes a tailnet; see `Tailnet`."""
    with ExitStack() as undo:
        yield lambda *flags, domain="tail1234.ts.net": Tailnet(tmp_path, undo, domain, *flags)


@pytest.fixture
def tailnet(make_tailnet: Callable[..., Tailnet]) -> Tailnet:
    """Give a tailnet with MagicDNS."""
    return make_tailnet()


@pytest.fixture
def mac(tailnet: Tailnet) -> Served:
    """Give the machine in it that serves; nothing runs there yet but Tailscale."""
    return Served(tailnet.join("mac"))


@pytest.fixture
def laptop(mac: Served, tailnet: Tailnet) -> Machine:
    """Give a person's device in it."""
    return tailnet.join("laptop")
