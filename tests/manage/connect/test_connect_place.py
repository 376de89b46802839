"""Which machine and which model `connect` names, and what it says where it can't know, or where something is closed."""

from __future__ import annotations

import asyncio
import json
import os
import plistlib
import urllib.request
from argparse import Namespace

import pytest

from proxy.manage.connect import command as connect
from proxy.manage.connect.place import place
from proxy.manage.connect.tools import ORIGIN, TOOLS
from proxy.manage.machine.launchd import OLLAMA, PROXY
from proxy.manage.machine.machine import Machine
from proxy.policy.rule_keys import RuleSpec
from proxy.settings.settings import Settings, load
from proxy.simulated_ollama import EMBEDDER, REMOTE_STUB, Model, SimulatedOllama
from proxy.tailnet.serve_rules import Kind, Rule
from proxy.tailnet.tailscale import Tailnet
from proxy.terminal.printer import Printer
from proxy.terminal.result import CommandError
from tests.fakes.scripted_tailscale import STOPPED, ScriptedTailscale

BY_NAME = {tool.name: tool for tool in TOOLS}
CODEX, CURL = BY_NAME["codex"], BY_NAME["curl"]
NOWHERE = "http://127.0.0.1:1"
MINE = ("100.101.102.103", "fd7a:115c:a1e0::1")
HTTPS = ("https://mac.tail1234.ts.net",)
BLIND = Rule("passes on bytes", "tailscale serve --tcp=443 off", Kind.BLIND)
NAMED = Tailnet("Running", MINE, tun=True, name="mac.tail1234.ts.net", source="localapi")

CHATS = Model("chats:8b", modified_at="2026-11-23T18:27:59.000000001Z")
TOOLED = Model("tooled:8b", modified_at="2026-11-22T18:27:59.000000001Z", capabilities=("completion", "tools"))
OLDER = Model("older:8b", modified_at="2026-11-21T18:27:59.000000001Z", capabilities=("completion", "tools"))
CLOUD = Model("big:120b-cloud", capabilities=("completion", "tools"))


@pytest.fixture
def machine(tmp_path):
    """Give a machine with an empty home folder."""
    return Machine(tmp_path, os.getuid(), "linux", environ={"HOME": str(tmp_path)})


def plist(machine, label, **variables):
    """Write the plist of an installed service."""
    machine.agents.mkdir(parents=True, exist_ok=True)
    (machine.agents / f"{label}.plist").write_bytes(plistlib.dumps({"Label": label, "EnvironmentVariables": variables}))


def look(machine, *, tool=CODEX, tailnet=NAMED, wanted=None, **settings):
    """Return where a client would ask, and the notes on that as lines."""
    found = place(tool, machine, Settings(**{"upstream": NOWHERE, **settings}), ScriptedTailscale(tailnet), wanted)
    return found, "\n".join(f"{'warning: ' if note.warns else ''}{note.line}" for note in found.notes)


async def among(machine, *models, load_first=None, **more):
    """Return the same next to an Ollama that has these models, one of them loaded."""
    async with SimulatedOllama(models=models) as ollama:

        def run():
            if load_first:
                content = json.dumps({"model": load_first}).encode()
                urllib.request.urlopen(f"{ollama.url}/api/generate", content, 5).close()
            return look(machine, upstream=ollama.url, **more)

        return await asyncio.to_thread(run)


# --- host -------------------------------------------------------------------------------------------------------------

HOSTS = {
    "name": (("tailscale",), NAMED, "mac.tail1234.ts.net", "mac.tail1234.ts.net is 100.101.102.103"),
    "no_name": (("tailscale",), Tailnet("Running", MINE), "100.101.102.103", ""),
    "six_only": (("tailscale",), Tailnet("Running", MINE[1:]), "[fd7a:115c:a1e0::1]", ""),
    "name_that_is_no_host": (("tailscale",), Tailnet("Running", MINE, name='a"b\n'), "100.101.102.103", ""),
    "name_of_another_domain": (
        ("tailscale",),
        Tailnet("Running", MINE, name="mac.mesh.example.org", magic_dns=True),
        "mac.mesh.example.org",
        "mac.mesh.example.org is 100.101.102.103",
    ),
    "name_that_nobody_resolves": (
        ("tailscale",),
        Tailnet("Running", MINE, name="mac.tail1234.ts.net", magic_dns=False),
        "100.101.102.103",
        "",
    ),
    "name_of_a_six_only_machine": (
        ("tailscale",),
        Tailnet("Running", MINE[1:], name="mac.tail1234.ts.net"),
        "mac.tail1234.ts.net",
        "mac.tail1234.ts.net is [fd7a:115c:a1e0::1]: use that",
    ),
    "stopped": (("tailscale",), STOPPED, "NAME", "is unknown now: Tailscale is stopped (tailscale up)"),
    "stopped_beside_another": (("tailscale", "192.168.1.5"), STOPPED, "192.168.1.5", ""),
    "its_address": (("100.101.102.103",), NAMED, "mac.tail1234.ts.net", ""),
    "its_address_while_stopped": (("100.101.102.103",), STOPPED, "100.101.102.103", ""),
    "loopback": (("127.0.0.1",), NAMED, "127.0.0.1", "127.0.0.1 can be reached from this machine only"),
    "loopback_six": (("::1",), NAMED, "[::1]", "::1 can be reached from this machine only"),
    "lan": (("192.168.1.5",), NAMED, "192.168.1.5", ""),
    "everywhere": (("0.0.0.0",), NAMED, "mac.tail1234.ts.net", ""),
    "everywhere_while_stopped": (("0.0.0.0",), STOPPED, "NAME", "NAME is an address of this machine"),
}


@pytest.mark.parametrize(("listen", "tailnet", "host", "words"), HOSTS.values(), ids=HOSTS)
def test_host(listen, tailnet, host, words, machine):
    """The name is the one that clients reach what is listened on by, and that the proxy lets itself be called by."""
    found, told = look(machine, listen=",".join(listen), allow_any_address=True, tailnet=tailnet, port=21500)
    assert found.origin == f"http://{host}:21500"
    assert words in told


@pytest.mark.parametrize(
    ("tailscale", "settings", "told"),
    [
        pytest.param(ScriptedTailscale(NAMED, urls=HTTPS), {"serve_port": "11435"}, True, id="rule_for_https"),
        pytest.param(ScriptedTailscale(NAMED), {"serve_port": "11435"}, False, id="no_rule"),
        pytest.param(ScriptedTailscale(NAMED, (BLIND,), urls=HTTPS), {"serve_port": "11435"}, False, id="shut"),
        pytest.param(ScriptedTailscale(NAMED, urls=HTTPS), {}, False, id="no_serve_port"),
    ],
)
def test_https_address(machine, tailscale, settings, told):
    """The https address is printed if a rule of serve leads to the proxy, and the proxy serves what comes by it."""
    found = place(CODEX, machine, Settings(upstream=NOWHERE, **settings), tailscale, None)
    assert any(HTTPS[0] in note.text for note in found.notes) is told


# --- model ------------------------------------------------------------------------------------------------------------


async def test_newest_model_that_suits(machine):
    """Without a loaded one, the newest that can do what the tool is for; others are named."""
    found, told = await among(machine, CHATS, OLDER, TOOLED, EMBEDDER)
    assert found.model == "tooled:8b"
    assert "the model is tooled:8b, the newest suitable one; --model names another: older:8b, chats:8b" in told
    assert "embedder" not in told


@pytest.mark.parametrize(
    ("tool", "load_first", "note"),
    [
        pytest.param("claude-code", None, "while a model loads, Claude Code waits half an hour", id="limited"),
        pytest.param("claude-code", "tooled:8b", None, id="limited_but_loaded"),
        pytest.param("codex", None, None, id="without_limit"),
    ],
)
async def test_tool_that_may_give_up_during_a_load(machine, tool, load_first, note):
    """A tool with a limit of its own is said to have one, and how to load the model beforehand, unless it is loaded."""
    _, told = await among(machine, TOOLED, load_first=load_first, tool=BY_NAME[tool])
    assert ("warm tooled:8b" in told) is (note is not None)
    assert note is None or note in told


async def test_loaded_model_goes_first(machine):
    """One that is loaded answers at once, so it goes before a newer one."""
    found, told = await among(machine, TOOLED, OLDER, load_first="older:8b")
    assert found.model == "older:8b"
    assert "the model is older:8b, it is loaded" in told


async def test_tools_go_before_a_loaded_model(machine):
    """A coding tool is better off with a model that calls tools; a program takes what is loaded."""
    assert (await among(machine, CHATS, TOOLED, load_first="chats:8b"))[0].model == "tooled:8b"
    assert (await among(machine, CHATS, TOOLED, load_first="chats:8b", tool=CURL))[0].model == "chats:8b"


async def test_no_model_that_calls_tools(machine):
    """Where none calls tools, one that chats is named, with a warning."""
    found, told = await among(machine, CHATS)
    assert found.model == "chats:8b"
    assert "warning: chats:8b can't call tools, which Codex needs (ollama show chats:8b)" in told


async def test_what_leaves_the_machine_is_not_chosen(machine):
    """Models of the cloud, by name or as a stub, are never chosen; with nothing else there is a word in their place."""
    found, told = await among(machine, CLOUD, REMOTE_STUB, EMBEDDER)
    assert found.model == "MODEL"
    assert "MODEL is a placeholder: Ollama has no model here that can chat (ollama pull NAME)" in told


WANTED = {
    "there": ("tooled:8b", "can't call tools", False),
    "there_in_other_letters": ("TOOLED:8B", "is not on this machine", False),
    "without_its_tag": ("tagless", "is not on this machine", False),
    "not_there": ("nope", "warning: nope is not on this machine (ollama pull nope)", True),
    "embeds": ("embedder", "warning: embedder only makes embeddings: it can't chat", True),
    "calls_no_tools": ("chats:8b", "warning: chats:8b can't call tools", True),
    "cloud": ("kimi-k2:cloud", "warning: kimi-k2:cloud runs at ollama.com", True),
    "cloud_tag": ("x/gpt-oss:120b-cloud", "warning: x/gpt-oss:120b-cloud runs at ollama.com", True),
    "cloud_twice": ("gpt-oss:20b:cloud", "warning: gpt-oss:20b:cloud runs at ollama.com", True),
    "stub": ("far", "warning: far runs at ollama.com", True),
    "only_sounds_so": ("my-cloud-model", "runs at ollama.com", False),
}


@pytest.mark.parametrize(("wanted", "words", "said"), WANTED.values(), ids=WANTED)
async def test_wanted_model(wanted, words, said, machine):
    """A model may be named in any letter case; reasons against it are noted."""
    models = (CHATS, TOOLED, Model("tagless:latest", capabilities=("completion", "tools")), EMBEDDER, REMOTE_STUB)
    found, told = await among(machine, *models, wanted=wanted)
    assert found.model == wanted
    assert (words in told) == said


def test_nothing_can_be_reached(machine):
    """If nothing answers, there are placeholders, and notes about how to find the values."""
    found, told = look(machine, tailnet=STOPPED)
    assert (found.origin, found.model) == (ORIGIN, "MODEL")
    assert (
        "no proxy is installed here, and no Ollama answers: if they are on another machine, run this command there"
        in told
    )
    assert f"MODEL is a name that `ollama list` prints: Ollama doesn't answer at {NOWHERE}" in told
    assert "is not on this machine" not in look(machine, wanted="qwen3:8b")[1]


def test_an_installed_proxy_is_no_other_machine(machine):
    """On the Mac itself an Ollama that is down doesn't make one look elsewhere."""
    plist(machine, PROXY)
    assert "no proxy is installed here" not in look(machine)[1]


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"models":null}', b'{"models":[1,{},{"name":7},{"name":"a\\nb"},{"name":"\\u001b[1m"}]}'],
)
async def test_odd_answers(answer, machine):
    """An answer that isn't a list of models, or an entry without a name, is left out."""

    async def serve(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found, _ = await asyncio.to_thread(look, machine, upstream=f"http://127.0.0.1:{port}")
    assert found.model == "MODEL"


# --- context ----------------------------------------------------------------------------------------------------------


async def test_context_is_the_loaded_models(machine):
    """A loaded model reports its context. If that is too small, the tool gets its minimum and the owner a warning."""
    plist(machine, OLLAMA, OLLAMA_CONTEXT_LENGTH="65536")
    found, told = await among(machine, TOOLED, load_first="tooled:8b")
    assert found.context == 32768
    assert "warning: Ollama gives tooled:8b 2048 tokens of context, too few for Codex, which gets 32768" in told
    assert "write OLLAMA_CONTEXT_LENGTH = 65536 in config.toml, below [ollama_env]" in told


CONTEXTS = {
    "told": ({"OLLAMA_CONTEXT_LENGTH": "65536"}, 65536, ""),
    "too_few": ({"OLLAMA_CONTEXT_LENGTH": "4096"}, 32768, "warning: Ollama gives tooled:8b 4096 tokens"),
    "not_told": ({}, 32768, "32768 tokens of context are a guess"),
    "no_number": ({"OLLAMA_CONTEXT_LENGTH": "-1"}, 32768, "32768 tokens of context are a guess"),
}


@pytest.mark.parametrize(("variables", "context", "words"), CONTEXTS.values(), ids=CONTEXTS)
async def test_context_of_a_model_to_be_loaded(variables, context, words, machine):
    """Before a model is loaded, Ollama's setting counts; without one the context is a guess, and marked as one."""
    plist(machine, OLLAMA, **variables)
    found, told = await among(machine, TOOLED)
    assert found.context == context
    assert words in told
    assert ("tokens of context" in told) == bool(words)


# --- what is closed ---------------------------------------------------------------------------------------------------


def run(machine, capsys, *words, json_=False, environ=None, **flags):
    """Return the exit code, standard output, and standard error."""
    tool, model = (*words, None, None)[:2]
    machine = Machine(machine.home, machine.uid, "linux", environ={**machine.environ, **(environ or {})})
    args = Namespace(tool=tool, model=model, json=json_)
    out = Printer(as_json=json_)
    try:
        result = connect.run({"upstream": NOWHERE, **flags}, args, machine, out, ScriptedTailscale(NAMED))
    except CommandError as error:
        result = error.result
    return out.end(result), *capsys.readouterr()


ALLOWS = {
    "file": ({}, {}, 'write allow = ["GET /api/ps", "POST /api/chat"] in ', "restart proxy"),
    "environment": (
        {"PROXY_ALLOW": "GET /api/ps"},
        {},
        "start it with PROXY_ALLOW='GET /api/ps,POST /api/chat'",
        "PROXY_ALLOW='GET /api/ps,POST /api/chat' python -m proxy",
    ),
    "flag": (
        {},
        {"allow": "GET /api/ps"},
        "start it with --allow 'GET /api/ps,POST /api/chat'",
        "python -m proxy --allow",
    ),
}


@pytest.mark.parametrize(("environ", "flags", "how", "hint"), ALLOWS.values(), ids=ALLOWS)
def test_closed_row(environ, flags, how, hint, machine, capsys):
    """A tool that needs a closed row says so: how it is opened where the settings are, and what does without."""
    config = machine.home / ".config/remote-ollama-proxy/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('allow = ["GET /api/ps"]\n')
    code, printed, told = run(machine, capsys, "ollama-python", environ=environ, **flags)
    assert code == 0
    assert printed.startswith("from ollama import Client\n")
    assert f"warning: ollama SDK, Python needs `POST /api/chat`, which the proxy refuses: {how}" in told
    assert hint in told
    assert "connect openai-python" in told


def test_line_that_opens_can_be_served_with(machine, capsys):
    """The line for config.toml, and the variable, open what the tool needs."""
    _, printed, _ = run(machine, capsys, "ollama-cli", json_=True)
    needs = [need for need in json.loads(printed)["needs"] if need["required"]]
    assert [need["route"] for need in needs] == ["HEAD /", "POST /api/generate", "POST /api/chat"]
    config = machine.home / "config.toml"
    config.write_text(needs[0]["toml"])
    loaded = load({"config": str(config)}, machine.environ)
    assert [need for need in connect.closed(BY_NAME["ollama-cli"], loaded) if not need.purpose] == []
    variable = needs[0]["environment"].partition("=")[2].strip("'")
    loaded = load({}, machine.environ | {"PROXY_ALLOW": variable})
    assert [need for need in connect.closed(BY_NAME["ollama-cli"], loaded) if not need.purpose] == []


def test_open_row_is_no_need(machine, capsys):
    """Of rows that are open, by name or by path, nothing is said."""
    assert "refuses" not in run(machine, capsys, "ollama-python", allow="/api/chat")[2]


def test_settings_of_the_installed_proxy_count(machine, capsys):
    """If a proxy is installed, its port is used, not the one of this shell."""
    plist(machine, PROXY, PROXY_PORT="21999", PROXY_LISTEN="127.0.0.1")
    assert "http://127.0.0.1:21999/v1" in run(machine, capsys, "codex", environ={"PROXY_PORT": "22000"})[1]


# --- the command ------------------------------------------------------------------------------------------------------


def test_list(machine, capsys):
    """Without a tool each one has a line, and there is an example."""
    code, printed, told = run(machine, capsys)
    assert (code, told) == (0, "")
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(TOOLS)]] == [tool.name for tool in TOOLS]
    assert "  python -m proxy connect codex > ~/.codex/home.config.toml" in lines
    listed = json.loads(run(machine, capsys, json_=True)[1])["tools"]
    assert [each["name"] for each in listed] == [tool.name for tool in TOOLS]


@pytest.mark.parametrize("written", ["claude-code", "Claude Code", "claude", "CLAUDECODE"])
def test_names(written):
    """A tool is found by its name, its title, and what people call it, in any case."""
    assert connect.find(written) is BY_NAME["claude-code"]


def test_claude_code_asks_for_one_thing_at_a_time():
    """Its settings stop the requests for titles, and the repetition without a stream after an error in a stream."""
    lines = BY_NAME["claude-code"].text.splitlines()
    assert "export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1" in lines
    assert "export CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK=1" in lines


def test_names_are_one_tools():
    """No two tools have a name in common, and each is found by its title."""
    names = [name for tool in TOOLS for name in (tool.name, *tool.aliases)]
    assert len(names) == len(set(names))
    assert all(connect.find(tool.name) is tool for tool in TOOLS)


WRONG = {
    "near": (
        ("cluade",),
        'error: "cluade": there are no settings for that\nhint: python -m proxy connect claude-code\n',
    ),
    "near_an_alias": (("copilot-caht",), "hint: python -m proxy connect copilot\n"),
    "far": (
        ("emacs\x1b[1m",),
        'error: "emacs\\u001b[1m": there are no settings for that\nhint: python -m proxy connect\n',
    ),
    "no_model_name": (("curl", "a'; rm"), "that can't be a model's name\nhint: ollama list\n"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_wrong_usage(words, said, machine, capsys):
    """A tool or model that can't be is an error with the nearest one; nothing is printed to paste."""
    code, printed, told = run(machine, capsys, *words)
    assert (code, printed) == (2, "")
    assert said in told


@pytest.mark.parametrize("name", BY_NAME)
def test_json(name, machine, capsys):
    """One object has all of it: the text is what is printed otherwise, and the base URL is in it."""
    told = json.loads(run(machine, capsys, name, json_=True)[1])
    assert list(told) == ["tool", "base_url", "model", "files", "then", "notes", "needs"]
    ((path, text),) = [tuple(file.values()) for file in told["files"]]
    assert (told["tool"], told["model"], path) == (name, "MODEL", BY_NAME[name].path)
    assert text == run(machine, capsys, name)[1]
    assert told["base_url"] in text
    assert "$" not in text.replace('"$schema"', "")


# --- access rules -----------------------------------------------------------------------------------------------------

RULES = {
    "allowed": ([RuleSpec(("self",), ("older:*",))], None, "older:8b", ""),
    "first_rule_counts": ([RuleSpec(("*",), ("older:*",)), RuleSpec(("self",), ("*",))], None, "older:8b", ""),
    "not_named": ([RuleSpec(("tag:a",), ("older:*",))], None, "older:8b", "none is sure to name this machine"),
    "not_allowed": (
        [RuleSpec(("self",), ("older:*",)), RuleSpec(("tag:a",), ("*",))],
        *("tooled:8b", "tooled:8b"),
        "warning: rule 1 of `access`, which counts for this machine, doesn't allow tooled:8b",
    ),
    "never_allowed": ([RuleSpec(("tag:a",), ("older:*",))], "tooled:8b", "tooled:8b", "warning: no access rule allows"),
    "nothing_allowed": ([RuleSpec(("self",), ("nope",))], None, "MODEL", "MODEL is a placeholder"),
}


@pytest.mark.parametrize(("rules", "wanted", "model", "words"), RULES.values(), ids=RULES)
async def test_only_allowed_models_are_named(rules, wanted, model, words, machine):
    """With access rules, `connect` offers a model that this machine may use, or that some rule allows."""
    found, notes = await among(machine, TOOLED, OLDER, access=rules, wanted=wanted)
    assert found.model == model
    assert words in notes
    assert "is not on this machine" not in notes
