"""The command: what it prints where, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy import __version__
from proxy.command_line import cli
from proxy.serving import listener
from proxy.settings.settings import SPELLED, flag
from proxy.terminal.printer import Printer
from proxy.terminal.result import CommandError
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parent.parent.parent
LOOPBACK = ["--listen", "127.0.0.1", "--port", "24817"]


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Give every test an environment that sets no option, and a home folder with no file."""
    for name in [
        name for name in os.environ if name.startswith(("PROXY_", "XDG_")) or name in ("NO_COLOR", "FORCE_COLOR")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def run(capsys):
    """Return a function that runs the command in this process: exit code, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        try:
            code = cli.main(words)
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def served(monkeypatch):
    """Return what the listener is asked to serve, instead of serving it."""
    asked = []

    def serve(loaded, reload):
        asked.append((loaded, reload))
        return 0

    monkeypatch.setattr(listener, "serve", serve)
    return asked


def process(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command as its users do."""
    run = [sys.executable, "-m", "proxy", *words]
    return subprocess.run(
        run, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


# --- serving ----------------------------------------------------------------------------------------------------------


def test_no_command_serves(run, served, monkeypatch):
    """Without a command the settings are served; a reload reads all sources again, with the same flags."""
    assert run(*LOOPBACK, "--max-body", "5MiB") == (0, "", "")
    loaded, reload = served[0]
    assert (loaded.settings.port, loaded.settings.max_body) == (24817, 5 * 2**20)
    monkeypatch.setenv("PROXY_LOG_LEVEL", "debug")
    monkeypatch.setenv("PROXY_PORT", "5")
    assert (reload().settings.log_level, reload().settings.port) == ("debug", 24817)


def test_exit_code_is_the_listeners(run, monkeypatch):
    """How serving ended is how the command ends."""
    monkeypatch.setattr(listener, "serve", lambda _loaded, _reload: 3)
    assert run(*LOOPBACK)[0] == 3


def test_nothing_set_serves_the_tailnet(run, served):
    """With nothing set it is this machine's addresses in its tailnet that are served, and no others."""
    assert run() == (0, "", "")
    (loaded, _) = served[0]
    assert (loaded.settings.listen, loaded.settings.port) == (("tailscale",), 11434)


def test_serving_loads_neither_rich_nor_ops():
    """What only commands need is not in the memory of the program that serves."""
    code = (
        "import sys; from proxy.command_line import cli; from proxy.serving import listener;"
        " listener.serve = lambda *_: print(*sys.modules) or 0;"
        f"cli.main({LOOPBACK!r})"
    )
    run = [sys.executable, "-c", code]
    loaded = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "proxy.exchange.gateway" in loaded
    assert not [name for name in loaded if name.startswith(("rich", "proxy.manage", "proxy.simulated_ollama"))]


def test_installed_it_names_its_command(tmp_path):
    """Away from a checkout, hints name the command that is installed."""
    shutil.copytree(ROOT / "proxy", tmp_path / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    run = [sys.executable, "-P", "-m", "proxy", "--port", "0"]
    done = subprocess.run(
        run, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "hint: remote-ollama-proxy --help"


# --- usage ------------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_printed(run):
    """Each mistake has a line with option, value and source, unknown flags too, and a hint ends them."""
    code, out, err = run("--max-bdy", "5MiB", "--port=0", "--max-body", "12XB", "--listen", "8.8.8.8", "--zzz")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        'error: --max-bdy = "5MiB" (flag --max-bdy): no such option; did you mean --max-body?',
        'error: --zzz = "" (flag --zzz): no such option',
        'error: port = "0" (flag --port): is out of range: 1 to 65535',
        'error: max_body = "12XB" (flag --max-body): is not a size: bytes, or with a unit as in 64KiB, 64MiB or 1GiB',
        'error: listen = "8.8.8.8" (flag --listen): 8.8.8.8 is a public address; the proxy listens there only with '
        "--allow-any-address",
        "hint: python -m proxy --help",
    ]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        pytest.param(["serve"], "invalid choice: 'serve'", "python -m proxy --help", id="unknown_command"),
        pytest.param(["-x"], "unrecognized arguments: -x", "python -m proxy --help", id="short_flag"),
        pytest.param(["--port"], "argument --port: expected one argument", "python -m proxy --help", id="no_value"),
        pytest.param(["--json"], "--json goes with --check", "python -m proxy --help", id="json_alone"),
        pytest.param(["explain"], "are required: METHOD, TARGET", "python -m proxy explain --help", id="explain_what"),
        pytest.param(["demo", "--port", "5"], "takes no --port", "python -m proxy demo --help", id="demo_settings"),
        pytest.param(
            ["install", "--port", "5"], "install takes no --port", "python -m proxy install --help", id="install"
        ),
        pytest.param(
            ["install", "--dry-rum"], "takes no --dry-rum", "python -m proxy install --help", id="install_flag"
        ),
        pytest.param(
            ["uninstall", "--port", "5"], "takes no --port", "python -m proxy uninstall --help", id="uninstall"
        ),
        pytest.param(["demo", "--kep"], "takes no --kep", "python -m proxy demo --help", id="demo_unknown"),
    ],
)
def test_wrong_usage(run, words, message, hint):
    """Wrong usage is exit 2: one error line, and a hint with a command to run."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    error, *rest = err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert rest == [f"hint: {hint}"]


def test_version(run):
    """`--version` is one line on standard output."""
    assert run("--version") == (0, f"remote-ollama-proxy {__version__}\n", "")


def test_help_names_every_option(run):
    """`--help` shows each option with its range and default, each command, and an example."""
    code, out, _ = run("--help")
    text = " ".join(out.split())
    assert code == 0
    assert [option for option in SPELLED if f" {flag(option)}" not in text] == []
    assert "largest request body; 1KiB to 16GiB (default: 64MiB)" in text
    assert "python -m proxy --listen 127.0.0.1 --port 21500" in text
    for command in ("explain", "demo"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert re.search(rf"examples?:\n  python -m proxy {command} ", out)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--allow", "GET /,GET /api/ps", "explain", "GET", "/api/ps"], id="before"),
        pytest.param(
            ["explain", "--allow", "GET /", "GET", "/api/ps", "--allow", "GET /api/ps"], id="within_and_after"
        ),
    ],
)
def test_settings_stand_anywhere(run, words):
    """Settings may come before and after a command; a list's flag may be given more than once."""
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "opened by allow (flag --allow)" in out


@pytest.mark.parametrize(("words", "value"), [(["--forward-credentials"], True), (["--no-forward-credentials"], False)])
def test_switches(run, served, monkeypatch, words, value):
    """A switch needs no value, and can be turned off over an environment that turns it on."""
    monkeypatch.setenv("PROXY_FORWARD_CREDENTIALS", "true")
    assert run(*LOOPBACK, *words)[0] == 0
    assert served[0][0].settings.forward_credentials is value


# --- check ------------------------------------------------------------------------------------------------------------


def test_check(tmp_path):
    """`--check` shows settings with sources, the allowlist, addresses and findings; valid ones are exit 0."""
    done = process("--check", *LOOPBACK, PROXY_ALLOW="POST /api/chat", PROXY_UPSTREAM="http://127.0.0.1:1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "port 24817 flag --port" in lines
    assert "allow POST /api/chat environment PROXY_ALLOW" in lines
    assert "max_body 64MiB default" in lines
    assert "GET /v1/models/* openai always" in lines
    assert "POST /api/chat native allow (environment PROXY_ALLOW)" in lines
    assert "pass address: 127.0.0.1:24817 would be bound" in lines
    assert "warn Ollama HTTP: http://127.0.0.1:1 does not answer: Connection refused" in lines
    assert "hint: ollama serve" in lines
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_check_as_json(run, monkeypatch):
    """`--json` is one array of findings, each with name, outcome, detail and hint."""
    monkeypatch.setenv("PATH", "/nowhere")  # without lsof and other tools, where the machine has them
    code, out, err = run("--check", "--json", *LOOPBACK, "--upstream", "http://127.0.0.1:1")
    assert (code, err) == (0, "")
    findings = json.loads(out)
    assert all(set(finding) == {"name", "outcome", "detail", "hint"} for finding in findings)
    outcomes = {finding["name"]: finding["outcome"] for finding in findings}
    assert (outcomes["settings"], outcomes["allowlist"], outcomes["Ollama HTTP"]) == ("pass", "pass", "warn")
    assert "port = 24817 (flag --port)" in findings[0]["detail"]


def test_check_of_wrong_settings(run):
    """Wrong settings are exit 2: error lines, or as JSON findings that failed."""
    code, out, err = run("--check", *LOOPBACK, "--max-head", "x")
    assert (code, out) == (2, "")
    assert err.startswith('error: max_head = "x" (flag --max-head): is not a size')
    code, out, err = run("--check", "--json", *LOOPBACK, "--max-head", "x")
    assert (code, err) == (2, "")
    assert [finding["outcome"] for finding in json.loads(out)] == ["fail"]


def test_check_without_c_parser():
    """A proxy that may not be started, for want of aiohttp's C parser, is no valid one."""
    done = process("--check", "--json", *LOOPBACK, AIOHTTP_NO_EXTENSIONS="1", PROXY_UPSTREAM="http://127.0.0.1:1")
    assert done.returncode == 2
    outcomes = {finding["name"]: finding["outcome"] for finding in json.loads(done.stdout)}
    assert outcomes["parser"] == "fail"


def on_terminal(**environ: str) -> bytes:
    """Return what `--check` prints on a terminal."""
    ours, theirs = pty.openpty()
    run = [sys.executable, "-m", "proxy", "--check", *LOOPBACK, "--upstream", "http://127.0.0.1:1"]
    printed = b""
    with subprocess.Popen(run, cwd=ROOT, env=os.environ | {"TERM": "xterm"} | environ, stdout=theirs) as running:
        os.close(theirs)
        try:
            while octets := os.read(ours, 65536):
                printed += octets
        except OSError:  # how Linux says that the other end is closed
            pass
        assert running.wait(PATIENCE) == 0
    os.close(ours)
    return printed


def test_colour_on_a_terminal_only():
    """Findings are coloured on a terminal, unless NO_COLOR is set."""
    assert b"\x1b[33m  warn  Ollama HTTP" in on_terminal()
    assert b"\x1b[3" not in on_terminal(NO_COLOR="1")


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain(run):
    """`explain` shows the request, the rule, what reaches Ollama and the answer; being refused is no failure."""
    code, out, err = run("explain", "POST", "/api/pull")
    assert (code, err) == (0, "")
    assert "refused by this rule\n  path_not_served: `POST /api/pull` is not on this proxy's allowlist" in out
    assert "reaches Ollama\n  nothing\n" in out
    assert "the client gets\n  HTTP/1.1 403 Forbidden\n" in out
    assert "\n\n  {" in out


def test_explain_needs_no_address(run):
    """A request can be explained where nothing could be served yet: with nothing set."""
    code, out, _ = run("explain", "GET", "/api/tags", "--host", "mac", "--origin", "http://localhost:5")
    assert code == 0
    assert "  Host: mac\n" in out
    assert "  Access-Control-Allow-Origin: http://localhost:5\n" in out


def test_explain_as_json(run):
    """`explain --json` is one object."""
    code, out, _ = run("explain", "GET", "/api/tags", "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"request", "verdict", "rule", "forwarded", "answer", "asker"}
    assert found["verdict"] == "served"


def test_explain_with_wrong_settings(run):
    """Invalid settings are reported instead of an explanation."""
    code, out, err = run("explain", "GET", "/", "--allow", "POST /api/pull")
    assert (code, out) == (2, "")
    assert err.startswith('error: allow = "POST /api/pull" (flag --allow): no setting opens')


def test_terminal_is_not_steered(run):
    """What a target or a value holds is printed escaped."""
    _, out, _ = run("explain", "GET", "/\x1b[31m")
    assert r"/\x1b[31m" in out
    _, _, err = run("\x1b[31m")
    assert "\x1b" not in out + err


# --- install ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "darwin", reason="what this Mac has would be shown")
def test_install_dry_run_elsewhere(tmp_path):
    """Without macOS `install --dry-run` shows every file and command, and says what it can't see."""
    done = process("install", "--dry-run", HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "can't be checked" in done.stdout
    for line in ("$ launchctl bootstrap gui/", "| <key>KeepAlive</key>", "| # port = 11434", "--require-hashes"):
        assert line in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="it would install")
@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_install_needs_macos(command, tmp_path):
    """Without macOS `install` and `uninstall` say so, with a command that works here; exit code 3."""
    done = process(command, "--yes", HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {command} needs macOS, and this is ")
    assert hint.startswith("hint: python -m proxy ")


def test_asking(monkeypatch, capsys):
    """A question is answered at the terminal, and without a terminal the usage is wrong."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(CommandError) as stopped:
        Printer().agree("Go ahead?", "python -m proxy install --yes")
    assert (stopped.value.result.code, stopped.value.hint) == (2, "python -m proxy install --yes")
    for answer, agreed in {"y\n": True, "YES\n": True, "\n": False, "n\n": False, "": False}.items():
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        assert Printer().agree("Go ahead?", "") is agreed
    assert capsys.readouterr().err.startswith("Go ahead? [y/N] ")
