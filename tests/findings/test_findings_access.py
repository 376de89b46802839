"""What `--check` and `verify` find about access rules."""

from __future__ import annotations

import json
import sys

import pytest

from proxy.manage.check import run
from proxy.manage.facts.answers import Answer
from proxy.manage.facts.facts import Facts
from proxy.manage.findings import access
from proxy.manage.machine.machine import Machine
from proxy.settings.settings import load
from proxy.tailnet.device import Who
from proxy.tailnet.serve_rules import Ports, of_serve
from proxy.terminal.finding import Outcome
from proxy.terminal.printer import Printer
from tests.fakes.scripted_tailscale import ScriptedTailscale

KID = Who("kids-ipad", "carol@example.com", ("100.64.0.20",), "carol@example.com", node="nKid")
ROBOT = Who("robot", "tag:agents", ("100.64.0.8",), tags=("tag:agents",), node="nRobot")
FRIENDS = Who("laptop.tail9.ts.net", "eve@example.org", ("100.64.0.30",), "eve@example.org", node="nEve", shared=True)
ALL = '[[access]]\nwho = ["alice@example.com", "self"]\nmodels = ["*"]\n'
CAPABLE = {"capability": "example.com/cap/x"}


@pytest.fixture
def facts(tmp_path):
    """Return a function that makes facts with a settings file, Tailscale's devices, and Ollama's models if any."""

    def make(text: str, *devices: Who, models: list[str] | None = None, **flags: str) -> Facts:
        path = tmp_path / "config.toml"
        path.write_text(text)

        def ask(*_: object, **__: object) -> Answer:
            if models is None:
                raise ConnectionRefusedError
            return Answer(200, json.dumps({"models": [{"name": name} for name in models]}).encode())

        loaded = load({"config": str(path), "listen": "127.0.0.1", "port": "21500", **flags}, {"HOME": "/nowhere"})
        scripted = ScriptedTailscale(devices=devices)
        return Facts(Machine.here(), loaded, tailscale=scripted, python=sys.executable, ask=ask)

    return make


@pytest.mark.parametrize(
    ("text", "flags", "detail"),
    [
        pytest.param("", {}, "no rules: every device that can connect may use every model", id="none"),
        pytest.param(ALL, {}, "1 rule", id="one"),
        pytest.param(
            ALL + ALL, {"capability": "example.com/cap/x"}, "2 rules, and grants of example.com/cap/x", id="two"
        ),
        pytest.param(
            ALL.replace(', "self"', ""),
            {},
            "1 rule; none names this machine by `self`, so what asks from here by loopback is refused",
            id="without this machine",
        ),
        pytest.param(
            '[[access]]\nwho = ["127.0.0.0/8"]\nmodels = ["a"]\n', {}, "1 rule", id="this machine by an address"
        ),
        pytest.param(
            "",
            CAPABLE,
            "0 rules, and grants of example.com/cap/x; none names this machine by `self`, so what asks from here by "
            "loopback is refused",
            id="grants only",
        ),
    ],
)
def test_rules_are_counted(facts, text, flags, detail):
    """It is reported how many rules there are, whether grants count, and whether the Mac itself is named."""
    (finding,) = access.rules(facts(text, **flags))
    assert (finding.outcome, finding.detail) == (Outcome.PASS, detail)


def test_rule_that_never_counts(facts):
    """A rule whose askers all have an earlier one is found, and so is a single entry."""
    text = ALL + '[[access]]\nwho = ["kids-ipad", "Alice@example.com"]\nmodels = ["a"]\n' + ALL
    found = [(finding.detail, finding.hint) for finding in access.unreachable(facts(text))]
    assert found == [
        (
            "alice@example.com in rule 2 of `access` never counts: rule 1 comes first",
            "remove alice@example.com from rule 2, or correct rule 1",
        ),
        (
            "rule 3 of `access` never counts: rule 1 comes first and names all of its askers",
            "write rule 3 above rule 1, or remove it",
        ),
    ]
    assert not [*access.unreachable(facts(ALL))]


@pytest.mark.parametrize(
    ("text", "flags", "rows"),
    [
        pytest.param('allow = ["/api/chat", "POST /api/embed"]\n', {}, "POST /api/chat, POST /api/embed", id="allow"),
        pytest.param(ALL + 'also = ["POST /api/generate"]\n', {}, "POST /api/generate", id="also"),
        pytest.param(
            *("capability_may_open_rows = true\n", CAPABLE),
            "POST /api/chat, POST /api/generate, POST /api/embed, POST /api/embeddings",
            id="grants",
        ),
        pytest.param("", CAPABLE, None, id="grants_that_open_none"),
        pytest.param('allow = ["GET /api/ps", "POST /v1/embeddings"]\n', {}, None, id="other_rows"),
    ],
)
def test_native_options_that_pass(facts, text, flags, rows):
    """Native routes that let their callers change a model for everyone are found, whoever may ask them."""
    found = list(access.native_options(facts(text, native_options="pass", **flags)))
    details = [f"every device that may ask {rows} can unload, pin or reload a model that others use"] if rows else []
    assert [(each.outcome, each.detail) for each in found] == [(Outcome.WARN, detail) for detail in details]
    assert not [*access.native_options(facts(text, **flags))]


@pytest.mark.parametrize(
    ("name", "devices", "detail", "hint"),
    [
        pytest.param(
            *("kids-ipad", (KID, ROBOT)),
            *("the user of a device can give it that name", 'write "carol@example.com" or "node:nKid"'),
            id="a person's",
        ),
        pytest.param(
            "robot", (KID, ROBOT), "can give it that name", 'write "tag:agents" or "node:nRobot"', id="tagged"
        ),
        pytest.param(
            "kids-ipad",
            (),
            "can give it that name",
            "name its owner's login, a tag or its `node:` instead",
            id="no answer",
        ),
        pytest.param("other", (KID,), "which Tailscale doesn't know", "tailscale status", id="unknown"),
        pytest.param(
            "kids-ipd", (KID,), "which Tailscale doesn't know", 'write "kids-ipad" if you mean that', id="misspelt"
        ),
        pytest.param(
            *("agents", (KID, ROBOT), "which Tailscale doesn't know", 'write "tag:agents" if you mean that'), id="a tag"
        ),
        pytest.param(
            *("carol", (KID,), "which Tailscale doesn't know", 'write "carol@example.com" if you mean that'),
            id="a login",
        ),
        pytest.param(
            *("laptop", (KID, FRIENDS)),
            *("which is of another tailnet: such a name counts for nothing", 'write "eve@example.org" or "node:nEve"'),
            id="shared in",
        ),
    ],
)
def test_device_name_is_found(facts, name, devices, detail, hint):
    """A device name is a warning that offers what else names the device, because its user chooses the name."""
    text = f'[[access]]\nwho = ["{name}", "self", "bob@example.com"]\nmodels = ["*"]\n'
    (finding,) = access.device_names(facts(text, *devices))
    assert finding.outcome is Outcome.WARN
    assert finding.detail.startswith(f"rule 1 of `access` names the device {name}, ")
    assert finding.detail.endswith(detail)
    assert finding.hint == hint


@pytest.mark.parametrize(
    ("entry", "detail", "hint"),
    [
        pytest.param(
            "carol@example.org", "no device of this user", 'write "carol@example.com" if you mean that', id="login"
        ),
        pytest.param("tag:agent", "no device with this tag", 'write "tag:agents" if you mean that', id="tag"),
        pytest.param("node:nOther", "no such device", "tailscale status", id="node"),
        pytest.param("carol@example.com", None, None, id="known login"),
        pytest.param("eve@example.org", None, None, id="login of another tailnet"),
        pytest.param("TAG:agents", None, None, id="known tag"),
        pytest.param("node:nKid", None, None, id="known node"),
        pytest.param("100.64.0.99", None, None, id="address"),
    ],
)
def test_entry_that_names_no_device_is_found(facts, entry, detail, hint):
    """A login, tag or id that no device has is a warning that offers the nearest one; without Tailscale none is."""
    text = f'[[access]]\nwho = ["{entry}", "self", "*"]\nmodels = ["*"]\n'
    found = [(finding.detail, finding.hint) for finding in access.strangers(facts(text, KID, ROBOT, FRIENDS))]
    expected = f"rule 1 of `access` names {entry}, but Tailscale knows {detail}"
    assert found == ([(expected, hint)] if detail else [])
    assert not [*access.strangers(facts(text))]


@pytest.mark.parametrize(
    ("target", "who", "found"),
    [
        pytest.param("http://100.64.0.1:21500", "self", True, id="its address"),
        pytest.param("http://127.0.0.1:21500", "self", True, id="loopback"),
        pytest.param("http://mac.tail1234.ts.net:21500", "self", True, id="its name"),
        pytest.param("http://127.0.0.1:3000", "self", False, id="another program"),
        pytest.param("http://127.0.0.1:21501", "self", False, id="the port for serve"),
        pytest.param("http://100.64.0.1:21500", "bob@example.com", True, id="the owner of this machine"),
        pytest.param("http://100.64.0.1:21500", None, False, id="no rules"),
        pytest.param("http://100.64.0.1:21500", CAPABLE, True, id="grants only"),
    ],
)
def test_serve_rule_that_makes_others_this_machine(facts, target, who, found):
    """A rule of `tailscale serve` that leads to the proxy's own port is a failure if there are access rules."""
    flags = who if isinstance(who, dict) else {}
    text = f'[[access]]\nwho = ["{who}"]\nmodels = ["*"]\n' if isinstance(who, str) else ""
    made = facts(text, serve_port="21501", **flags)
    document = {"TCP": {"443": {"HTTPS": True}}, "Web": {"mac:443": {"Handlers": {"/": {"Proxy": target}}}}}
    serving = of_serve(document, Ports.of(made.settings))
    made.tailscale = made.tailscale._replace(serving=serving)
    findings = [*access.passed_on(made)]
    assert [finding.outcome for finding in findings] == [Outcome.FAIL] * found
    assert all(finding.hint == "tailscale serve --https=443 off; for https set `serve_port`" for finding in findings)


@pytest.mark.parametrize(
    ("models", "unmatched"),
    [
        pytest.param(["qwen3:8b", "gemma3:4b"], ["llama*"], id="one"),
        pytest.param(["QWEN3:8b", "library/gemma3:4b", "llama3.2:latest"], [], id="none"),
        pytest.param(["smollm2:135m"], ["qwen3:*", "gemma3:4b", "llama*"], id="all"),
        pytest.param([], [], id="no models"),
        pytest.param(None, [], id="no answer"),
    ],
)
def test_pattern_that_matches_no_model(facts, models, unmatched):
    """A pattern that means no model of this Ollama is found, if Ollama answers and has models."""
    text = '[[access]]\nwho = ["*"]\nmodels = ["qwen3:*", "gemma3:4b", "llama*"]\n'
    found = [finding.detail for finding in access.models(facts(text, models=models))]
    assert found == [f"rule 1 of `access` allows {each}, but no model on this machine matches" for each in unmatched]


def test_check_shows_the_rules_as_a_table(tmp_path, capsys, monkeypatch):
    """`--check` prints one line for each rule, and says in the settings that they are below."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "config.toml"
    more = 'also = ["POST /api/chat"]\nmax_active = 2\n[[access]]\nwho = ["tag:agents"]\nmodels = ["a", "b"]\n'
    path.write_text(ALL + more)
    flags = {"config": str(path), "listen": "127.0.0.1", "port": "21500", "upstream": "http://127.0.0.1:9"}
    run(flags, None, Machine.here(), Printer())
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "1 alice@example.com, self * also POST /api/chat; at most 2 at once" in printed
    assert "2 tag:agents a, b" in printed
    assert f"access as below file {path}, line 1" in printed
