"""What `connect` prints works: each tool's first requests, made of the printed text, go through a real proxy.

Settings are read out of the text as the tool would read them, so that a wrong address, model or file fails here. The
Python programs, and curl's, are run as they are printed.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import ollama
import pytest
import zstandard

from proxy.command_line import cli
from proxy.manage.connect.tools import TOOLS
from proxy.manage.demo.command import Child
from tests.support.patience import PATIENCE
from tests.support.ports import free_ports

ROOT = Path(__file__).parent.parent.parent.parent
MODEL = "tools:latest"
BY_NAME = {tool.name: tool for tool in TOOLS}
HELLO = "Are"  # how the simulated model's answers begin
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever HTTP_PROXY says


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Give the environment of a proxy with the default table, and that of one with native inference opened."""
    folder = tmp_path_factory.mktemp("servers")
    (folder / "config.toml").touch()
    upstream, *ports = free_ports(3)
    rows = "HEAD /,POST /api/chat,POST /api/generate"
    given = {}
    children = [
        Child("ollama", folder, "proxy.simulated_ollama", "--port", str(upstream), "--speed", "100", port=upstream)
    ]
    for name, port, allow in zip(("closed", "open"), ports, ("", rows), strict=True):
        given[name] = {
            "PROXY_LISTEN": "127.0.0.1",
            "PROXY_PORT": str(port),
            "PROXY_UPSTREAM": f"http://127.0.0.1:{upstream}",
            "PROXY_ALLOW": allow,
            "PROXY_ACCESS_LOG": str(folder / f"{name}.log"),
            "PROXY_CONFIG": str(folder / "config.toml"),
        }
        children.append(Child(name, folder, "proxy", port=port, **given[name]))
    try:
        for child in children:
            child.start()
        yield given
    finally:
        for child in reversed(children):
            child.end()


@pytest.fixture
def printed(servers, monkeypatch, capsys, tmp_path):
    """Return a function that runs `connect TOOL` next to one of the proxies: what is to be pasted."""
    for name in [name for name in os.environ if name.startswith(("PROXY_", "XDG_", "FORCE_COLOR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(tool, server="closed"):
        for name, value in servers[server].items():
            monkeypatch.setenv(name, value)
        assert cli.main(["connect", tool, "--model", MODEL]) == 0
        return capsys.readouterr().out

    return run


# --- how tools ask ----------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What came back."""

    status: int
    text: str


def ask(method, url, content=None, **fields):
    """Return the answer to one request."""
    if content is not None and not isinstance(content, bytes):
        content = json.dumps(content).encode()
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    if content is not None:
        named = {"Content-Type": "application/json"} | named
    try:
        with DIRECT.open(urllib.request.Request(url, content, named, method=method), timeout=PATIENCE) as answer:
            return Answer(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode())


FUNCTION = {"name": "shell", "description": "Run", "parameters": {"type": "object", "properties": {}}}
ASKED = [{"role": "user", "content": "Say hello"}]


def chat(base, model, key="unused", agent="ai-sdk/openai-compatible", *, tools=True):
    """Return the answer to what most tools ask first, a stream of a chat with a function."""
    content = {"model": model, "messages": ASKED, "stream": True, "stream_options": {"include_usage": True}}
    if tools:
        content |= {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto"}
    answer = ask("POST", f"{base}/chat/completions", content, Authorization=f"Bearer {key}", User_Agent=agent)
    assert answer.status != 200 or (HELLO in answer.text and answer.text.endswith("data: [DONE]\n\n"))
    return answer


def exported(text):
    """Return the variables that a shell has after running a text of `export` lines."""
    words = [shlex.split(line, comments=True) for line in text.splitlines()]
    return dict(each[1].split("=", 1) for each in words if each[:1] == ["export"])


def pairs(text, separator):
    """Return the `key: value` or `KEY=value` lines of a text, whatever they are nested in."""
    found = re.findall(rf"^[ -]*([\w-]+){separator}(.+)$", text, re.MULTILINE)
    return {key: value.strip().strip('"') for key, value in found}


def claude_code(text):
    """Ask as Claude Code 2.1 does: a probe, a message for each of its sizes of model, and a count of tokens."""
    given = exported(text)
    base, token = given["ANTHROPIC_BASE_URL"], given["ANTHROPIC_AUTH_TOKEN"]
    fields = {
        "Authorization": f"Bearer {token}",
        "User_Agent": "claude-cli/2.1.332 (external, cli)",
        "x_app": "cli",
        "anthropic_version": "2023-06-01",
        "anthropic_beta": "claude-code-20250219,interleaved-thinking-2025-05-14,effort-2025-11-24",
        "Accept_Encoding": "gzip, deflate, br, zstd",
    }
    assert ask("HEAD", f"{base}/", **fields) == (403, "")
    for size in ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{name}_MODEL" for name in ("OPUS", "SONNET", "HAIKU"))):
        content = {
            "model": given[size],
            "max_tokens": 32_000,
            "stream": True,
            "messages": ASKED,
            "system": [{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}],
            "tools": [{"name": "Bash", "description": "Run", "input_schema": FUNCTION["parameters"]}],
            "thinking": {"type": "adaptive", "display": "omitted"},
            "output_config": {"effort": "high"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "metadata": {"user_id": "{}"},
        }
        answer = ask("POST", f"{base}/v1/messages?beta=true", content, **fields)
        assert answer.status == 200
        assert "event: message_stop" in answer.text
    counted = ask("POST", f"{base}/v1/messages/count_tokens?beta=true", content, **fields)
    assert counted.status == 403
    assert "clients work without" in counted.text
    assert min(int(given[name]) for name in ("API_TIMEOUT_MS", "CLAUDE_STREAM_IDLE_TIMEOUT_MS")) >= 1_800_000
    assert "unset ANTHROPIC_API_KEY" in text


def codex(text):
    """Ask as Codex 0.171 does, with content plain and packed, and without the tool that leaves the machine."""
    given = tomllib.loads(text)
    provider = given["model_providers"][given["model_provider"]]
    assert (provider["wire_api"], given["web_search"]) == ("responses", "disabled")
    namespace = {"type": "namespace", "name": "agents", "description": "", "tools": [{"type": "function", **FUNCTION}]}
    content = {
        "model": given["model"],
        "stream": True,
        "store": False,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "1",
        "client_metadata": {},
        "tools": [{"type": "function", **FUNCTION, "strict": False}, namespace],
        "input": [
            {"type": "message", "role": role, "content": [{"type": "input_text", "text": words}]}
            for role, words in (("developer", "*** Update File\n@@ def f(a=1):\n+x @@"), ("user", "Say hello"))
        ],
    }
    octets = json.dumps(content).encode()
    packed = zstandard.ZstdCompressor().compress(octets)
    for sent, fields in ((octets, {}), (packed, {"Content_Encoding": "zstd"})):
        answer = ask(
            "POST",
            f"{provider['base_url']}/responses",
            sent,
            Accept="text/event-stream",
            Accept_Encoding="zstd,gzip",
            originator="codex_exec",
            User_Agent="codex_exec/0.171.0",
            **fields,
        )
        assert answer.status == 200
        assert "event: response.completed" in answer.text


def aider(text):
    """Ask as aider 0.86 does: LiteLLM cuts the prefix off that names the kind."""
    given = pairs(text, ": ")
    kind, _, model = given["model"].partition("/")
    assert kind == "openai"
    answer = chat(given["openai-api-base"], model, given["openai-api-key"], "OpenAI/Python 2.20.0", tools=False)
    assert answer.status == 200


def continue_(text):
    """Ask as Continue does with an OpenAI provider."""
    given = pairs(text, ": ")
    assert (given["provider"], given["schema"]) == ("openai", "v1")
    assert chat(given["apiBase"], given["model"], given["apiKey"], "ls/JS 5.23.2").status == 200
    assert "timeout" not in text


def cline(text):
    """Ask as Cline does; what is to be typed into its panel is what its command is given."""
    (words,) = [shlex.split(line) for line in text.splitlines() if line.startswith("cline ")]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert (words[:2], given["--provider"]) == (["cline", "auth"], "openai")
    assert chat(given["--baseurl"], given["--modelid"], given["--apikey"]).status == 200
    typed = re.findall(r"^#   (\S.*?)  +(\S+)$", text, re.MULTILINE)
    assert [value for name, value in typed if name in ("Base URL", "OpenAI Compatible API Key", "Model ID")] == [
        given["--baseurl"],
        given["--apikey"],
        given["--modelid"],
    ]


def opencode(text):
    """Ask as OpenCode does: for a title with its small model, then for the answer."""
    given = json.loads(text)
    for chosen in (given["small_model"], given["model"]):
        name, _, model = chosen.partition("/")
        provider = given["provider"][name]
        assert model in provider["models"]
        options = provider["options"]
        assert chat(options["baseURL"], model, options["apiKey"], "opencode/1.18.33").status == 200
        assert options["timeout"] is False
        assert min(options["headerTimeout"], options["chunkTimeout"]) >= 1_800_000


def open_webui(text):
    """Ask as Open WebUI's server does: for the models, then for an answer by one of them."""
    given = pairs(text, "=")
    base, key = given["OPENAI_API_BASE_URL"], given["OPENAI_API_KEY"]
    models = ask("GET", f"{base}/models", Authorization=f"Bearer {key}", User_Agent="Python/3.12 aiohttp/3.13.2")
    assert models.status == 200
    assert given["DEFAULT_MODELS"] in [each["id"] for each in json.loads(models.text)["data"]]
    assert chat(base, given["DEFAULT_MODELS"], key, tools=False).status == 200
    assert given["ENABLE_OLLAMA_API"] == "false"


def copilot(text):
    """Ask as Copilot Chat's Ollama provider does: version, models, each model, then a chat below /v1."""
    (group,) = json.loads(text)
    assert group["vendor"] == "ollama"
    agent = {"User_Agent": "GitHubCopilotChat/0.60.1"}
    assert json.loads(ask("GET", f"{group['url']}/api/version", **agent).text)["version"] == "0.32.15"
    models = json.loads(ask("GET", f"{group['url']}/api/tags", **agent).text)["models"]
    for model in models:
        shown = json.loads(ask("POST", f"{group['url']}/api/show", {"model": model["model"]}, **agent).text)
        assert shown["capabilities"]
        assert shown["model_info"]["general.basename"]
    assert MODEL in [model["model"] for model in models]
    assert chat(f"{group['url']}/v1", MODEL, "", agent["User_Agent"]).status == 200


def zed(text):
    """Ask as Zed's provider of the OpenAI kind does, with the model that it names."""
    given = json.loads(text)
    (name,) = given["language_models"]["openai_compatible"]
    provider = given["language_models"]["openai_compatible"][name]
    (model,) = provider["available_models"]
    assert given["agent"]["default_model"] == {"provider": name, "model": model["name"]}
    assert model["max_tokens"] >= 4096
    assert chat(provider["api_url"], model["name"], agent="Zed/0.220.3 (macos; aarch64)").status == 200


def goose(text):
    """Ask as Goose's Ollama provider does: for the models below /api, then a chat below /v1."""
    given = pairs(text, ": ")
    assert given["GOOSE_PROVIDER"] == "ollama"
    origin = given["OLLAMA_HOST"]
    models = json.loads(ask("GET", f"{origin}/api/tags", User_Agent="goose/1.20.0").text)["models"]
    assert given["GOOSE_MODEL"] in [each["name"] for each in models]
    assert chat(f"{origin}/v1", given["GOOSE_MODEL"], "", "goose/1.20.0").status == 200
    assert int(given["OLLAMA_TIMEOUT"]) >= 1800


def keywords(text, name):
    """Return what a program gives the class of that name."""
    (made,) = [
        each
        for each in ast.walk(ast.parse(text))
        if isinstance(each, ast.Call) and getattr(each.func, "id", "") == name
    ]
    return {each.arg: ast.literal_eval(each.value) for each in made.keywords}


def langchain(text):
    """Ask as LangChain's ChatOpenAI does, which is openai for Python."""
    given = keywords(text, "ChatOpenAI")
    assert chat(given["base_url"], given["model"], given["api_key"], "OpenAI/Python 3.57.0", tools=False).status == 200
    assert given["stream_chunk_timeout"] >= 1800


def llamaindex(text):
    """Ask as LlamaIndex's OpenAILike does once it takes the model for one that chats."""
    given = keywords(text, "OpenAILike")
    assert given["is_chat_model"]
    assert chat(given["api_base"], given["model"], given["api_key"], "OpenAI/Python 3.57.0", tools=False).status == 200
    assert given["timeout"] == 1800


def vercel(text):
    """Ask as the AI SDK's provider of the OpenAI kind does."""
    base, key = (re.search(rf'{name}: "([^"]+)"', text)[1] for name in ("baseURL", "apiKey"))
    model = re.search(r'home\("([^"]+)"\)', text)[1]
    assert chat(base, model, key, "ai-sdk/openai-compatible/2.0.92", tools=False).status == 200


def python(text):
    """Run a program as it is printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(text, "hello.py", "exec"), {"__name__": "__main__"})
    assert said.getvalue().startswith(HELLO)
    assert said.getvalue().endswith("\n")


def openai_js(text):
    """Ask as openai for JavaScript does."""
    assert 'import OpenAI from "openai";' in text
    base, model, key = (re.search(rf'{name}: "([^"]+)"', text)[1] for name in ("baseURL", "model", "apiKey"))
    assert chat(base, model, key, "OpenAI/JS 6.49.0", tools=False).status == 200


def anthropic_js(text):
    """Ask as anthropic for JavaScript does."""
    assert 'import Anthropic from "@anthropic-ai/sdk";' in text
    base, model, key = (re.search(rf'{name}: "([^"]+)"', text)[1] for name in ("baseURL", "model", "authToken"))
    content = {"model": model, "max_tokens": 1000, "messages": ASKED, "stream": True}
    fields = {"Authorization": f"Bearer {key}", "anthropic_version": "2026-10-21", "User_Agent": "Anthropic/JS 1.14.0"}
    answer = ask("POST", f"{base}/v1/messages", content, **fields)
    assert answer.status == 200
    assert "event: message_stop" in answer.text


def curl(text):
    """Ask for what the commands name; where there is a curl, run them as they are printed."""
    addresses = re.findall(r"http://\S+", text)
    content = json.loads(re.search(r"-d '(.+)'", text)[1])
    assert MODEL in ask("GET", addresses[0]).text
    assert HELLO in ask("POST", addresses[1], content).text
    if shutil.which("curl"):
        ran = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True, timeout=PATIENCE)
        assert '"object":"list"' in ran.stdout
        assert ran.stdout.endswith("data: [DONE]\n\n")


def ollama_cli(text):
    """Ask as `ollama run` does: a probe, the model, a load, then a chat."""
    variable, command, verb, model, _ = shlex.split(text)
    origin = variable.removeprefix("OLLAMA_HOST=")
    assert (command, verb) == ("ollama", "run")
    assert ask("HEAD", f"{origin}/").status == 200
    assert ask("POST", f"{origin}/api/show", {"model": model}).status == 200
    assert '"done_reason":"load"' in ask("POST", f"{origin}/api/generate", {"model": model}).text
    answer = ask("POST", f"{origin}/api/chat", {"model": model, "messages": ASKED})
    assert answer.status == 200
    assert '"done":true' in answer.text


AS_TOOLS_ASK = {
    "claude-code": claude_code,
    "codex": codex,
    "aider": aider,
    "continue": continue_,
    "cline": cline,
    "opencode": opencode,
    "goose": goose,
    "open-webui": open_webui,
    "copilot": copilot,
    "zed": zed,
    "openai-python": python,
    "openai-js": openai_js,
    "anthropic-python": python,
    "anthropic-js": anthropic_js,
    "langchain": langchain,
    "llamaindex": llamaindex,
    "vercel-ai-sdk": vercel,
    "curl": curl,
    "ollama-python": python,
    "ollama-cli": ollama_cli,
}


def test_every_tool_is_tried():
    """There is no tool whose settings nobody tries."""
    assert list(AS_TOOLS_ASK) == list(BY_NAME)


@pytest.mark.parametrize("name", [tool.name for tool in TOOLS if not tool.instead])
def test_first_requests_are_served(name, printed):
    """What a tool asks first, with the settings that are printed, is served by the default table."""
    AS_TOOLS_ASK[name](printed(name))


@pytest.mark.parametrize("name", [tool.name for tool in TOOLS if tool.instead])
def test_first_requests_are_served_once_opened(name, printed):
    """What a tool asks that needs more rows is served by a proxy that has these opened."""
    AS_TOOLS_ASK[name](printed(name, "open"))


def test_closed_rows_are_refused_as_told(printed):
    """Before they are opened, Ollama's own clients are refused with the line that opens them."""
    with pytest.raises(ollama.ResponseError, match=re.escape('`allow = ["POST /api/chat"]`')) as refused:
        python(printed("ollama-python"))
    assert refused.value.status_code == 403
    origin = shlex.split(printed("ollama-cli"))[0].removeprefix("OLLAMA_HOST=")
    assert ask("HEAD", f"{origin}/") == (403, "")


@pytest.mark.parametrize(
    "name",
    [tool.name for tool in TOOLS if tool.name in ("codex", "openai-js", "opencode", "aider", "zed", "langchain")],
)
def test_a_base_url_without_v1_is_refused_with_the_right_one(name, printed):
    """A tool without /v1 in its base URL gets the refusal that docs/clients.md shows."""
    (base,) = set(re.findall(r"http://[\d.:]+/v1", printed(name)))
    answer = ask("POST", f"{base.removesuffix('/v1')}/chat/completions", {"model": MODEL})
    assert answer.status == 403
    assert "your base URL lacks /v1" in answer.text


@pytest.mark.parametrize("name", ["claude-code", "anthropic-js", "copilot"])
def test_a_base_url_with_v1_too_many_is_refused_with_the_right_one(name, printed):
    """A tool with one /v1 too many gets the refusal that docs/clients.md shows."""
    (base,) = set(re.findall(r"http://[\d.:]+", printed(name)))
    path = "/v1/api/tags" if name == "copilot" else "/v1/v1/messages"
    answer = ask("GET" if name == "copilot" else "POST", f"{base}{path}", None if name == "copilot" else {})
    assert answer.status == 403
    assert "remove it there" in answer.text


# --- the command itself -----------------------------------------------------------------------------------------------


def test_only_what_is_to_be_pasted_is_printed(servers, tmp_path):
    """As a process, standard output is the file itself, and all talk is on standard error."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("PROXY_")}
    ran = subprocess.run(
        [sys.executable, "-m", "proxy", "connect", "codex"],
        env=others | servers["closed"] | {"HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    given = tomllib.loads(ran.stdout)
    assert given["model_providers"]["home"]["base_url"] == f"http://127.0.0.1:{servers['closed']['PROXY_PORT']}/v1"
    assert ran.stderr.startswith("Codex: ~/.codex/home.config.toml\nthen: codex --profile home\nnote: ")
    assert f"the model is {given['model']}, " in ran.stderr


def test_nothing_is_asked_of_the_proxy(servers, printed):
    """Looking for the settings leaves no line in the access log."""
    log = Path(servers["open"]["PROXY_ACCESS_LOG"])
    before = log.read_bytes() if log.exists() else b""
    printed("codex", "open")
    assert (log.read_bytes() if log.exists() else b"") == before
