"""launchd: render a plist from its template, run launchctl, read its answers. In which order is its callers' business.

What launchctl says is no stable format, and its exit codes are few for many causes; what is relied on here was seen on
macOS 14 and later. `launchctl error N` explains a code.
"""

from __future__ import annotations

import os
import plistlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import proxy
from proxy import PROGRAM
from proxy.addresses import upstream_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.ops.machine import Ran

PROXY = "com.remote-ollama-proxy"
OLLAMA = "com.ollama"
WARM = "com.remote-ollama-proxy.warm"

DEFAULTS: Mapping[str, object] = {
    "EXIT_TIMEOUT": 40,
    "FILES": 16384,
    "OLLAMA_ENV": {},
    "OLLAMA_HOST": "127.0.0.1:11434",
}
"""Values of a template that need not be given. 40 s: `drain_timeout`'s 25, 5 to deliver error events, and some to end;
16384 files: two for each of `max_connections`' 4096, and as many again."""

# Codes of launchctl that are told apart.
_NO_PROCESS, _IO_ERROR, _IN_PROGRESS, _ALREADY = 3, 5, 36, 37
_NO_DOMAIN, _NO_SERVICE, _DISABLED, _BAD_OWNER, _NO_ACTION, _NO_SESSION = 112, 113, 119, 122, 125, 134
_NOT_LOADED = {_NO_PROCESS, _NO_DOMAIN, _NO_SERVICE, _NO_ACTION}

# Seconds. A job that is gone from `print` still holds its label for some 5 s, in which bootstrap says 5.
_SETTLE = 15.0
# Seconds that a job may outlast its ExitTimeOut; and what that is when `print` doesn't tell: 5 today, once 20.
_EXIT_MARGIN, _EXIT_TIMEOUT = 15.0, 20
# Seconds that launchctl may take. It mostly answers at once, but some releases wait for a job's end in bootout.
_ANSWER = 90.0
# Seconds between two looks at something that is awaited.
_POLL = 0.2


class LaunchdError(Exception):
    """What launchd refused, or did not bring about; `hint` is a command or step that helps, `code` launchctl's."""

    def __init__(self, text: str, hint: str, code: int = 0) -> None:
        super().__init__(text)
        self.hint = hint
        self.code = code


@dataclass(frozen=True, slots=True)
class JobState:
    """What launchd knows of a job. What it doesn't tell is None."""

    loaded: bool
    running: bool = False
    pid: int | None = None
    last_exit: int | None = None  # a code, or below zero the signal that ended it
    disabled: bool = False
    program: str | None = None
    state: str = ""  # in launchd's words: running, spawn scheduled, SIGTERMed, ...
    exit_timeout: int | None = None  # seconds

    @property
    def ended(self) -> str:
        """How it ended when it last did, in words."""
        if self.last_exit is None:
            return "it was never started"
        if self.last_exit < 0:
            return f"it was ended by signal {-self.last_exit}"
        meaning = " (launchd could not start it: its program or the folder of its log is missing)"
        return f"it ended with exit code {self.last_exit}{meaning if self.last_exit == os.EX_CONFIG else ''}"


# --- plists -----------------------------------------------------------------------------------------------------------


def agents_folder(home: Path) -> Path:
    """Return the folder that launchd loads a user's agents from at login."""
    return home / "Library" / "LaunchAgents"


def plist_path(label: str, home: Path) -> Path:
    """Return where the plist of `label` is kept."""
    return agents_folder(home) / f"{label}.plist"


def template(label: str) -> Path:
    """Return the template of `label`: in the package once installed, beside it in a checkout."""
    package = Path(proxy.__file__).parent
    found = [path for each in (package, package.parent) if (path := each / "launchd" / f"{label}.plist").is_file()]
    if not found:
        raise LaunchdError(f"there is no template for {label}", "install the package anew")
    return found[0]


def render(label: str, values: Mapping[str, object]) -> bytes:
    """Return the plist of `label` with `values` in the place of the template's @NAMES@.

    A text that is nothing but a name becomes the value itself, of whatever type; within a longer text it becomes text.
    A key that is a name is replaced by the entries of a mapping, which don't override what stands beside it. It is done
    after parsing, so no value can break the XML. LaunchdError for a value that is missing, a program without a path,
    or an Ollama beyond loopback.
    """
    filled = _fill(plistlib.loads(template(label).read_bytes()), {**DEFAULTS, **values})
    program = filled["ProgramArguments"][0]
    if not os.path.isabs(program):
        raise LaunchdError(f"{label}: {program!r} is no absolute path, which launchd needs", "give the whole path")
    host = filled["EnvironmentVariables"].get("OLLAMA_HOST")
    if host is not None and upstream_fault(f"http://{host}", allow_any=False):
        raise LaunchdError(f"{label}: {host} is not on loopback: others would get past the proxy", "mend upstream")
    return plistlib.dumps(filled, sort_keys=False)


_NAME = re.compile(r"@([A-Z_]+)@")


def _fill(node: Any, values: Mapping[str, object]) -> Any:
    if isinstance(node, list):
        filled = [_fill(each, values) for each in node]  # a list in the place of a name adds its own items
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
        raise LaunchdError(f"the template needs a value for @{name}@", f"it has {', '.join(sorted(values))}")
    value = values[name]
    return str(value) if isinstance(value, os.PathLike) else value


# --- launchctl --------------------------------------------------------------------------------------------------------


class Launchd:
    """The agents of one user, in the domain that there is while that user is logged in at the screen."""

    def __init__(
        self,
        uid: int,
        run: Callable[..., Ran],  # Machine.run, or one like it
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.domain = f"gui/{uid}"
        self._run = run
        self._clock = clock
        self._sleep = sleep

    def target(self, label: str) -> str:
        """Return what launchctl calls a job."""
        return f"{self.domain}/{label}"

    def domain_available(self) -> bool:
        """Return whether the user is logged in at the screen; over SSH alone there is no such domain."""
        return self._ask("print", self.domain).code == 0

    def need_domain(self) -> None:
        """Do nothing, or raise LaunchdError where nobody is logged in at the screen."""
        if not self.domain_available():
            raise _no_domain(self.domain, _NO_ACTION)

    def state(self, label: str) -> JobState:
        """Return what launchd knows of a job; of one in a domain that isn't there, that it isn't loaded."""
        disabled = re.search(
            rf'^\s*"{re.escape(label)}" => (disabled|true)\s*$',
            self._ask("print-disabled", self.domain).out,
            re.MULTILINE,
        )
        done = self._ask("print", self.target(label))
        if done.code in _NOT_LOADED:
            return JobState(loaded=False, disabled=bool(disabled))
        if done.code:
            raise LaunchdError(f"{label}: {_said(done)}", f"launchctl print {self.target(label)}", done.code)
        return _read(done.out, disabled=bool(disabled))

    def bootstrap(self, path: Path) -> None:
        """Load the job of a plist, named after its label. LaunchdError tells what of its many causes a 5 has."""
        done = self._ask("bootstrap", self.domain, str(path))
        if done.code:
            raise self._refused(path, done)

    def bootout(self, label: str) -> None:
        """Unload a job, and wait until it is gone: launchctl returns before that. One that isn't loaded is fine.

        It is sent SIGTERM, and SIGKILL after its ExitTimeOut. LaunchdError if it is there even after that.
        """
        allowed = (self.state(label).exit_timeout or _EXIT_TIMEOUT) + _EXIT_MARGIN
        done = self._ask("bootout", self.target(label))
        if done.code not in {0, _IN_PROGRESS, *_NOT_LOADED}:
            raise LaunchdError(f"{label} can't be unloaded: {_said(done)}", _explain(done.code), done.code)
        if not self.await_(lambda: self._ask("print", self.target(label)).code in _NOT_LOADED, allowed):
            raise LaunchdError(
                f"{label} is still there {allowed:g} s after it was told to end",
                f"launchctl print {self.target(label)}",
            )

    def kickstart(self, label: str, kill: bool = True) -> None:
        """Start a job that is loaded, at once. `kill` ends one that runs before that: hard, its streams are cut.

        Its plist is not read again: after a change of that, `reload`.
        """
        done = self._ask("kickstart", *(["-k"] if kill else []), self.target(label))
        if done.code in _NOT_LOADED:
            raise LaunchdError(f"{label} is not loaded", f"launchctl bootstrap {self.domain} PLIST", done.code)
        if done.code not in {0, _ALREADY}:
            raise LaunchdError(f"{label} can't be started: {_said(done)}", _explain(done.code), done.code)

    def enable(self, label: str) -> None:
        """Let a job be loaded, now and at each login."""
        self._switch("enable", label)

    def disable(self, label: str) -> None:
        """Keep a job from being loaded from now on, over restarts of the Mac too. One that runs goes on."""
        self._switch("disable", label)

    def reload(self, label: str, path: Path) -> None:
        """Unload a job if it is loaded, and load it from its plist. What can be known to fail leaves it as it is."""
        self.need_domain()
        self._lint(path)
        if self.state(label).disabled:
            raise self._disabled(label)
        self.bootout(label)
        end = self._clock() + _SETTLE
        while True:
            try:
                return self.bootstrap(path)
            except LaunchdError as error:
                if error.code not in {_IO_ERROR, _IN_PROGRESS, _ALREADY} or self._clock() >= end:
                    raise
            self._sleep(1.0)

    def await_(self, there: Callable[[], bool], seconds: float) -> bool:
        """Return True as soon as `there()` is, or False when it isn't after so many seconds."""
        end = self._clock() + seconds
        while not there():
            if self._clock() >= end:
                return False
            self._sleep(_POLL)
        return True

    def _ask(self, *words: str) -> Ran:
        return self._run("launchctl", *words, timeout=_ANSWER)

    def _switch(self, verb: str, label: str) -> None:
        done = self._ask(verb, self.target(label))
        if done.code:
            raise LaunchdError(f"{label}: {verb} failed: {_said(done)}", _explain(done.code), done.code)

    def _lint(self, path: Path) -> None:
        if not path.is_file():
            raise LaunchdError(f"there is no {path}", f"{PROGRAM} install")
        done = self._run("plutil", "-lint", path)
        if done.code == 1:
            raise LaunchdError(f"{path} is no plist: {_said(done)}", f"plutil -lint '{path}'")

    def _refused(self, path: Path, done: Ran) -> LaunchdError:
        """Return why a bootstrap failed. Its code is another than 5 where trying again would not help."""
        label = path.stem
        if done.code in {_NO_DOMAIN, _NO_ACTION, _NO_SESSION}:
            return _no_domain(self.domain, done.code)
        if done.code == _BAD_OWNER:
            return LaunchdError(
                f"{path} must belong to you, and nobody else may write to it", f"chmod 600 '{path}'", done.code
            )
        try:
            self._lint(path)
        except LaunchdError as error:
            return error
        state = self.state(label)
        if state.disabled:
            return self._disabled(label)
        if state.loaded:
            text = f"{label} is loaded already, or has not ended yet ({state.state})"
            return LaunchdError(text, f"launchctl print {self.target(label)}", done.code)
        return LaunchdError(f"{label} can't be loaded: {_said(done)}", _explain(done.code), done.code)

    def _disabled(self, label: str) -> LaunchdError:
        return LaunchdError(f"{label} is disabled", f"launchctl enable {self.target(label)}", _DISABLED)


def _no_domain(domain: str, code: int) -> LaunchdError:
    return LaunchdError(
        f"launchd has no {domain}: nobody is logged in at this Mac's screen",
        "log in at the screen (Screen Sharing will do), then run this again; for a Mac without one: automatic login",
        code,
    )


def _said(done: Ran) -> str:
    """Return the first line of what launchctl says; a second one, if any, advises to become root, which is no use."""
    return next((line.strip() for text in (done.err, done.out) for line in text.splitlines() if line.strip()), "")


def _explain(code: int) -> str:
    return f"launchctl error {code}"


def _read(text: str, *, disabled: bool) -> JobState:
    """Return what `launchctl print` tells of a job; only of its own entries, not of what is nested in them."""
    entries: dict[str, str] = {}
    indent = None
    for line in text.splitlines():
        match = re.fullmatch(r"(\s+)(\S[^=]*?) = (.*)", line)
        if match is None or match[3] == "{":
            continue
        indent = indent or match[1]
        if match[1] == indent:
            entries.setdefault(match[2], match[3])
    exit_code, killed = _number(entries.get("last exit code")), entries.get("last terminating signal", "")
    if killed:  # as in `Terminated: 15`
        exit_code = -(_number(killed.rpartition(":")[2]) or 0)
    return JobState(
        loaded=True,
        running=entries.get("state") == "running",
        pid=_number(entries.get("pid")),
        last_exit=exit_code,
        disabled=disabled,
        program=entries.get("program"),
        state=entries.get("state", ""),
        exit_timeout=_number(entries.get("exit timeout")),
    )


def _number(text: str | None) -> int | None:
    """Return the number that a value begins with, as in `78: EX_CONFIG`; None for `(never exited)`."""
    match = re.match(r"\s*(-?\d+)", text or "")
    return int(match[1]) if match else None
