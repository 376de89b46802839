"""`verify` as a person runs it: real processes, a simulated Ollama, and each way in which it can go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.command_line import cli
from proxy.manage.logs.summary import PROVOKED
from proxy.manage.verify import command as verify
from proxy.manage.verify.questions.refused import OTHER_NAME
from proxy.manage.verify.questions.script import ask_from_client
from proxy.policy import refusals
from proxy.settings.settings import Settings
from proxy.simulated_ollama import Model, SimulatedOllama
from proxy.tailnet.tailscale import Tailnet
from tests.fakes.scripted_tailscale import STOPPED
from tests.support.middlebox import Between
from tests.support.patience import PATIENCE
from tests.support.proxy_process import ROOT, Process

"""Seconds after which a run has failed; the longest takes six."""

NO_MODELS = "--skip-model-tests"
NAMED = Tailnet("Running", ("100.64.0.1",), tun=True, name="mac.tail1.ts.net", magic_dns=True)


@dataclass
class Run:
    """How a run went."""

    code: int
    out: str
    err: str
    results: list[dict[str, Any]] = field(default_factory=list)

    def of(self, name: str, group: str = "") -> dict[str, Any]:
        """Return the one result of a name."""
        (found,) = [each for each in self.results if each["name"] == name and group in each["group"]]
        return found

    def named(self, outcome: str) -> set[str]:
        """Return the names of the results with an outcome, those of a machine that is no Mac left out."""
        asked = [each for each in self.results if each["ids"] or each["group"] not in ("Security", "Network")]
        return {each["name"] for each in asked if each["outcome"] == outcome}


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a command as a process, with settings that point at a port: how that went."""

    async def call(*words: str, port: int = 1, upstream: int = 2, command: tuple[str, ...] = (), **environ: str) -> Run:
        given = {
            "PROXY_LISTEN": "127.0.0.1",
            "PROXY_PORT": str(port),
            "PROXY_UPSTREAM": f"http://127.0.0.1:{upstream}",
            "PROXY_ACCESS_LOG": str(tmp_path / "access.log"),
            "PROXY_CONFIG": str(tmp_path / "config.toml"),
            "HOME": str(tmp_path),
            "PATH": str(tmp_path),  # no lsof, which would see that this Ollama is a part of pytest
        }
        (tmp_path / "config.toml").touch()
        others = {name: value for name, value in os.environ.items() if not name.startswith(("PROXY_", "XDG_"))}
        process = await asyncio.create_subprocess_exec(
            *(command or (sys.executable, "-m", "proxy", "verify")),
            *words,
            cwd=ROOT,
            env=others | given | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
        results = json.loads(out) if "--json" in words and process.returncode in (0, 1) else []
        return Run(process.returncode or 0, out.decode(), err.decode(), results)

    return call


@pytest.fixture
def stage(tmp_path):
    """Return what starts a simulated Ollama, and the proxy as a process before it."""

    @asynccontextmanager
    async def start(*models: Model, **given: Any):
        more = {name: given.pop(name) for name in list(given) if name.isupper()}
        given = {"tokens_per_second": 300.0} | given
        async with (
            SimulatedOllama(models, **given)
            if models or given.pop("empty", False)
            else SimulatedOllama(**given) as ollama
        ):
            process = await Process.start(tmp_path, ollama.port, **more)
            try:
                await process.says("listening")
                yield ollama, process
            finally:
                await process.kill()

    return start


USAGE = [
    (("--from-client", "https://mac/v1"), "give only host and port, as in https://mac"),
    (("--from-client", "http://mac:11434/v1"), "give only host and port, as in http://mac:11434"),
    (("--from-client", "ftp://mac"), "is not a URL of the form http://mac:11434"),
    (("--from-client", "http://mac:99999"), "Port out of range"),
    (("--from-client", "http://mac", "--client-script"), "not allowed with argument"),
    (("--from-client", "http://mac", "--port", "0"), "is out of range"),
    (("--zzz",), "no such option"),
    (("--client-script", "--port", "0"), "is out of range"),
]


# --- well -------------------------------------------------------------------------------------------------------------


async def test_all_is_well(run, tmp_path):
    """Before a proxy that keeps its promises everything passes, or is skipped with a reason, and the exit code is 0."""
    simulated = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy.simulated_ollama", "--port", "0", "--tokens-per-second", "300"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    port = int((await simulated.stdout.readline()).rpartition(b":")[2])
    process = await Process.start(tmp_path, port)
    try:
        await process.says("listening")
        went = await run("--json", port=process.port, upstream=port, PATH=os.environ["PATH"])
        lines = process.lines()
    finally:
        await process.kill()
        simulated.kill()
        await simulated.wait()
    assert (went.code, went.err) == (0, ""), went.named("fail")
    groups = ("Service status", "OpenAI API", "Anthropic API", "Security", "Network", "Proxy")
    assert tuple(dict.fromkeys(each["group"] for each in went.results)) == groups
    assert {each["name"] for each in went.results if each["ids"] and each["outcome"] != "pass"} == set()
    assert len([each for each in went.results if each["ids"]]) >= 34
    assert went.of("access log")["outcome"] == "pass"
    assert {line["verdict"] for line in lines} == {"allowed", "refused", "preflight"}
    refused = {line["reason"] for line in lines if line["verdict"] == "refused" and "user_agent" in line}
    assert refused == PROVOKED - {"web_search", "model_not_allowed"}, "what `logs --summary` takes for verify's"
    log = process.access_log.read_text()
    assert [text for text in ("Say hello", "Count from", "Paris", "?beta", "unused") if text in log] == []


RULES = """
[[access]]
who = ["127.0.0.1"]
models = ["plain"]

[[access]]
who = ["tag:agents"]
models = ["tiny", "tools:*"]
"""


async def test_rules_of_other_devices(run, stage, tmp_path):
    """The rule that counts here is tried, and the running proxy judges the other one; without it, that is skipped."""
    (tmp_path / "config.toml").write_text(RULES)
    places = {"PROXY_CONFIG": str(tmp_path / "config.toml"), "HOME": str(tmp_path), "XDG_STATE_HOME": None}
    async with stage(**places) as (ollama, process):
        done = await run("--json", NO_MODELS, port=process.port, upstream=ollama.port)
        assert done.of("access rule 1")["detail"].startswith("counts for this device, which sees 1 model")
        judged = "judged by the running proxy, and not tried: allows 2 of 8 models (tiny:latest, tools:latest)"
        assert done.of("access rule 2")["detail"].startswith(judged)
        assert done.named("fail") == set()
        unshown = await run("--json", NO_MODELS, port=process.port, upstream=ollama.port, TMPDIR="/nowhere")
    assert unshown.of("access rule 1")["outcome"] == "pass"
    assert unshown.of("access rule 2")["outcome"] == "skip"
    assert "no proxy of this user serves on port" in unshown.of("access rule 2")["detail"]


async def test_shown_to_a_person(run, stage):
    """Results are numbered, in groups, with times; the sum and what isn't proved yet end it."""
    async with stage() as (ollama, process):
        went = await run(NO_MODELS, "--skip-anthropic-tests", port=process.port, upstream=ollama.port)
    assert (went.code, went.err) == (0, ""), went.out
    lines = went.out.splitlines()
    assert lines[0] == "Service status"
    assert "Anthropic API" in lines
    assert any(line.endswith("version for messages ... image: left out with --skip-anthropic-tests") for line in lines)
    assert any("SKIP  chat ... image: left out with --skip-model-tests" in line for line in lines)
    assert any(" passed, " in line and " 0 failed, " in line for line in lines)
    assert lines[-1] == "The proxy listens on loopback only, so no other device can reach it."
    assert "\x1b" not in went.out


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def test_ollama_down(run, stage):
    """Without Ollama what depends on it is skipped, what the proxy does by itself is still asked, and the code is 1."""
    async with stage() as (ollama, process):
        await ollama.close()
        went = await run("--json", port=process.port, upstream=ollama.port)
    assert went.code == 1
    assert went.of("Ollama HTTP")["outcome"] == "fail"
    assert "Ollama is not running" in went.of("Ollama behind it")["detail"]
    assert went.of("chat")["detail"] == went.of("GET /api/version", "Proxy")["detail"] == "Ollama does not answer"
    assert went.of("POST /api/signout")["outcome"] == "pass"
    assert {each["outcome"] for each in went.results if each["group"].endswith("API")} == {"skip"}


async def test_proxy_down(run, stage):
    """Without the proxy no question is asked, and the hint is printed once."""
    async with stage() as (ollama, process):
        await process.kill()
        went = await run("--json", port=process.port, upstream=ollama.port)
    assert went.code == 1
    assert went.of("proxy HTTP")["outcome"] == "fail"
    assert went.of("an answer")["detail"].startswith("as above: nothing listens at 127.0.0.1:")
    assert went.of("chat")["detail"] == f"there is no answer from 127.0.0.1:{process.port}"
    assert all("/v1/" not in target for _, target in ollama.seen)


async def test_stream_in_lumps(run, stage):
    """A stream that comes in lumps fails, and so does the run."""
    async with stage(tokens_per_second=80.0) as (ollama, process), Between(process.port, holds=True) as holding:
        went = await run("--json", "--skip-anthropic-tests", port=holding.port, upstream=ollama.port)
    assert went.code == 1
    assert went.named("fail") == {"token gaps"}
    assert went.of("token gaps")["detail"].startswith("the proxy holds a stream back: 24 pieces in ")


# --- from a client ----------------------------------------------------------------------------------------------------


async def test_proxy_that_refuses_its_name(stage, monkeypatch, capsys):
    """A name that the proxy doesn't allow is one failure, with the remedy: no route is said to be open for it."""
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda to, *more: connect(("127.0.0.1", to[1]), *more))
    options = SimpleNamespace(model=None, skip_anthropic_tests=False, skip_model_tests=True, verbose=False, json=True)
    async with stage() as (ollama, process):
        url = f"http://mac.mesh.example.com:{process.port}"
        report = await asyncio.to_thread(ask_from_client, url, verify.promised(Settings()), options)
        lines = process.lines()
    went = Run(int(report.failed), capsys.readouterr().out, "", [asdict(result) for result in report.results])
    assert (went.code, went.out, went.named("fail")) == (1, "", {"from the proxy"})
    told = went.of("from the proxy")
    assert told["detail"].startswith("it is the proxy, and it refuses the name mac.mesh.example.com: ")
    assert "add mac.mesh.example.com to allowed_hosts in config.toml" in told["hint"]
    assert went.of("chat")["detail"] == "not asked: the proxy refuses the name mac.mesh.example.com"
    assert {line["reason"] for line in lines} == {"host_not_allowed"}
    assert {target for _, target in ollama.seen} <= {"/api/status"}, "which the proxy itself asks for"


def test_words_of_a_refused_name():
    """The words by which the question knows such a refusal are in no other one of the proxy's."""
    assert OTHER_NAME in refusals.host_not_allowed(b"mac.mesh.example.com").message
    assert OTHER_NAME not in refusals.origin_not_allowed(b"https://a.example").message


async def test_script(run, stage, tmp_path):
    """What --client-script prints needs no package and asks the same as --from-client; pointed at Ollama it fails."""
    async with stage() as (ollama, process):
        printed = await run("--client-script", port=process.port, upstream=ollama.port)
        path = tmp_path / "check.py"
        path.write_text(printed.out)
        bare = (sys.executable, "-I", "-S", str(path))
        url = f"http://127.0.0.1:{process.port}"
        went = await run(url, command=bare)
        lines = process.lines()
        same = await run("--json", NO_MODELS, "--from-client", url)
        before = len(ollama.seen)
        straight = await run(ollama.url, "--json", command=bare)
        seen = ollama.seen[before:]
    assert (printed.code, printed.err) == (0, "")
    assert (went.code, went.err, " 0 failed, " in went.out) == (0, "", True), went.out
    assert (same.code, same.named("fail")) == (0, set())
    told = went.out.partition("access log as `")[2]
    name = told.partition("NUMBER`")[0]
    numbers = re.findall(r"(?<!\S)(\d+) \d{3}(?![\d*])", told)
    logged = {line["id"].removeprefix(name) for line in lines}
    assert len(numbers) > 100
    assert {*numbers} <= logged
    assert straight.code == 1
    assert straight.named("fail") == {"from the proxy"}
    assert straight.of("from the proxy")["detail"].startswith("this is Ollama itself, not the proxy")
    assert "remote-ollama-proxy status, which shows where the proxy listens" in straight.of("from the proxy")["hint"]
    assert {target for _, target in seen} == {"/api/version", "/api/pull"}


@pytest.mark.parametrize(
    ("listen", "tailnet", "reachable", "url"),
    [
        pytest.param(
            *(("tailscale",), NAMED, ("100.64.0.1",), "http://mac.tail1.ts.net:11434"), id="name_in_the_tailnet"
        ),
        pytest.param(
            *(("tailscale",), replace(NAMED, name="mac.mesh.example.org"), ("100.64.0.1",)),
            "http://mac.mesh.example.org:11434",
            id="name_of_another_domain",
        ),
        pytest.param(
            *(("tailscale",), replace(NAMED, magic_dns=False), ("100.64.0.1",), "http://100.64.0.1:11434"),
            id="name_that_nobody_resolves",
        ),
        pytest.param(
            *(("tailscale",), replace(NAMED, name=None), ("100.64.0.1", "fd7a::1"), "http://100.64.0.1:11434"),
            id="no_name",
        ),
        pytest.param(("::1", "fd7a::1"), NAMED, ("::1", "fd7a::1"), "http://[fd7a::1]:11434", id="its_address"),
        pytest.param(("127.0.0.1",), NAMED, ("127.0.0.1",), None, id="loopback"),
        pytest.param(("tailscale",), STOPPED, (), None, id="stopped"),
    ],
)
def test_where_clients_find_it(listen, tailnet, reachable, url):
    """Clients are given the name in the tailnet if they can resolve it, else an address that isn't loopback."""
    settings = SimpleNamespace(listen=listen, port=11434)
    facts = SimpleNamespace(settings=settings, tailscale=SimpleNamespace(tailnet=tailnet), reachable=reachable)
    assert verify.url_for_clients(facts) == url
    note = verify._note(facts)
    assert (f"python3 check.py {url}" in note) is (url is not None)
    assert bool(note) is bool(reachable)


def test_interrupted(capsys, monkeypatch, tmp_path):
    """Ctrl-C prints the results so far, and exits with 1."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "put_all", interrupted)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["verify", "--listen", "127.0.0.1", "--port", "1"]) == 1
    said = capsys.readouterr()
    assert said.err == "interrupted\n"
    assert said.out.startswith("Service status\n")


def test_wrong_usage(capsys, monkeypatch, tmp_path):
    """Wrong usage gets a hint, and exit code 2."""
    for name in [name for name in os.environ if name.startswith("PROXY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for words, message in USAGE:
        try:
            code = cli.main(["verify", *words])
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), words
        assert message in err
        assert err.splitlines()[-1].startswith("hint: ")
