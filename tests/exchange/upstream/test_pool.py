"""Which idle connection serves next, and which are closed instead of kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from proxy.exchange.upstream.pool import IDLE_FOR, MAX_IDLE, Pool


@dataclass(eq=False)
class Connection:
    """What a pool looks at in a connection."""

    name: str = ""
    reusable: bool = True
    owner: object = field(default_factory=object)
    idle_since: float = 0.0
    closed: bool = False

    def close(self) -> None:
        """Remember it."""
        self.closed = True


def pool_of(*connections: Connection) -> Pool:
    """Return a pool that was given these, one a second."""
    pool = Pool()
    for now, connection in enumerate(connections):
        pool.put(cast("Any", connection), float(now))
        assert not connection.closed
    return pool


def test_an_empty_pool_has_none() -> None:
    """Where nothing is idle there is nothing to take."""
    assert Pool().take() is None


def test_the_last_used_serves_next() -> None:
    """The connection used last is taken first, so that the rest may grow old and go."""
    connections = [Connection("a"), Connection("b"), Connection("c")]
    pool = pool_of(*connections)
    assert len(pool) == 3
    assert [pool.take() for _ in range(4)] == [*reversed(connections), None]
    assert len(pool) == 0


def test_put_ends_the_service() -> None:
    """An idle connection has no owner, and its age counts from when it was put back."""
    connection = Connection()
    pool = pool_of(Connection(), connection)
    assert (connection.owner, connection.idle_since) == (None, 1.0)
    assert len(pool) == 2


def test_take_passes_over_what_went_away() -> None:
    """A connection that went away while it was idle is not given out."""
    gone, standing = Connection("gone"), Connection("standing")
    pool = pool_of(standing, gone)
    gone.reusable = False
    assert pool.take() is standing
    assert pool.take() is None


def test_put_beyond_the_limit() -> None:
    """Over `MAX_IDLE` the one idle for longest is closed."""
    connections = [Connection(str(number)) for number in range(MAX_IDLE)]
    pool = pool_of(*connections)
    pool.put(cast("Any", Connection("one more")), 100.0)
    assert [connection.closed for connection in connections] == [True, *[False] * (MAX_IDLE - 1)]
    assert len(pool) == MAX_IDLE


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param(IDLE_FOR, [], id="none_yet"),
        pytest.param(IDLE_FOR + 0.5, ["a"], id="the_oldest"),
        pytest.param(IDLE_FOR + 9, ["a", "b", "c"], id="all"),
    ],
)
def test_expired(now: float, expected: list[str]) -> None:
    """A connection idle for more than `IDLE_FOR` seconds is closed."""
    connections = [Connection("a"), Connection("b"), Connection("c")]
    pool = pool_of(*connections)
    pool.expire(now)
    assert [connection.name for connection in connections if connection.closed] == expected
    assert len(pool) == 3 - len(expected)


def test_expired_when_gone() -> None:
    """A connection that went away is dropped at the next look, however young."""
    gone = Connection("gone")
    pool = pool_of(Connection(), gone, Connection())
    gone.reusable = False
    pool.expire(2.0)
    assert len(pool) == 2
