"""The house keeps its order: each room in one place, and the doors between them open one way."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import aiohttp
import aiohttp.web

ROOT = Path(__file__).parent.parent

# Callers first: a module imports only from those after it. `ops` is one floor, without circles.
ORDER = (
    "__main__",
    "cli",
    "commands",
    "ops",
    "console",
    "listener",
    "clients",
    "gateway",
    "relay",
    "awake",
    "serve_port",
    "binding",
    "complaints",
    "whois",
    "concerns",
    "tailscale",
    "serve_rules",
    "interfaces",
    "localapi",
    "descriptors",
    "settings",
    "config_file",
    "addresses",
    "kinds",
    "pool",
    "connection",
    "client_socket",
    "requests",
    "life",
    "deadlines",
    "downstream",
    "upload",
    "upstream",
    "upstream_states",
    "sockets",
    "patience",
    "known",
    "streams",
    "model_scan",
    "edges",
    "chunks",
    "forwarding",
    "by_serve",
    "audit",
    "exchange",
    "replies",
    "gate",
    "via",
    "diagnostics",
    "logfile",
    "output",
    "stdio",
    "refusals",
    "origins",
    "peers",
    "failures",
    "advice",
    "routes",
    "heads",
    "__init__",
)

# The one place for aiohttp's names.
AIOHTTP_INSIDE = {"downstream"}

# What is longer has two reasons to change, or hides a step.
MODULE_LINES = 350
FUNCTION_LINES = 60

MODULES = {
    ".".join(path.relative_to(ROOT / "proxy").with_suffix("").parts): path
    for path in sorted((ROOT / "proxy").rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def floor(name):
    """Return where in ORDER a module is."""
    return ORDER.index(name.partition(".")[0])


class Imports(ast.NodeVisitor):
    """Every (module, name) that is imported, inside functions and for type checking too."""

    def __init__(self, tree, *, for_types=True):
        self.found = []
        self.for_types = for_types
        self.visit(tree)

    def visit_If(self, node):
        if self.for_types or not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found += [(alias.name, None) for alias in node.names]

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute"
        self.found += [(node.module, alias.name) for alias in node.names]


def of_ours(name):
    """Return the modules of ours that a module imports, without `proxy.`."""
    ours = set()
    # The commands and what prints for them still name each other for type checking.
    for_types = not name.startswith(("ops.", "console"))
    for module, imported in Imports(TREES[name], for_types=for_types).found:
        below = module.removeprefix("proxy").removeprefix(".")
        if module.partition(".")[0] != "proxy":
            continue
        deeper = f"{below}.{imported}".removeprefix(".")
        ours.add(deeper if deeper in MODULES else below or "__init__")
    return ours


def test_every_module_has_its_place():
    """A new module is put into the order before it is used."""
    assert {name.partition(".")[0] for name in MODULES} - {*ORDER} == set()


def test_imports_point_down():
    """A room knows only those below it; what flows up is a value or a callback."""
    upwards = {
        (name, other)
        for name in MODULES
        for other in of_ours(name)
        if floor(other) < floor(name) or (floor(other) == floor(name) and not name.startswith("ops."))
    }
    assert upwards == set()


def test_ops_have_no_circle():
    """The modules of `ops` can be sorted so that each imports only from those after it."""
    left = {name: {other for other in of_ours(name) if other in MODULES} for name in MODULES if name.startswith("ops.")}
    while left:
        free = [name for name, others in left.items() if not others & left.keys() - {name}]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_no_module_without_a_noun():
    """A function lives with the noun it is about; there is no drawer for the rest."""
    drawers = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
    assert [name for name in MODULES if drawers & {*name.split(".")}] == []


def test_aiohttp_is_used_as_documented():
    """Only the client's connection and its parser use names that aiohttp doesn't promise."""
    promised = {"aiohttp": {*aiohttp.__all__, "web", None}, "aiohttp.web": {*aiohttp.web.__all__, None}}
    used = {
        (name, module, imported)
        for name in MODULES.keys() - AIOHTTP_INSIDE
        for module, imported in Imports(TREES[name]).found
        if module.partition(".")[0] == "aiohttp"
    }
    assert [each for each in used if each[2] not in promised.get(each[1], ())] == []


def test_modules_are_short():
    """A module is read in one sitting."""
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > MODULE_LINES} == {}


def test_functions_are_short():
    """A function is seen on one screen."""
    nodes = [(name, node) for name, tree in TREES.items() for node in ast.walk(tree)]
    functions = [(name, node) for name, node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [(name, node.name) for name, node in functions if node.end_lineno - node.lineno >= FUNCTION_LINES] == []


def test_modules_say_what_they_are_for():
    """The first lines of a module promise something."""
    assert [name for name, tree in TREES.items() if tree.body and not ast.get_docstring(tree)] == []


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
    """The wheel has the plist templates and the lock file, and the licence that its metadata names exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    forced = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert forced == {"launchd": "proxy/launchd", "requirements.lock": "proxy/requirements.lock"}
    assert all((ROOT / name).exists() for name in forced)
    for name in (project["project"]["readme"], *project["project"]["license-files"]):
        assert (ROOT / name).is_file()
