"""The house keeps its order: each room in one place, and the doors between them open one way."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import aiohttp
import aiohttp.web

ROOT = Path(__file__).parent.parent

# Callers first: a module imports only from its own folder and from those after it.
ORDER = (
    "command_line",
    "dashboard",
    "dashboard.index",
    "simulated_ollama",
    "simulated_ollama.go",
    "manage.demo",
    "manage.connect",
    "manage.logs",
    "manage.top",
    "manage.warm",
    "manage.verify",
    "manage",
    "manage.install",
    "manage.findings",
    "manage.facts",
    "manage.machine",
    "manage.ollama",
    "manage.verify.questions",
    "manage.verify.asking",
    "terminal",
    "serving",
    "exchange",
    "exchange.client",
    "exchange.waiting",
    "exchange.upstream",
    "tailnet",
    "settings",
    "logs",
    "exchange.message",
    "policy",
    "reading",
    "event_loop",
)

# What launchd runs needs these; the others are for owners and tests.
SERVING = ORDER[ORDER.index("serving") :]

# The one place for aiohttp's names.
AIOHTTP_INSIDE = {"exchange.client.downstream"}

# A folder with more Python files than this becomes two folders, in `proxy/`, `tests/` and `bench/`.
FOLDER_FILES = 15

# What is longer has two reasons to change, or hides a step.
MODULE_LINES = 350
FUNCTION_LINES = 60

MODULES = {
    ".".join(path.relative_to(ROOT / "proxy").with_suffix("").parts): path
    for path in sorted((ROOT / "proxy").rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
FOLDERS = {name.rpartition(".")[0] for name in MODULES} - {""}


class Imports(ast.NodeVisitor):
    """Every (module, name) that is imported, inside functions and for type checking too."""

    def __init__(self, tree):
        self.found = []
        self.visit(tree)

    def visit_Import(self, node):
        self.found += [(alias.name, None) for alias in node.names]

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute"
        self.found += [(node.module, alias.name) for alias in node.names]


def of_ours(name):
    """Return the modules of this package that a module imports, without `proxy.`."""
    ours = set()
    for module, imported in Imports(TREES[name]).found:
        if module.partition(".")[0] != "proxy":
            continue
        below = module.removeprefix("proxy").removeprefix(".")
        deeper = f"{below}.{imported}".removeprefix(".")
        candidates = (deeper, f"{deeper}.__init__", below, f"{below}.__init__".removeprefix("."))
        ours.add(next(each for each in candidates if each in MODULES))
    return ours


IMPORTS = {name: of_ours(name) for name in MODULES}


def floor(name):
    """Return where the folder of a module is in ORDER. `proxy/` itself has the top one and the bottom one."""
    if name in ("__main__", "__init__"):
        return {"__main__": -1, "__init__": len(ORDER)}[name]
    return ORDER.index(name.rpartition(".")[0])


def test_every_folder_has_its_place():
    """A new folder is put into the order before it is used, and `proxy/` itself holds no modules."""
    assert sorted(ORDER) == sorted(FOLDERS)
    assert {name for name in MODULES if "." not in name} == {"__main__", "__init__"}


def test_every_folder_says_what_it_is_for():
    """The first line of each folder's `__init__.py` says in one line what is in it."""
    purposes = {name: (ast.get_docstring(TREES[f"{name}.__init__"]) or "").partition("\n")[0] for name in ORDER}
    assert {name: purpose for name, purpose in purposes.items() if not purpose.endswith(".")} == {}


def test_folders_are_small():
    """What is in a folder is seen at one glance."""
    folders = [path.parent for tree in ("proxy", "tests", "bench") for path in (ROOT / tree).rglob("*.py")]
    counts = Counter(str(folder.relative_to(ROOT)) for folder in folders)
    assert {name: count for name, count in counts.items() if count > FOLDER_FILES} == {}


def test_imports_point_down():
    """A folder knows only those below it, for type checking too; what flows up is a value or a callback."""
    upwards = {(name, other) for name in MODULES for other in IMPORTS[name] if floor(other) < floor(name)}
    assert upwards == set()


def test_there_is_no_circle():
    """All modules can be sorted so that each imports only from those after it, for type checking too."""
    left = dict(IMPORTS)
    while left:
        free = [name for name, others in left.items() if not others & left.keys() - {name}]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_serving_knows_no_commands():
    """What serves imports nothing of the owner's commands, nor of their output, nor of the simulated Ollama."""
    serving = {name for name in MODULES if name.rpartition(".")[0] in SERVING}
    assert {other for name in serving for other in IMPORTS[name]} <= {*serving, "__init__"}


def test_only_a_process_is_simulated():
    """The simulated Ollama is started as a process of its own: nothing that ships imports it."""
    importing = {name for name, others in IMPORTS.items() for other in others if other.startswith("simulated_ollama.")}
    assert {name for name in importing if not name.startswith("simulated_ollama.")} == set()


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
    """The program that serves keeps the operator's commands, and the libraries that only they use, out of memory."""
    loaded = loaded_by("import proxy.serving.listener")
    assert "proxy.exchange.gateway" in loaded
    kept_out = (
        "proxy.manage",
        "proxy.dashboard",
        "proxy.terminal",
        "proxy.command_line",
        "proxy.simulated_ollama",
        "psutil",
        "rich",
    )
    assert [name for name in loaded if name.startswith(kept_out)] == []


def test_table_of_routes_loads_nothing():
    """The pure rooms can be read and tested without a server: they load no aiohttp and no event loop."""
    loaded = loaded_by("import proxy.policy.gate, proxy.policy.replies, proxy.exchange.message.forwarding")
    assert not {"aiohttp", "asyncio", "socket", "uvloop", "structlog"} & loaded


def test_wheel_carries_what_it_needs():
    """The wheel has the plist templates and the lock file, and the licence that its metadata names exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    forced = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert forced == {"launchd": "proxy/launchd", "requirements.lock": "proxy/requirements.lock"}
    assert all((ROOT / name).exists() for name in forced)
    for name in (project["project"]["readme"], *project["project"]["license-files"]):
        assert (ROOT / name).is_file()
