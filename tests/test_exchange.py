"""The record that flows through the rooms: picking out of a head the fields that this gateway reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import exchange
from proxy.exchange import READ_FIELDS, Exchange, Phase, RequestHead


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


def test_memory_of_spellings_is_bounded():
    """A client that invents field names makes the cache of spellings no larger than its limit."""
    head(*((b"x-%d" % number, b"") for number in range(3 * exchange._SPELLINGS_LIMIT)))
    assert len(exchange._spellings) <= exchange._SPELLINGS_LIMIT
    assert head((b"HoSt", b"mac")).read == {b"host": b"mac"}


def test_new_exchange_claims_nothing():
    """An exchange that has only begun is in its head phase, without an end, a verdict or a count."""
    fresh = Exchange("id", "::1", 1, 2.0)
    assert fresh.phase is Phase.HEAD
    assert (fresh.verdict, fresh.status, fresh.ended, fresh.ended_by, fresh.reason) == (None,) * 5
    assert (fresh.request_octets, fresh.response_octets) == (0, 0)


def test_long_names_are_not_remembered():
    """A field name longer than any that is read takes no place in memory."""
    RequestHead("GET", "/", (1, 1), ((b"x" * 60_000, b""),))
    assert b"x" * 60_000 not in exchange._spellings
