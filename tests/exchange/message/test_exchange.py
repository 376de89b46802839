"""A head as a value, and an exchange: how it goes on, and its one end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange.message.exchange import MOVES, Exchange, Move, Outcome, Party, Phase, WrongMoveError
from proxy.policy.heads import READ_FIELDS, RequestHead


def head(*fields: tuple[bytes, bytes], target: str = "/") -> RequestHead:
    return RequestHead("GET", target, (1, 1), fields)


def test_start_line_and_fields_are_kept_as_they_came():
    """Nothing of a head is changed: case, order, repeats and values stay."""
    fields = ((b"hOST", b"mac"), (b"X-B", b"1"), (b"X-b", b"2"))
    got = RequestHead("POST", "/a?b", (1, 0), fields)
    assert (got.method, got.target, got.version, got.fields) == ("POST", "/a?b", (1, 0), fields)


@pytest.mark.parametrize("name", [b"host", b"Host", b"HOST", b"hOsT"])
def test_names_are_read_in_any_case(name):
    """A field is read whatever the case of its name (RFC 9110, 5.1)."""
    assert head((name, b"mac")).read == {b"host": b"mac"}


def test_first_value_is_read_and_later_ones_are_told_apart():
    """`read` has the first value of a repeated field, `repeated` the others in order, whatever their spelling."""
    got = head((b"Host", b"a"), (b"Via", b"1.1 x"), (b"HOST", b"b"), (b"host", b"c"))
    assert got.read == {b"host": b"a", b"via": b"1.1 x"}
    assert got.repeated == {b"host": [b"b", b"c"]}


def test_other_fields_are_not_picked_out():
    """Fields that the gateway does not read appear only among the field lines."""
    got = head((b"Authorization", b"Bearer x"), (b"Authorization", b"Bearer y"))
    assert (got.read, got.repeated) == ({}, {})


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1/messages?beta=true", "/v1/messages"),
        ("/a?b?c", "/a"),
        ("/a#b?c", "/a#b"),
        ("/%3fa", "/%3fa"),
        ("?a", ""),
        ("/", "/"),
    ],
)
def test_path_ends_at_the_first_question_mark(target, path):
    """The path is the target up to its first `?`, not decoded."""
    assert head(target=target).path == path


@given(st.lists(st.tuples(st.sampled_from([*READ_FIELDS, b"accept", b"x-host"]), st.binary(max_size=4))))
def test_picking_out_agrees_with_the_plain_way(fields):
    """For any fields, `read` and `repeated` are what a search through the lines finds."""
    got = head(*((name.title(), value) for name, value in fields))
    for name in READ_FIELDS:
        values = [value for other, value in fields if other == name]
        assert got.read.get(name) == (values[0] if values else None)
        assert got.repeated.get(name, []) == values[1:]
    assert set(got.read) <= READ_FIELDS


# --- how an exchange goes on ------------------------------------------------------------------------------------------

WAYS = {phase: [move for move in Move if move in MOVES[phase]] for phase in Phase}


def exchange_in(phase):
    """Return an exchange that has come to `phase` by moves of the table."""
    made = Exchange("id", "::1", 1, 2.0, None)
    ways = {Phase.HEAD: []}
    for known in list(Phase) * 2:
        for move in WAYS[known] if known in ways else ():
            ways.setdefault(MOVES[known][move], [*ways[known], move])
    for move in ways[phase]:
        made.move(move)
    assert made.phase is phase
    return made


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("move", Move)
def test_every_move_is_in_the_table(phase, move):
    """An exchange makes the moves of the table; any other names both and changes nothing."""
    made = exchange_in(phase)
    if move in WAYS[phase]:
        made.move(move)
        assert made.phase is MOVES[phase][move]
    else:
        with pytest.raises(WrongMoveError, match=f"{move} while {phase}"):
            made.move(move)
        assert made.phase is phase


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.DONE])
def test_one_end(phase):
    """From every phase an exchange ends once, with one record that says where it stood and how it ended."""
    made, records = exchange_in(phase), []
    made.end(Outcome(502, Party.UPSTREAM, "why"), records.append)
    (record,) = records
    assert (record.phase, record.status, record.ended_by, record.reason) == (phase, 502, Party.UPSTREAM, "why")
    with pytest.raises(WrongMoveError):
        made.end(Outcome(200), records.append)
    assert len(records) == 1
    assert repr(made) == "<Exchange id done>"


def test_a_record_never_changes():
    """What the log was given stays as it is."""
    made, records = exchange_in(Phase.WAIT), []
    made.end(Outcome(200), records.append)
    with pytest.raises(AttributeError):
        records[0].status = 500
    made.model = "later"
    assert records[0].model is None


def test_a_record_holds_all_that_was_noted():
    """Every fact that an exchange was given is in its record, under the same name."""
    asked, records = head(), []
    made = Exchange("id", "::1", 1, 2.0, asked)
    noted = {name: getattr(made, name) for name in ("id", "peer", "peer_port", "arrived", "arrived_at", "head")}
    no_line_says = {"phase", "origin", "blank", "rule", "shown"}
    for name in set(Exchange.__slots__) - set(noted) - no_line_says:
        noted[name] = object()
        setattr(made, name, noted[name])
    made.end(Outcome(200), records.append)
    assert {name: getattr(records[0], name) for name in noted} == noted
    assert records[0].head is asked


def test_a_new_exchange_has_counted_no_byte():
    """Counting starts at zero in both directions."""
    made = Exchange("id", "::1", 1, 2.0, None)
    assert (made.request_octets, made.response_octets) == (0, 0)


def test_arrival_on_the_wall_clock(monkeypatch):
    """The arrival's time of day is that of now, less the seconds that have passed since."""
    monkeypatch.setattr("proxy.exchange.message.exchange.time", lambda: 1_000.0)
    monkeypatch.setattr("proxy.exchange.message.exchange.monotonic", lambda: 50.0)
    assert Exchange("id", "::1", 1, 47.0, None).arrived_at == 997.0
