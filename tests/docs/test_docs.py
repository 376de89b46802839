"""The pages match the program: everything that exists has an entry, and everything that a page names exists.

Settings have a file of their own (`test_docs_settings.py`), and so have the keys and endings of the access log
(`test_audit.py`).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from proxy.command_line import cli, commands
from proxy.exchange.client.client_socket import Mode
from proxy.exchange.message.exchange import MOVES
from proxy.exchange.upstream.upstream import TRANSITIONS
from proxy.policy.refusals import Reason
from proxy.policy.routes import ROUTES
from proxy.serving import listener
from proxy.settings.settings import OPTIONS, load, variable
from proxy.terminal.result import Exit
from tests.policy.test_refusals import CATALOGUE
from tests.test_layout import ORDER, SERVING

ROOT = Path(__file__).parent.parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in (".", "docs", "launchd", "bench", "proxy", "tests")
    for path in sorted((ROOT / folder).glob("*.md" if folder == "." else "**/*.md"))
}
README = PAGES["README.md"]
CONTRACT = PAGES["docs/api-contract.md"]
COMMANDS_PAGE = PAGES["docs/commands.md"]
CONTRIBUTING = PAGES["CONTRIBUTING.md"]
ARCHITECTURE = PAGES["docs/architecture.md"]
DOCUMENTATION = {name: text for name, text in PAGES.items() if name.startswith("docs/") or "/" not in name}
MAKEFILE = (ROOT / "Makefile").read_text()
SOURCES = {
    ".".join(path.relative_to(ROOT / "proxy").with_suffix("").parts): path
    for path in sorted((ROOT / "proxy").rglob("*.py"))
    if path.stem != "__init__"
}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROXY = re.compile(r"(?:\S*/)?python -m proxy\b(?!\.)(.*)")


def section(page, heading):
    """Return what stands below a heading of a page, up to the next of the same or a higher level."""
    level = heading.partition(" ")[0]
    assert f"{heading}\n" in page
    return re.split(rf"^#{{1,{len(level)}}} ", page.partition(f"{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def table(text):
    """Return the rows of the tables in a text, as lists of cells; what heads a table is left out."""
    found = re.findall(r"^\|(?: ?-+ ?\|)+\n((?:\|.*\n)+)", f"{text}\n", re.MULTILINE)
    return [[cell.strip() for cell in row[1:-1].split("|")] for rows in found for row in rows.splitlines()]


def marked(text):
    """Return what a text has in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def blocks(page, *languages):
    """Return the code blocks of a page that are in one of `languages`."""
    return [body for language, body in _FENCE.findall(page) if language in languages]


def shown(page):
    """Return each command that a page shows, in a block or in backticks: no comments, and none that shows a mistake."""
    lines = [line for body in blocks(page, "sh") for line in body.splitlines()]
    lines += [body.partition("\n")[0].removeprefix("$ ") for body in blocks(page, "console") if "error:" not in body]
    return [*(line.partition("   #")[0].strip() for line in lines), *marked(_FENCE.sub("", page))]


COMMANDS = sorted({(name, command) for name, page in DOCUMENTATION.items() for command in shown(page)})


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Return a function that runs the command where nothing is set, and never serves: exit code, what is printed."""
    for name in [name for name in os.environ if name.startswith(("PROXY_", "XDG_", "FORCE_COLOR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(listener, "serve", lambda *_: 0)

    def call(*words):
        try:
            code = cli.main(words)
        except SystemExit as stopped:
            code = stopped.code
        return code, "".join(capsys.readouterr())

    return call


# --- what there is has an entry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "heading", "expected"),
    [
        pytest.param("README.md", "## What is let through", [r for r in ROUTES if not r.opt_in], id="readme"),
        pytest.param("docs/api-contract.md", "## Routes", ROUTES, id="contract"),
    ],
)
def test_every_route_is_listed(name, heading, expected):
    """README lists the rows that are always open, api-contract all of them, in the order of the table."""
    cells = [marked(row[0]) for row in table(section(PAGES[name], heading))]
    listed = [each.replace("{model}", "*") for row in cells for each in row if re.match(r"[A-Z]+ /", each)]
    assert listed == [route.name for route in expected]


def test_every_refusal_is_listed():
    """api-contract has a row for each reason, in the order in which they are judged, with every status it may have."""
    reported = {
        marked(row[0])[0]: row[1] for row in table(section(CONTRACT, "## Refusals")) if re.match(r"`[a-z_]+`$", row[0])
    }
    assert list(reported) == list(Reason)
    for refusal in CATALOGUE:
        assert (str(refusal.status) if refusal.status else "none") in reported[refusal.reason]


def test_every_command_and_flag_is_listed(run):
    """Each command, and each flag that is not a setting, is on the page of commands or the page of setup."""
    _, text = run("--help")
    commands = re.findall(r"^    ([a-z]+) ", text.partition("\ncommands:\n")[2], re.MULTILINE)
    assert commands
    flags = set(re.findall(r"--[a-z-]+", text.partition("\nsettings:\n")[0]))
    for command in commands:
        flags |= set(re.findall(r"--[a-z-]+", run(command, "--help")[1].partition("\nsettings:\n")[0]))
    reported = " ".join([*shown(COMMANDS_PAGE), *shown(PAGES["docs/setup.md"])])
    assert [
        each for each in sorted({*commands, *flags}) if not re.search(rf"(?<![\w-]){each}(?![\w-])", reported)
    ] == []


def test_every_exit_code_is_listed():
    """The page of commands has a row for each exit code."""
    assert [row[0] for row in table(section(COMMANDS_PAGE, "## Exit codes"))] == [str(int(code)) for code in Exit]


def test_every_signal_is_listed():
    """The page of commands has a row for each signal that the listener handles."""
    reported = re.findall(r"SIG[A-Z]+", " ".join(row[0] for row in table(section(COMMANDS_PAGE, "## Signals"))))
    assert set(reported) == set(re.findall(r"signal\.(SIG[A-Z]+)", inspect.getsource(listener)))


def test_every_make_target_is_listed():
    """CONTRIBUTING has a row for each target, and bare `make` for the target that lists them."""
    targets = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split()
    reported = [marked(row[0])[0] for row in table(section(CONTRIBUTING, "## Make targets"))]
    assert set(reported) == {f"make {target}" for target in targets} - {"make help"} | {"make"}


def test_every_page_is_in_the_index():
    """docs/README.md lists every page next to it."""
    listed = set(re.findall(r"\(([a-z-]+\.md)\)", PAGES["docs/README.md"]))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


# --- what a page names there is ---------------------------------------------------------------------------------------


def anchors(page):
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_point_somewhere(name):
    """A relative link names a file that exists, and a heading in it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", PAGES[name])):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / name if not path else (ROOT / name).parent / path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize(("name", "command"), [each for each in COMMANDS if _PROXY.search(each[1])])
def test_shown_commands_exist(name, command, capsys):
    """A `python -m proxy …` that a page shows has a command, flags and arguments that there are."""
    words = shlex.split(_PROXY.search(command)[1].replace("…", ""))
    _, rest = commands.options().parse_known_args(words)
    code = 0
    try:
        commands.commands(commands.options())[0].parse_args(rest)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "command"), [each for each in COMMANDS if re.search(r"(?:^|[0-9'] )make(?: |$)", each[1])]
)
def test_shown_targets_exist(name, command):
    """A `make …` that a page shows has a target and variables that the Makefile knows."""
    words = shlex.split(command.partition("make")[2].replace("…", ""))
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"\$\(([A-Z_]+)\)", MAKEFILE)) - set(
        re.findall(r"^([A-Z_]+) :?= ", MAKEFILE, re.MULTILINE)
    )
    for word in words:
        assert word in targets or word.partition("=")[0] in variables, word


@pytest.mark.parametrize("name", DOCUMENTATION)
def test_named_variables_exist(name):
    """A `PROXY_…` that a page names is an option's."""
    named = set(re.findall(r"PROXY_[A-Z]+(?:_[A-Z]+)*", DOCUMENTATION[name]))
    assert named <= {variable(option) for option in OPTIONS}


def test_shown_files_are_settings(tmp_path):
    """A TOML file of settings that a page shows is accepted."""
    files = [
        body for page in DOCUMENTATION.values() for body in blocks(page, "toml") if OPTIONS.keys() & tomllib.loads(body)
    ]
    assert files
    for number, body in enumerate(files):
        path = tmp_path / f"{number}.toml"
        path.write_text(body)
        assert load({"config": str(path)}, {"HOME": str(tmp_path)}).warnings == ()


# Lines of output that differ with the machine and the time.
_VARYING = ("Date:", "x-request-id:", "address:", "upstream", "hint: ollama", "…")


@pytest.mark.parametrize(
    "block",
    [block for block in blocks(COMMANDS_PAGE, "console") if "-m proxy" in block.partition("\n")[0]],
)
def test_shown_output_is_printed(block, run, monkeypatch):
    """The output that the page of commands shows is what the program prints, in the same order; spacing may differ."""
    monkeypatch.setenv("PATH", "/nowhere")  # without lsof and other tools, where the machine has them
    command, _, output = block.partition("\n")
    _, text = run(*shlex.split(_PROXY.search(command)[1]))
    printed = iter([" ".join(line.split()) for line in text.splitlines()])
    wanted = [" ".join(line.split()) for line in output.splitlines()]
    for line in wanted:
        assert any(word in line for word in _VARYING) or line in printed, line


def test_shown_refusal_is_the_answer(run):
    """The refused call that the README shows gets that answer."""
    (block,) = [block for block in blocks(README, "console") if block.startswith("$ curl")]
    path = re.search(r"http://127\.0\.0\.1:\d+(/\S+)", block)[1]
    _, text = run("explain", "POST", path)
    answer = section(text.replace("the client gets\n", "# the client gets\n"), "# the client gets")
    printed = [line.strip() for line in answer.strip().splitlines()]
    for line, reported in zip(block.strip().splitlines()[1:], printed, strict=True):
        assert line == reported or line.startswith(_VARYING)


# --- architecture -----------------------------------------------------------------------------------------------------


def test_architecture_has_every_folder():
    """The list of folders has each folder in the order of the imports, what it is for, and modules that are in it."""
    rows = table(section(ARCHITECTURE, "## The folders"))
    assert len(rows) <= 32
    assert [f"{name.replace('.', '/')}/" for name in ORDER] == [marked(row[0])[0] for row in rows]
    for name, (_, purpose, modules) in zip(ORDER, rows, strict=True):
        folder = ROOT / "proxy" / name.replace(".", "/")
        reported = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert purpose == reported.partition("\n")[0]
        assert [each for each in marked(modules) if not (folder / each).is_file()] == []


def test_architecture_has_the_state_tables():
    """The tables of states are the program's."""
    for heading, program in (("### A connection to Ollama", TRANSITIONS), ("### An exchange", MOVES)):
        rows = [(marked(state)[0], marked(moves)) for state, moves in table(section(ARCHITECTURE, heading))]
        moves = {state: dict(zip(words[::2], words[1::2], strict=True)) for state, words in rows}
        assert moves == {state: ways for state, ways in program.items() if ways}
    modes = [marked(row[0])[0] for row in table(section(ARCHITECTURE, "### A connection of a client"))]
    assert modes == [mode.value for mode in Mode]


_UNITS = {"": 1, "s": 1, "KiB": 2**10, "MiB": 2**20}


def test_architecture_has_every_limit():
    """Each public number of a room that serves stands in the list of limits, with its value."""
    reported = {}
    for module, constants in table(section(ARCHITECTURE, "## Deadlines and limits")):
        for name, value in re.findall(r"`(\w+)` ([^`]+)", constants):
            found = tuple(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+) ?([A-Za-z]*)", value))
            reported[f"{marked(module)[0]}: {name}"] = found
    limits = {}
    for room, path in SOURCES.items():
        if room.rpartition(".")[0] not in SERVING:
            continue
        for constant in re.findall(r"^([A-Z][A-Z_]*) = ", path.read_text(), re.MULTILINE):
            value = getattr(importlib.import_module(f"proxy.{room}"), constant)
            numbers = value if isinstance(value, tuple) else (value,)
            if all(type(number) in (int, float) for number in numbers):
                limits[f"{path.relative_to(ROOT / 'proxy')}: {constant}"] = tuple(map(float, numbers))
    assert reported == limits


def test_architecture_names_what_there_is():
    """A `module.name` or `Class.name` on the page is one of the program's, and a test file that it names exists."""
    modules = {name: importlib.import_module(f"proxy.{name}") for name in SOURCES if name != "__main__"}
    holders: dict[str, dict] = {}
    for name, module in modules.items():
        holders[name.rpartition(".")[2]] = {**holders.get(name.rpartition(".")[2], {}), **vars(module)}
    for module in modules.values():
        holders |= {
            name: {**holders.get(name, {}), **vars(each), **dict.fromkeys(getattr(each, "__annotations__", ()))}
            for name, each in vars(module).items()
            if inspect.isclass(each) and each.__module__ == module.__name__
        }
    pairs = {tuple(text.split(".")) for text in marked(ARCHITECTURE) if re.fullmatch(r"\w+\.\w+", text)}
    assert len(pairs) > 50
    unknown = [pair for pair in pairs if pair[1] != "py" and pair[1] not in holders.get(pair[0], ())]
    assert unknown == []
    assert [name for name in marked(ARCHITECTURE) if name.startswith("tests/") and not (ROOT / name).exists()] == []
