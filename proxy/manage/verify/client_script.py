"""The questions as one file that needs only Python: `terminal.output`, `asking` and `questions`, joined.

Imports among them are dropped, and those of the standard library are at the top. Nothing else is changed, so that the
person who is asked to run the file can read what it does.
"""

from __future__ import annotations

import ast
import pprint
from dataclasses import fields
from importlib import resources
from typing import TYPE_CHECKING

from proxy import __version__, terminal
from proxy.manage.verify import asking, questions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.manage.verify.asking.session import Promised

MODULES = (
    "output",
    "silence",
    "secure",
    "asking",
    "events",
    "pictures",
    "session",
    "models",
    "refused",
    "connection",
    "way",
    "openai",
    "gaps",
    "anthropic",
    "table",
    "guards",
    "leaving",
    "rules",
    "reach",
    "report",
    "script",
)
"""`terminal.output` and the modules of `asking` and `questions`, each after the ones that it imports."""

_HEAD = '''#!/usr/bin/env python3
"""Asks a remote-ollama-proxy, from a client of it, whether it does what it promises.

Printed by `remote-ollama-proxy verify --client-script`, version {version}. It needs Python 3.9 or newer, and nothing
else. Run it on any device that may use the proxy:

    python3 check.py {url}
    python3 check.py --help

It asks that one address, and changes nothing there. Exit code 0: every promise is kept; 1: one isn't; 2: wrong usage.
"""

from __future__ import annotations

{imports}

{body}

# --- what the proxy promises, by its settings when this was printed ---

PROMISED = Promised(
{promised})

URL = {where!r}

if __name__ == "__main__":
    sys.exit(main(None, PROMISED, URL))
'''


def client_script(promised: Promised, url: str | None) -> str:
    """Return the text of the file; `url` is where the proxy is, if that is known."""
    trees = {name: ast.parse(source(name)) for name in MODULES}
    return _HEAD.format(
        version=__version__,
        url=url or "http://mac:11434",
        imports="\n".join(_imports(trees.values())),
        body="\n\n\n".join(_section(name, tree) for name, tree in trees.items()),
        promised="".join(_fields(promised)),
        where=url,
    )


def source(name: str) -> str:
    """Return the text of one of MODULES."""
    folders = (resources.files(package) for package in (terminal, asking, questions))
    found = [path for folder in folders if (path := folder.joinpath(f"{name}.py")).is_file()]
    return found[0].read_text(encoding="utf-8")


def _imports(trees: Iterable[ast.Module]) -> Iterator[str]:
    """Yield the imports of the standard library, each once."""
    whole: set[str] = set()
    parts: dict[str, set[str]] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                whole |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not _left_out(node.module):
                parts.setdefault(node.module, set()).update(alias.name for alias in node.names)
    yield from (f"import {name}" for name in sorted(whole))
    for module, names in sorted(parts.items()):
        if kept := names - {"TYPE_CHECKING"}:
            yield f"from {module} import {', '.join(sorted(kept))}"


def _left_out(module: str) -> bool:
    return module == "__future__" or module.startswith("proxy.")


def _section(name: str, tree: ast.Module) -> str:
    """Return a module without its imports, below the first line of its docstring."""
    lines: list[str | None] = [*source(name).splitlines()]
    title = (ast.get_docstring(tree) or name).partition("\n")[0]
    for node in tree.body:
        if _is_import(node) or node is tree.body[0]:
            end = node.end_lineno or node.lineno
            lines[node.lineno - 1 : end] = [None] * (end - node.lineno + 1)
    kept = "\n".join(line for line in lines if line is not None)
    return f"# --- {name}: {title} ---\n\n\n{kept.strip()}"


def _is_import(node: ast.stmt) -> bool:
    """Return whether a statement imports, or does so for the checking of types."""
    checking = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return checking or isinstance(node, ast.Import | ast.ImportFrom)


def _fields(promised: Promised) -> Iterator[str]:
    """Yield the arguments that make the same value."""
    for each in fields(promised):
        shown = pprint.pformat(getattr(promised, each.name), width=100).replace("\n", "\n    ")
        yield f"    {each.name}={shown},\n"
