"""The house keeps its order: each room in one place, and the doors between them open one way."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import aiohttp
import aiohttp.web
import pytest

ROOT = Path(__file__).parent.parent

# Callers first: a module imports only from those after it. `ops` is one floor, without circles.
ORDER = (
    *(
        "__main__",
        "cli",
        "commands",
        "ops",
        "console",
        "listener",
        "awake",
        "binding",
        "whois",
        "tailscale",
        "interfaces",
        "localapi",
        "descriptors",
    ),
    *(
        "settings",
        "config_file",
        "addresses",
        "kinds",
        "gateway",
        "clients",
        "downstream",
        "deadlines",
        "requests",
        "relay",
    ),
    *(
        "upload",
        "pool",
        "upstream",
        "sockets",
        "patience",
        "streams",
        "model_scan",
        "edges",
        "forwarding",
        "gate",
        "via",
    ),
    *("audit", "diagnostics"),
    *(
        "logfile",
        "output",
        "stdio",
        "replies",
        "refusals",
        "origins",
        "peers",
        "failures",
        "advice",
        "routes",
        "exchange",
        "__init__",
    ),
)

# The one place for aiohttp's names.
AIOHTTP_INSIDE = {"requests"}

# What is longer has two reasons to change, or hides a step.
MODULE_LINES = 450
FUNCTION_LINES = 60

MODULES = {
    ".".join(path.relative_to(ROOT / "proxy").with_suffix("").parts): path
    for path in sorted((ROOT / "proxy").rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}

each_module = pytest.mark.parametrize("name", MODULES)


def floor(name):
    """Return where in ORDER a module is."""
    return ORDER.index(name.partition(".")[0])


class Imports(ast.NodeVisitor):
    """Every (module, name) that is imported at run time, inside functions too; those for type checking are not."""

    def __init__(self, tree):
        self.found = []
        self.visit(tree)

    def visit_If(self, node):
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found += [(alias.name, None) for alias in node.names]

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute"
        self.found += [(node.module, alias.name) for alias in node.names]


def of_ours(name):
    """Return the modules of ours that a module imports, without `proxy.`."""
    ours = set()
    for module, imported in Imports(TREES[name]).found:
        below = module.removeprefix("proxy").removeprefix(".")
        if module.partition(".")[0] != "proxy":
            continue
        deeper = f"{below}.{imported}".removeprefix(".")
        ours.add(deeper if deeper in MODULES else below or "__init__")
    return ours


@each_module
def test_every_module_has_its_place(name):
    """A new module is put into the order before it is used."""
    assert name.partition(".")[0] in ORDER


@each_module
def test_imports_point_down(name):
    """A room knows only those below it; what flows up is a value or a callback."""
    upwards = {
        other
        for other in of_ours(name)
        if floor(other) < floor(name) or (floor(other) == floor(name) and not name.startswith("ops."))
    }
    assert not upwards


def test_ops_have_no_circle():
    """The modules of `ops` can be sorted so that each imports only from those after it."""
    left = {name: {other for other in of_ours(name) if other in MODULES} for name in MODULES if name.startswith("ops.")}
    while left:
        free = [name for name, others in left.items() if not others & left.keys() - {name}]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


@each_module
def test_no_module_without_a_noun(name):
    """A function lives with the noun it is about; there is no drawer for the rest."""
    assert not set(name.split(".")) & {"utils", "util", "helpers", "helper", "common", "base", "misc"}


@each_module
def test_aiohttp_is_used_as_documented(name):
    """Only the client's connection and its parser use names that aiohttp doesn't promise."""
    if name in AIOHTTP_INSIDE:
        return
    promised = {"aiohttp": {*aiohttp.__all__, "web", None}, "aiohttp.web": {*aiohttp.web.__all__, None}}
    for module, imported in Imports(TREES[name]).found:
        if module.partition(".")[0] == "aiohttp":
            assert imported in promised.get(module, ())


@each_module
def test_modules_are_short(name):
    """A module is read in one sitting."""
    assert len(MODULES[name].read_text().splitlines()) <= MODULE_LINES


@each_module
def test_functions_are_short(name):
    """A function is seen on one screen."""
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [node.name for node in functions if node.end_lineno - node.lineno >= FUNCTION_LINES] == []


@each_module
def test_modules_say_what_they_are_for(name):
    """The first lines of a module promise something."""
    assert ast.get_docstring(TREES[name]) or not TREES[name].body


def loaded_by(code):
    """Return the modules that `code` loads in a fresh interpreter."""
    run = [sys.executable, "-c", f"import sys; before = {{*sys.modules}}; {code}; print(*{{*sys.modules}} - before)"]
    return set(subprocess.run(run, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split())


def test_serving_loads_no_commands():
    """The program that serves keeps the operator's commands, and rich, out of memory."""
    loaded = loaded_by("import proxy.listener")
    assert "proxy.gateway" in loaded
    assert not {name for name in loaded if name.startswith("proxy.ops")} | {"proxy.cli", "rich"} & loaded


def test_table_of_routes_loads_nothing():
    """The pure rooms can be read and tested without a server: they load no aiohttp and no event loop."""
    loaded = loaded_by("import proxy.gate, proxy.replies, proxy.forwarding")
    assert not {"aiohttp", "asyncio", "socket", "uvloop", "structlog"} & loaded


def test_wheel_carries_what_it_needs():
    """The wheel has the plist templates, and the licence that its metadata names exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    forced = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert forced == {"launchd": "proxy/launchd"}
    assert (ROOT / "launchd").is_dir()
    for name in (project["project"]["readme"], *project["project"]["license-files"]):
        assert (ROOT / name).is_file()
