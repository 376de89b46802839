"""docs/security.md and docs/hardening-options.md: what they rest on is there, and what they show can be used."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import tomllib
from functools import cache

import pytest

from proxy.policy.refusals import Reason
from proxy.settings.settings import OPTIONS, Settings, load
from tests.docs.test_docs import DOCUMENTATION, PAGES, ROOT, blocks, marked, section, table

SECURITY = PAGES["docs/security.md"]
HARDENING = PAGES["docs/hardening-options.md"]
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@cache
def functions(path):
    """Return the names of the functions in a Python file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


@pytest.mark.parametrize("name", [name for name, page in DOCUMENTATION.items() if _TEST.search(page)])
def test_named_tests_exist(name):
    """A test that a page names is in the file that it names."""
    for path, function in _TEST.findall(DOCUMENTATION[name]):
        assert (ROOT / path).exists(), path
        assert not function or function in functions(ROOT / path), f"{path}::{function}"


THREATS = table(section(SECURITY, "## Threats"))


def test_every_threat_has_a_test():
    """Each row of the threat model says what stops it, and names a test by file and function."""
    assert len(THREATS) > 20
    for tries, stops, _, tests in THREATS:
        assert stops, tries
        assert [found for found in _TEST.findall(tests) if found[1]], tries


def test_threats_name_reasons():
    """What the threat model says stands in the log is a reason, and every refusal of the gate is there."""
    named = {reason for row in THREATS for reason in marked(row[2])}
    assert named <= set(Reason)
    harmless = {  # clients that are mistaken, not hostile
        *("version_not_served", "host_repeated", "origin_repeated", "host_missing", "host_malformed"),
        *(
            "expectation_unknown",
            "content_coding_unknown",
            "draining",
            "upstream_unreachable",
            "upstream_timeout",
            "held_upload",
            "load_failed",
            "cancelled",
            "internal",
        ),
    }
    assert set(Reason) - named == harmless


def test_threats_name_settings():
    """A setting that the two pages name is an option's."""
    for page in (SECURITY, HARDENING):
        for text in marked(page):
            if re.fullmatch(r"(?:max|allow|allowed|log|head|body|stall|drain|forward)_[a-z_]+", text):
                assert text in OPTIONS or text in set(Reason), text


def test_policies_are_whole():
    """Each policy file for Tailscale that a page shows grants the proxy's port only, to tags and groups that it has."""
    shown = [body for page in DOCUMENTATION.values() for body in blocks(page, "json") if '"grants"' in body]
    assert len(shown) >= 3
    for policy in map(json.loads, shown):
        known = {*policy.get("groups", ()), *policy["tagOwners"], "autogroup:member"}
        for grant in policy["grants"]:
            assert {*grant["src"], *grant["dst"]} <= known
            assert grant["ip"] == [f"tcp:{Settings().port}"]
        for test in policy.get("tests", ()):
            assert test["accept"] == [f"{grant['dst'][0]}:{Settings().port}" for grant in policy["grants"]]
            assert test["src"] in policy["groups"]["group:models"]


def test_tighter_limits_are_tighter(tmp_path):
    """The limits that hardening-options shows are below the defaults, and can be served with."""
    (body,) = blocks(HARDENING, "toml")
    path = tmp_path / "config.toml"
    path.write_text(body)
    tight = load({"config": str(path)}, {"HOME": str(tmp_path)}).settings
    for option in tomllib.loads(body):
        assert getattr(tight, option) < getattr(Settings(), option), option


def test_old_logs_are_removed(tmp_path):
    """The command that removes old logs removes those that were rotated long ago, and no other file."""
    (command,) = [body for body in blocks(HARDENING, "sh") if body.startswith("find ")]
    logs = tmp_path / "Library/Logs/remote-ollama-proxy"
    logs.mkdir(parents=True)
    for name in ("access.log", "access.log.1", "access.log.10", "diagnostics.log.1", "access.log.2", "launchd.log"):
        (logs / name).touch()
        if name != "access.log.2":
            os.utime(logs / name, (0, 0))
    subprocess.run(["sh", "-c", command], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    assert sorted(path.name for path in logs.iterdir()) == ["access.log", "access.log.2", "launchd.log"]


def test_every_option_of_hardening_is_told():
    """Each row says whether it is built in, a setting, the owner's or left out, and a `below` leads to its section."""
    for option, what, more in table(section(HARDENING, "## All of them")):
        assert re.match(r"(?:built in|a setting|yours|left out)\b", what), option
        assert "[below]" not in more or "](#" in more
