"""Values of options: what is read, what is refused and how it is shown."""

from __future__ import annotations

import os
import re
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from proxy.settings import kinds

SIZE = Annotated[kinds.Size, Field(ge=0, le=kinds.GIB)]
DURATION = Annotated[kinds.Duration, Field(ge=0, le=86_400)]
COUNT = Annotated[kinds.Count, Field(ge=1, le=65_535)]


def write(kind, value):
    """Return a value as a source would have it."""
    return TypeAdapter(kind).dump_python(value, mode="json")


@pytest.mark.parametrize(
    ("kind", "given_", "value"),
    [
        pytest.param(SIZE, "0", 0, id="size_zero"),
        pytest.param(SIZE, "1000", 1000, id="size_octets"),
        pytest.param(SIZE, 1000, 1000, id="size_toml_integer"),
        pytest.param(SIZE, "64KiB", 65_536, id="size_kib"),
        pytest.param(SIZE, "64 MiB", 67_108_864, id="size_space_before_unit"),
        pytest.param(SIZE, " 1GiB ", 1_073_741_824, id="size_gib"),
        pytest.param(DURATION, "10", 10.0, id="duration_bare_is_seconds"),
        pytest.param(DURATION, 0.5, 0.5, id="duration_toml_float"),
        pytest.param(DURATION, "1.5s", 1.5, id="duration_fraction"),
        pytest.param(DURATION, "5m", 300.0, id="duration_minutes"),
        pytest.param(DURATION, "1h", 3600.0, id="duration_hour"),
        pytest.param(COUNT, "65535", 65_535, id="number"),
        pytest.param(kinds.Switch, "TRUE", True, id="switch_any_case"),
        pytest.param(kinds.Switch, "0", False, id="switch_zero"),
        pytest.param(kinds.Switch, False, False, id="switch_toml"),
        pytest.param(kinds.Level, "Info", "info", id="choice_any_case"),
        pytest.param(kinds.Texts, " a, b,,a ", ("a", "b"), id="list_commas_spaces_doubles"),
        pytest.param(kinds.Texts, ["a", "b"], ("a", "b"), id="list_toml_array"),
        pytest.param(kinds.Texts, "", (), id="list_empty_text"),
        pytest.param(kinds.Output, "-", "-", id="file_dash"),
        pytest.param(kinds.Errors, "-", None, id="file_dash_as_none"),
        pytest.param(kinds.Output, "/var/log/../x", "/var/x", id="file_tidied"),
        pytest.param(kinds.Output, "x", f"{os.getcwd()}/x", id="file_relative_to_here"),
        pytest.param(kinds.Output, "~/x", os.path.expanduser("~/x"), id="file_home"),
    ],
)
def test_kind_reads(kind, given_, value):
    """Texts of flags and variables, and what TOML makes of its values, mean the same."""
    read = kinds.reader(kind)(given_)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("kind", "given_", "message"),
    [
        pytest.param(SIZE, "12XB", "is not a size", id="size_unknown_unit"),
        pytest.param(SIZE, "64MB", "is not a size", id="size_decimal_unit"),
        pytest.param(SIZE, "1.5MiB", "is not a size", id="size_fraction"),
        pytest.param(SIZE, "٣", "is not a size", id="size_digits_of_another_script"),
        pytest.param(SIZE, "1_000", "is not a size", id="size_underscore"),
        pytest.param(SIZE, True, "is not a size", id="size_from_truth"),
        pytest.param(SIZE, "", "is not a size", id="size_empty"),
        pytest.param(SIZE, "9" * 19, "is not a size", id="size_endless_digits"),
        pytest.param(SIZE, "-1", "is out of range: 0 to 1GiB", id="size_negative"),
        pytest.param(SIZE, "2GiB", "is out of range: 0 to 1GiB", id="size_over"),
        pytest.param(DURATION, "10ms", "is not a duration", id="duration_unknown_unit"),
        pytest.param(DURATION, "1e3", "is not a duration", id="duration_exponent"),
        pytest.param(DURATION, float("nan"), "is not a duration", id="duration_nan"),
        pytest.param(DURATION, float("inf"), "is not a duration", id="duration_infinite"),
        pytest.param(DURATION, "25h", "is out of range: 0s to 24h", id="duration_over"),
        pytest.param(COUNT, "0", "is out of range: 1 to 65535", id="number_under"),
        pytest.param(COUNT, 1.5, "is not a whole number", id="number_fraction"),
        pytest.param(COUNT, ["1"], "is not a whole number", id="number_from_list"),
        pytest.param(kinds.Switch, "maybe", "is not true or false", id="switch_else"),
        pytest.param(kinds.Level, "loud", "is not debug, info, warning or error", id="choice_else"),
        pytest.param(kinds.Texts, 5, "is not a list of strings", id="list_number"),
        pytest.param(kinds.Texts, ["a", 5], "is not a list of strings", id="list_of_numbers"),
        pytest.param(kinds.Output, "", "is not a path, or `-` for standard output", id="file_empty"),
        pytest.param(kinds.Output, 5, "is not a path", id="file_number"),
        pytest.param(kinds.Output, "a\0b", "is not a path", id="file_nul"),
        pytest.param(kinds.File, "-", "is not a path", id="file_dash_without_meaning"),
    ],
)
def test_kind_refuses(kind, given_, message):
    """What a kind can't read or may not take is a ValueError that says what it takes."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        kinds.reader(kind)(given_)


@given(st.integers(0, kinds.GIB))
def test_size_shown_reads_back(octets):
    """A size that is shown, with whatever unit, is the same size when it is read."""
    assert kinds.reader(SIZE)(write(SIZE, octets)) == octets


@given(st.integers(0, 86_400_000).map(lambda milliseconds: milliseconds / 1000))
def test_duration_shown_reads_back(seconds):
    """A duration that is shown, with whatever unit, is the same duration when it is read."""
    assert kinds.reader(DURATION)(write(DURATION, seconds)) == seconds


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        pytest.param(SIZE, 0, "0", id="size_zero"),
        pytest.param(SIZE, 65_536, "64KiB", id="size_largest_unit_that_divides"),
        pytest.param(SIZE, 65_537, "65537", id="size_no_unit_divides"),
        pytest.param(DURATION, 0.0, "0s", id="duration_zero"),
        pytest.param(DURATION, 90.0, "90s", id="duration_no_whole_minutes"),
        pytest.param(DURATION, 0.25, "0.25s", id="duration_fraction"),
        pytest.param(DURATION, 7200.0, "2h", id="duration_hours"),
        pytest.param(kinds.Switch, True, "true", id="switch"),
        pytest.param(kinds.Texts, ("a", "b"), "a, b", id="list"),
        pytest.param(kinds.Variables, (("A", 'x"y'), ("B", "2")), r'{ A = "x\"y", B = "2" }', id="variables"),
        pytest.param(kinds.Variables, (), "", id="no_variables"),
        pytest.param(kinds.Errors, None, "-", id="file_none"),
    ],
)
def test_kind_shows(kind, value, text):
    """A value is shown as one would write it."""
    assert write(kind, value) == text


@given(st.text(st.characters(codec=None)))
def test_printable_leaves_nothing_that_steers_a_terminal(text):
    """No control character, bidi mark or lone surrogate survives."""
    assert kinds.printable(text).isprintable()


def test_quoted_is_short():
    """A value of any length is shown by its beginning."""
    assert len(kinds.quoted("x" * 10_000)) == kinds.QUOTE_LIMIT + 1
    assert kinds.quoted("a\x1b[31m\x7f\x9b") == r'"a\u001b[31m\x7f\x9b"'
