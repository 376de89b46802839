"""`warm`: missing models are pulled, all are loaded, and the result is printed. It asks Ollama directly."""

from __future__ import annotations

import argparse
import asyncio
import os
import plistlib
import pty
import re
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.command_line import cli
from proxy.manage.machine.launchd import PROXY, plist_path
from proxy.manage.ollama import api
from proxy.manage.warm import command as warm
from proxy.manage.warm.models import FOR_EVER, Warming, stay
from proxy.simulated_ollama import EMBEDDER, REMOTE_STUB, Model, SimulatedOllama
from tests.manage.ollama.test_ollama_api import END, LAYER, STREAM, SUCCESS, answer, chunk
from tests.support.patience import PATIENCE
from tests.support.ports import free_ports
from tests.support.raw_http import CLOSE, CUT, HANG

ROOT = Path(__file__).parent.parent.parent.parent
GB = 10**9

TINY = Model("tiny:latest", 5 * GB, "11" * 32, memory=6 * GB, gpu_share=1.0)
SPLIT = Model("split:8b", 5 * GB, "22" * 32, memory=10 * GB, gpu_share=0.6)
SLOW = Model("slow:latest", 5 * GB, "33" * 32, memory=6 * GB)
BROKEN = Model("broken:latest", digest="44" * 32, load_fails=True)
HUGE = Model("huge:70b", digest="55" * 32, layers=(4 * GB, 1429, 486), memory=5 * GB, gpu_share=1.0)
FULL = Model("full:latest", GB, "66" * 32, pull_fails="write blob: no space left on device")


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """Give every test a home folder with no file, and an environment that sets nothing."""
    for name in [name for name in os.environ if name.startswith(("PROXY_", "XDG_", "FORCE_COLOR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
async def start():
    """Return a function that starts a simulated Ollama."""
    started = []

    async def make(models=(TINY, SPLIT, SLOW, BROKEN, EMBEDDER, REMOTE_STUB), **options):
        options = {"registry": (HUGE, FULL), "speed": 100.0, **options}
        started.append(SimulatedOllama(models, **options))
        await started[-1].start()
        return started[-1]

    yield make
    for ollama in started:
        await ollama.close()


@pytest.fixture
def run(capsys):
    """Return a function that runs `warm`, in another thread: servers answer in this one."""

    def call(url, *words):
        try:
            return cli.main(["warm", *words, "--upstream", url])
        except SystemExit as stopped:
            return stopped.code

    async def ran(url, *words):
        code = await asyncio.to_thread(call, url, *words)
        return code, *capsys.readouterr()

    return ran


def findings(out):
    """Return what is printed about each model: its outcome, and the rest with its hint."""
    found = re.findall(r"^  (pass|warn|fail)  (\S+): (.*(?:\n {8}hint: .*)?)$", out, re.MULTILINE)
    return {name: (outcome, re.sub(r"\d+\.\d s", "1 s", text)) for outcome, name, text in found}


def asked(ollama):
    """Return what Ollama was asked to do."""
    return [target for method, target in ollama.seen if method == "POST"]


# --- well -------------------------------------------------------------------------------------------------------------


async def test_warm(start, run):
    """A pulled model is loaded, forever by default. The second time it is loaded already."""
    ollama = await start()
    code, out, err = await run(ollama.url, "Tiny")
    assert (code, out.splitlines()[0]) == (0, "models")
    loaded = "; stays forever; 6.0 GB, all of it in GPU memory; context 2048"
    assert findings(out) == {"Tiny:latest": ("pass", f"loaded in 1 s{loaded}")}
    assert re.fullmatch(r"1 loaded, 0 pulled, 0 failed, in \d\.\d s", out.splitlines()[-1])
    assert re.fullmatch(r"20\d\d-.* warming Tiny:latest\nTiny:latest: loading\nTiny:latest: loaded in .* s\n", err)
    assert asked(ollama) == ["/api/generate"]
    assert findings((await run(ollama.url, "tiny"))[1]) == {"tiny:latest": ("pass", f"was loaded already{loaded}")}


async def test_pull_and_load(start, run):
    """A model that is missing is pulled first, with a line for each tenth of it; each name is taken once."""
    ollama = await start(pull_rate=GB)
    code, out, err = await run(ollama.url, "huge:70b", "tiny", "HUGE:70B:local", "--keep-alive", "2h")
    assert code == 0
    told = findings(out)
    assert list(told) == ["huge:70b", "tiny:latest"]
    assert told["huge:70b"][1].startswith("pulled (4.0 GB), loaded in 1 s; stays until ")
    assert "2 loaded, 1 pulled, 0 failed" in out
    lines = [line for line in err.splitlines() if line.startswith("huge")]
    assert lines[0] == "huge:70b: pulling"
    assert [line.split()[1] for line in lines if "%" in line] == [f"{tenth}0" for tenth in range(1, 10)]
    assert lines[10:] == ["huge:70b: verifying sha256 digest", *lines[11:]]
    assert [line.partition(" in ")[0] for line in lines[11:]] == [
        "huge:70b: pulled 4.0 GB", "huge:70b: loading", "huge:70b: loaded",
    ]  # fmt: skip
    assert "\x1b" not in out + err
    assert ollama.scheduler.runners["huge:70b"].keep_alive == 7200


async def test_model_that_embeds(start, run):
    """A model that only embeds is loaded by an embedding."""
    ollama = await start()
    assert (await run(ollama.url, "embedder"))[0] == 0
    assert asked(ollama) == ["/api/embed"]
    assert ollama.scheduler.runners["embedder:latest"].keep_alive == float("inf")


async def test_model_that_embeds_of_an_old_ollama(upstream, run):
    """If Ollama doesn't report what a model is for, its refusal shows it."""
    models, loaded = answer({"models": [{"name": "e"}]}), answer({"models": [{"name": "e:latest", "size": 5}]})
    upstream.answers_in_turn(
        (answer({"version": "0.5.0"}),), (models,), (loaded,),
        (answer({"error": '"e" does not support generate'}, "400 Bad Request"),),
        (answer({"embeddings": [[1]]}),), (loaded,),
    )  # fmt: skip
    code, out, _ = await run(f"http://127.0.0.1:{upstream.port}", "e")
    assert (code, findings(out)["e:latest"][0]) == (0, "warn")
    assert [each.split()[1] for each in upstream.requests][4:5] == [b"/api/embed"]


async def test_partly_on_the_cpu(start, run):
    """A model that doesn't fit into the GPU's memory is a warning, with the share that doesn't; it is loaded."""
    ollama = await start()
    code, out, _ = await run(ollama.url, "split:8b", "slow")
    told = findings(out)
    assert code == 0
    assert told["split:8b"][0] == told["slow:latest"][0] == "warn"
    assert "10.0 GB, 40 % of it on the CPU, which is slow; context 2048\n        hint: a smaller" in told["split:8b"][1]
    assert "6.0 GB, all of it on the CPU" in told["slow:latest"][1]


async def test_shared_weights(upstream, run):
    """A model that Ollama lists under another name, since both are the same weights, isn't taken for unloaded."""
    listed = answer({"models": [{"name": "a", "digest": "d1"}, {"name": "b", "digest": "d1"}, {"name": "c"}]})
    loaded = answer({"models": [{"name": "b:latest", "digest": "d1", "size": 5, "size_vram": 5}]})
    done, version = answer({"done": True}), answer({"version": "0.32.15"})
    upstream.answers_in_turn(
        *[(each,) for each in (version, listed, loaded, done, loaded, listed, loaded, done, loaded)]
    )
    code, out, _ = await run(f"http://127.0.0.1:{upstream.port}", "a", "c")
    told = findings(out)
    assert (code, told["a:latest"][0], told["c:latest"][0]) == (0, "pass", "pass")
    assert "stays for a while; 5 bytes" in told["a:latest"][1]
    assert "it shares the weights of another" in told["c:latest"][1]


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def test_failures_stop_no_other(start, run):
    """A model that can't be warmed gets a hint, and the next one is warmed; the exit code is 1."""
    ollama = await start()
    code, out, err = await run(ollama.url, "nope", "kimi:Cloud", "far", "broken", "full", "tiny")
    assert code == 1
    told = findings(out)
    assert {name: outcome for name, (outcome, _) in told.items() if outcome != "fail"} == {"tiny:latest": "pass"}
    starts = {name: tuple(text.split("\n        hint: ")) for name, (_, text) in told.items() if "hint" in text}
    here = "not on this machine: there is nothing to load here"
    assert starts == {
        "nope:latest": (
            "not pulled: pull model manifest: file does not exist",
            "look the name up at https://ollama.com/library; `ollama list` has what is here",
        ),
        "kimi:Cloud": (f"it runs at ollama.com, {here}", "ollama list"),
        "far:latest": (f"it runs at https://ollama.com:443, {here}", "ollama list"),
        "broken:latest": (
            "not loaded: llama-server process has terminated: exit status 1: error: stand-in was told to fail the load",
            "see the output of `ollama serve`",
        ),
        "full:latest": (
            "not pulled: write blob: no space left on device",
            "df -h ~; `ollama rm` removes a model that isn't needed",
        ),
    }
    assert "1 loaded, 0 pulled, 5 failed" in out
    assert "nope:latest: failed: not pulled: pull model manifest: file does not exist\n" in err
    assert asked(ollama) == ["/api/pull", "/api/generate", "/api/pull", "/api/generate"]


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        pytest.param((STREAM, chunk({"error": "unauthorized: access denied"}), END), "unauthorized", id="error_in_200"),
        pytest.param((STREAM, chunk(LAYER), END), "the pull ended before it was done", id="no_success"),
        pytest.param((STREAM, chunk(LAYER), CUT), "the connection to Ollama broke", id="cut"),
        pytest.param((CLOSE,), "the connection to Ollama broke", id="closed"),
        pytest.param((answer({"error": "boom"}, "500 Internal Server Error"),), "boom", id="refused"),
    ],
)
async def test_pull_that_fails(upstream, run, script, outcome):
    """If a pull ends with anything but success, the model is not loaded, and that is reported."""
    version, none = answer({"version": "0.32.15"}), answer({"models": []})
    upstream.answers_in_turn((version,), (none,), script, (none,))
    code, out, _ = await run(f"http://127.0.0.1:{upstream.port}", "m")
    assert code == 1
    assert findings(out)["m:latest"][0] == "fail"
    assert findings(out)["m:latest"][1].startswith(f"not pulled: {outcome}")
    assert "hint: " in findings(out)["m:latest"][1]
    assert [each.split()[1] for each in upstream.requests] == [b"/api/version", b"/api/tags", b"/api/pull", b"/api/ps"]


async def test_terminal_is_not_steered(upstream, run):
    """What Ollama says is printed escaped."""
    version, none = answer({"version": "0.32.15"}), answer({"models": []})
    bad = (STREAM, chunk({"error": "\x1b[31mred"}), chunk(SUCCESS), END)
    upstream.answers_in_turn((version,), (none,), bad, (none,))
    _, out, err = await run(f"http://127.0.0.1:{upstream.port}", "m")
    assert r"\x1b[31mred" in out
    assert "\x1b" not in out + err


async def test_no_room(start, run):
    """A model that a later one has thrown out is a failure, found at the end."""
    ollama = await start(max_loaded=1)
    code, out, _ = await run(ollama.url, "tiny", "split:8b")
    told = findings(out)
    assert (code, told["tiny:latest"][0], told["split:8b"][0]) == (1, "fail", "warn")
    assert told["tiny:latest"][1].startswith("loaded in 1 s, and is unloaded again: another took its place")
    assert "OLLAMA_MAX_LOADED_MODELS" in told["tiny:latest"][1]
    assert "1 loaded, 0 pulled, 1 failed" in out


async def test_time_that_is_over(start, run, monkeypatch):
    """A model whose own time is over by the end wasn't thrown out; that is a warning."""
    ollama = await start()
    real = Warming.findings

    def late(self):
        for model in self._models:
            model.loaded_at -= 5
        asyncio.run_coroutine_threadsafe(gone(), loop).result()
        return real(self)

    async def gone():
        ollama.scheduler.close()

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Warming, "findings", late)
    code, out, _ = await run(ollama.url, "tiny", "--keep-alive", "3")
    assert code == 0
    assert findings(out)["tiny:latest"][1].startswith("loaded in 1 s, and is unloaded again: its 1 s are over")


async def test_ollama_that_goes(upstream, run):
    """When Ollama is gone at the end nothing is loaded, whatever it said before."""
    listed, loaded = answer({"models": [{"name": "m"}]}), answer({"models": [{"name": "m"}]})
    upstream.answers_in_turn(
        (answer({"version": "0.32.15"}),), (listed,), (loaded,), (answer({"done": True}),), (loaded,), (CLOSE,)
    )
    code, out, _ = await run(f"http://127.0.0.1:{upstream.port}", "m")
    assert code == 1
    assert "Ollama doesn't answer any more, so nothing is loaded now\n        hint: ollama serve" in out


async def test_ollama_that_is_down(run):
    """Without Ollama that is one error with what helps, and nothing on standard output."""
    (port,) = free_ports(1)
    code, out, err = await run(f"http://127.0.0.1:{port}", "a", "b")
    assert (code, out) == (1, "")
    assert err.splitlines()[1:] == [f"error: Ollama does not answer at http://127.0.0.1:{port}", "hint: ollama serve"]


async def test_waiting(upstream, run, monkeypatch):
    """With --wait, it waits for an Ollama that isn't up yet, and says so."""
    monkeypatch.setattr(api, "POLL", 0.02)
    version, listed, done = (
        answer({"version": "0.32.15"}), answer({"models": [{"name": "tiny", "size": 5, "size_vram": 5}]}),
        answer({"done": True}),
    )  # fmt: skip
    upstream.answers_in_turn((CLOSE,), (CLOSE,), (version,), (listed,), (listed,), (done,), (listed,))
    url = f"http://127.0.0.1:{upstream.port}"
    code, out, err = await run(url, "tiny", "--wait", "20s")
    assert (code, findings(out)["tiny:latest"][0]) == (0, "pass")
    assert err.splitlines()[1] == f"waiting for Ollama at {url}, 20 s at most"


async def test_waiting_ends(run, monkeypatch):
    """An Ollama that doesn't come in that time is an error."""
    (port,) = free_ports(1)
    monkeypatch.setattr(api, "POLL", 0.02)
    code, _, err = await run(f"http://127.0.0.1:{port}", "tiny", "--wait", "0.1")
    assert code == 1
    assert f"waiting for Ollama at http://127.0.0.1:{port}, 0.1 s at most\n" in err
    assert f"error: Ollama does not answer at http://127.0.0.1:{port} within 0.1 s\n" in err


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("-1", FOR_EVER),
        ("forever", FOR_EVER),
        ("For Ever", FOR_EVER),
        ("-30m", FOR_EVER),
        ("3600", 3600),
        ("0.5", 0.5),
        ("30m", 1800),
        ("2h", 7200),
        ("90s", 90),
        ("1h30m", 5400),
        ("7d", 7 * 86400),
        (" 24h ", 86400),
    ],
)
def test_keep_alive(text, seconds):
    """How long models stay is said in seconds, or as Ollama takes it; below zero is forever."""
    assert warm.keep_alive(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1w", "30 m", "m", "1h30", "∞", "1e3", "5m1h"])
def test_keep_alive_that_is_none(text):
    """An invalid time is an error that shows the valid forms."""
    with pytest.raises(ValueError, match="is not a time: use seconds, or units as in 30m"):
        warm.keep_alive(text)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "which models should be loaded? `ollama list` shows the available ones"),
        (("tiny", "--keep-alive", "0"), '--keep-alive "0" would unload it at once, as `ollama stop` does'),
        (("tiny", "--keep-alive", "0m"), '--keep-alive "0m" would unload it at once'),
        (("tiny", "--keep-alive", "soon"), '--keep-alive "soon" is not a time'),
        (("tiny", "--keep-alive", "999999h"), '--keep-alive "999999h" is longer than ten years: use forever'),
        (("tiny", "--wait", "soon"), '--wait "soon" is not a duration'),
        (("../tiny",), '"../tiny" is not a model\'s name'),
        (("a:b:c", "tiny"), '"a:b:c" is not a model\'s name'),
        (("tiny", "--no-at-login"), "--no-at-login takes no MODEL"),
    ],
)
async def test_wrong_usage(run, words, error):
    """Wrong usage is reported with the option and the value, before anything is asked; exit code 2."""
    code, out, err = await run("http://127.0.0.1:1", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert err.endswith("hint: python -m proxy warm --help\n")


async def test_all_mistakes_at_once(run):
    """All mistakes in one command line are reported at once."""
    _, _, err = await run("http://127.0.0.1:1", "../a", "b c", "--keep-alive", "0", "--wait", "x")
    assert err.count("error: ") == 4


async def test_wrong_settings(run):
    """Wrong settings are exit code 2, as everywhere."""
    code, _, err = await run("http://192.168.1.9:11434", "tiny")
    assert (code, err.startswith("error: upstream")) == (2, True)


async def test_settings_of_the_service(start, home, monkeypatch):
    """Ollama is where the installed proxy has it, whatever this shell has set."""
    ollama = await start()
    plist = plist_path(PROXY, home)
    plist.parent.mkdir(parents=True)
    plist.write_bytes(plistlib.dumps({"EnvironmentVariables": {"PROXY_UPSTREAM": ollama.url}}))
    monkeypatch.setenv("PROXY_UPSTREAM", "http://127.0.0.1:1")
    assert await asyncio.to_thread(cli.main, ["warm", "tiny"]) == 0


@pytest.mark.parametrize(
    ("until", "words"),
    [
        (timedelta(days=292 * 365), "forever"),
        (timedelta(minutes=29, seconds=36), r"until (2026-11-2\d )?\d\d:\d\d \(in 30 min\)"),
        (timedelta(days=3), r"until 2026-11-2\d \d\d:\d\d \(in 3 d\)"),
        (timedelta(seconds=-5), r"until .*\(in 0\.0 s\)"),
    ],
)
def test_stay(until, words):
    """The end of a model's stay is shown in local time; 292 years, which is Ollama's forever, as forever."""
    now = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
    assert re.fullmatch(words, stay(now + until, now))


# --- as a process -----------------------------------------------------------------------------------------------------


async def command(*words, **environ):
    """Start the command as its users do."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "warm", *words),
        cwd=ROOT,
        env={**os.environ, **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_never_through_the_proxy(start):
    """All requests go to Ollama itself: neither the proxy nor one of the environment's sees a connection."""
    ollama = await start((TINY,))
    came = []
    trap = await asyncio.start_server(lambda reader, writer: came.append(writer.close()), "127.0.0.1", 0)
    port = trap.sockets[0].getsockname()[1]
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), f"http://127.0.0.1:{port}")
    settings = {"PROXY_LISTEN": "127.0.0.1", "PROXY_PORT": str(port), "PROXY_UPSTREAM": ollama.url}
    running = await command("tiny", **proxies, **settings)
    out, err = await asyncio.wait_for(running.communicate(), PATIENCE)
    trap.close()
    assert (running.returncode, came) == (0, []), err
    assert b"1 loaded" in out
    assert ollama.seen == [
        ("GET", "/api/version"),
        ("GET", "/api/tags"),
        ("GET", "/api/ps"),
        ("POST", "/api/generate"),
        ("GET", "/api/ps"),
        ("GET", "/api/ps"),
    ]


async def interrupted(start, condition, *words, **options):
    """Press Ctrl-C once a condition of Ollama's holds; return exit code, and what is said."""
    ollama = await start(**options)
    running = await command(*words, "--upstream", ollama.url)
    await ollama.until(lambda: condition(ollama), PATIENCE)
    running.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(running.communicate(), PATIENCE)
    return ollama, running.returncode, out.decode(), err.decode()


async def test_interrupted_pull(start):
    """Ctrl-C ends a pull, and with it the command; what is here stays, and that is said."""
    ollama, code, out, err = await interrupted(
        start, lambda ollama: any(ollama.pulled.values()), "huge:70b", "tiny", pull_rate=1000.0, speed=1.0
    )
    await ollama.until(lambda: ollama.disconnects == 1)
    assert code == 1
    kept = "interrupted: Ollama keeps the downloaded part, and continues from there"
    assert findings(out) == {
        "huge:70b": ("fail", f"{kept}\n        hint: python -m proxy warm huge:70b"),
        "tiny:latest": ("fail", "not begun\n        hint: python -m proxy warm tiny:latest"),
    }
    assert "Traceback" not in err


async def test_interrupted_load(start):
    """Ctrl-C ends a load, which goes on for nobody else."""
    ollama, code, out, err = await interrupted(
        start, lambda ollama: ollama.scheduler.loads == 1, "tiny", load_seconds=999.0, speed=1.0
    )
    await ollama.until(lambda: ollama.scheduler.loads_aborted == 1)
    assert (code, "Traceback" in err) == (1, False)
    assert findings(out)["tiny:latest"][1].startswith("interrupted, and with it the load\n")


async def test_interrupted_wait(upstream):
    """Ctrl-C while Ollama is waited for ends the command without more words than needed."""
    upstream.answers(HANG)
    running = await command("tiny", "--upstream", f"http://127.0.0.1:{upstream.port}", "--wait", "1h")
    await asyncio.wait_for(upstream.arrived.wait(), PATIENCE)
    running.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(running.communicate(), PATIENCE)
    assert (running.returncode, out) == (1, b"")
    assert err.decode().splitlines()[-2:] == ["error: interrupted", "hint: python -m proxy warm tiny:latest"]


async def on_terminal(url, *words, **environ):
    """Return what the command prints on a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "warm", *words, "--upstream", url),
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **environ},
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
    )
    os.close(theirs)

    def read():
        printed = b""
        try:
            while octets := os.read(ours, 65536):
                printed += octets
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(ours)
        return printed.decode()

    printed = await asyncio.to_thread(read)
    assert await running.wait() == 0
    return printed


async def test_terminal(start):
    """On a terminal a pull is a bar with bytes, speed and time left, and a load counts its time; neither stays."""
    ollama = await start(pull_rate=GB, speed=5.0, load_seconds=2.0)
    printed = await on_terminal(ollama.url, "huge:70b")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed)
    assert re.search(r"pulling huge:70b [━╸╺ ]+ \d\.\d/4\.0 GB \d\.\d GB/s 00:0\d", plain)
    assert "pulling manifest" in plain or "verifying sha256 digest" in plain or "/? bytes" in plain
    assert re.search(r"loading huge:70b \S 0:00:00", plain)
    assert "\x1b[32m  pass  huge:70b" in printed
    assert "warming" not in plain
    left = [line for line in plain.replace("\r", "\n").splitlines() if " %" in line]
    assert left == []
    assert "\x1b[2K" in printed  # bars are wiped


async def test_terminal_without_colour(start):
    """With NO_COLOR the bars have no colours; a terminal that can't be steered gets lines."""
    ollama = await start(pull_rate=10 * GB)
    printed = await on_terminal(ollama.url, "huge:70b", NO_COLOR="1")
    assert "━" in printed
    assert not re.search(r"\x1b\[[0-9;]*3\dm", printed)
    printed = await on_terminal(ollama.url, "tiny", TERM="dumb")
    assert "tiny:latest: loading\r\n" in printed


def test_words_of_a_wish():
    """The arguments that a job is given say all of the wish again, and the settings that were given with it."""
    args = argparse.Namespace(models=["Tiny", "b", "tiny"], keep_alive="-1", wait=None)
    words = warm.Wish.of(args).words({"upstream": "http://127.0.0.1:5", "config": "/c"})
    assert words == [
        "Tiny:latest", "b:latest", "--keep-alive=-1", "--wait=10m", "--upstream=http://127.0.0.1:5", "--config=/c",
    ]  # fmt: skip
