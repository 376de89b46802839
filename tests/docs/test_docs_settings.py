"""docs/settings.md has one entry for each option, and its figures are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.settings.kinds import takes
from proxy.settings.settings import (
    FILE_ONLY,
    OPTIONS,
    RESTART_ONLY,
    Settings,
    default_paths,
    flag,
    variable,
    written,
)

TEXT = (Path(__file__).parent.parent.parent / "docs" / "settings.md").read_text()
ENTRIES = {
    name: dict(re.findall(r"^- ([^:\n]+): (.+)$", body, re.MULTILINE)) | {"head": body.strip().partition("\n")[0]}
    for name, body in re.findall(r"^### (\w+)\n(.*?)(?=^###? |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}
COMPUTED = {"config", "access_log", "max_connections_per_client"}  # defaults that depend on something


def test_every_option_has_an_entry():
    """The entries are the options, in the order of the help."""
    assert list(ENTRIES) == list(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_entry(option):
    """An entry names flag and variable, and has effect, unit, default, range, zero, caution and related settings."""
    entry = ENTRIES[option]
    parts = ["Effect", "Unit", "Default", "Range", "Zero", "Before changing it", "See also", "head"]
    assert list(entry) == parts
    spelled = f"`{flag(option)}` · `{variable(option)}`"
    assert entry["head"] == ("in the file only" if option in FILE_ONLY else spelled)
    assert entry["Range"] == takes(Settings.model_fields[option])
    if option not in COMPUTED:
        shown = written(Settings())[option]
        assert entry["Default"] == (f"`{shown}`" if shown else "none")
    assert set(re.findall(r"\(#(\w+)\)", entry["See also"])) <= {*OPTIONS, "sources"} - {option}


@pytest.mark.parametrize("option", ["config", "access_log"])
def test_default_places(option):
    """The default of a path is given for macOS and for Linux."""
    noted = ENTRIES[option]["Default"]
    assert f"`{default_paths({'HOME': '~'}, 'darwin')[option]}` on macOS" in noted
    elsewhere = default_paths({"HOME": "~"}, "linux")[option]
    folder, name = elsewhere.split("/remote-ollama-proxy/")
    assert f"`remote-ollama-proxy/{name}` in `$XDG_" in noted
    assert f"or `{folder}`" in noted


def test_zero_is_told_where_it_is_in_range():
    """Where 0 can be given, the entry says what it means; where it can't, that."""
    for option, entry in ENTRIES.items():
        starts_at_zero = re.match(r"0s? to ", entry["Range"]) is not None
        counts = re.match(r"\S+ to ", entry["Range"]) is not None
        assert (entry["Zero"] == "not in range") is (counts and not starts_at_zero), option


def test_restart_is_told():
    """The options that a reload can't apply are named together."""
    sentence = re.search(r"A change of (.+?) is reported and needs a restart", TEXT, re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", sentence)) == RESTART_ONLY
