"""The plists for launchd: rendered from their templates, and read for what they ask of launchd."""

from __future__ import annotations

import os
import plistlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import proxy
from proxy.settings.addresses import upstream_fault

if TYPE_CHECKING:
    from collections.abc import Mapping

STREAMS = ("StandardOutPath", "StandardErrorPath")
"""The keys of a plist that name the files of a job's output."""

DEFAULTS: Mapping[str, object] = {
    "EXIT_TIMEOUT": 40,
    "FILES": 16384,
    "OLLAMA_ENV": {},
    "OLLAMA_HOST": "127.0.0.1:11434",
}
"""Values of a template that need not be given. 40 s: `drain_timeout`'s 25, 5 to deliver error events, and some to end;
16384 files: two for each of `max_connections`' 4096, and as many again."""


class PlistError(Exception):
    """A plist can't be rendered; `hint` is a step that helps."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


def template(label: str) -> Path:
    """Return the template of `label`: inside the package once installed, next to it in a checkout."""
    package = Path(proxy.__file__).parent
    found = [path for each in (package, package.parent) if (path := each / "launchd" / f"{label}.plist").is_file()]
    if not found:
        raise PlistError(f"there is no template for {label}", "reinstall the package")
    return found[0]


def render(label: str, values: Mapping[str, object]) -> bytes:
    """Return the plist of `label` with `values` instead of the template's @NAMES@.

    A text that is only a name becomes the value itself, of whatever type; within a longer text it becomes text. A key
    that is a name is replaced by the entries of a mapping, which don't override existing keys. It happens after
    parsing, so no value can break the XML. Raises PlistError for a missing value, a program without a path, or an
    Ollama beyond loopback.
    """
    filled = _fill(plistlib.loads(template(label).read_bytes()), {**DEFAULTS, **values})
    program = filled["ProgramArguments"][0]
    if not os.path.isabs(program):
        raise PlistError(f"{label}: {program!r} is not an absolute path, which launchd needs", "use an absolute path")
    host = filled["EnvironmentVariables"].get("OLLAMA_HOST")
    if host is not None and upstream_fault(f"http://{host}", allow_any=False):
        raise PlistError(f"{label}: {host} is not on loopback: others could get past the proxy", "correct upstream")
    return plistlib.dumps(filled, sort_keys=False)


_NAME = re.compile(r"@([A-Z_]+)@")


def _fill(node: Any, values: Mapping[str, object]) -> Any:
    if isinstance(node, list):
        filled = [_fill(each, values) for each in node]  # a list instead of a name adds its own items
        return [one for each in filled for one in (each if isinstance(each, list) else [each])]
    if isinstance(node, dict):
        more = [_value(match[1], values) for key in node if (match := _NAME.fullmatch(key))]
        entries = {key: _fill(value, values) for key, value in node.items() if not _NAME.fullmatch(key)}
        return {**{key: str(value) for each in more for key, value in each.items() if key not in entries}, **entries}
    if not isinstance(node, str):
        return node
    if whole := _NAME.fullmatch(node):
        return _value(whole[1], values)
    return _NAME.sub(lambda match: str(_value(match[1], values)), node)


def _value(name: str, values: Mapping[str, object]) -> Any:
    if name not in values:
        raise PlistError(f"the template needs a value for @{name}@", f"it has {', '.join(sorted(values))}")
    value = values[name]
    return str(value) if isinstance(value, os.PathLike) else value


def read_plist(path: Path) -> dict[str, Any] | None:
    """Return the content of a plist; None if there is none, or it can't be read as one."""
    try:
        return parse(path.read_bytes())
    except OSError:
        return None


def parse(content: bytes) -> dict[str, Any] | None:
    """Return the plist that a file's bytes are; None if they are none."""
    try:
        found = plistlib.loads(content)
    except Exception:  # plistlib raises whatever expat, struct or datetime do
        return None
    return found if isinstance(found, dict) else None


def variables(plist: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the environment that a plist gives its job."""
    found = (plist or {}).get("EnvironmentVariables")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def starts_by_itself(path: Path) -> bool:
    """Return whether a plist asks launchd to start its job without a demand. SuccessfulExit implies RunAtLoad."""
    plist = plistlib.loads(path.read_bytes())
    keep = plist.get("KeepAlive")
    return bool(plist.get("RunAtLoad")) or keep is True or (isinstance(keep, dict) and "SuccessfulExit" in keep)


def output_folders(path: Path) -> set[Path]:
    """Return the folders of the files that launchd writes a job's output to."""
    plist = plistlib.loads(path.read_bytes())
    return {Path(plist[stream]).parent for stream in STREAMS if stream in plist}
