"""Run launchctl and interpret its output. The callers decide on the order of the verbs.

launchctl's output is no stable format, and its exit codes are few for many causes. What is relied on here was seen on
macOS 14 and later. `launchctl error N` explains a code.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy import NAME, PROGRAM
from proxy.manage.machine import plists
from proxy.manage.machine.job_state import JobState, is_disabled, read
from proxy.manage.machine.machine import agents_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.manage.machine.machine import Ran

PROXY = f"com.{NAME}"
OLLAMA = "com.ollama"
WARM = f"{PROXY}.warm"

LOGIN_ITEMS = "System Settings, General, Login Items & Extensions: allow Python and Ollama in the background"
"""What to do about agents that their owner switched off there. launchctl shows nothing of that switch."""

# The codes of launchctl that are distinguished.
_NO_PROCESS, _IO_ERROR, _IN_PROGRESS, _ALREADY = 3, 5, 36, 37
_NO_DOMAIN, _NO_SERVICE, _DISABLED, _BAD_OWNER, _NO_ACTION, _NO_SESSION = 112, 113, 119, 122, 125, 134
_NOT_LOADED = {_NO_PROCESS, _NO_DOMAIN, _NO_SERVICE, _NO_ACTION}

# Seconds. A job that is gone from `print` still holds its label for about 5 s, in which bootstrap says 5.
_SETTLE = 15.0
# Seconds that a job may outlast its ExitTimeOut; and its default if `print` doesn't show it: 5 today, once 20.
_EXIT_MARGIN, _EXIT_TIMEOUT = 15.0, 20
# Seconds in which launchd starts a job by itself, if it does; and in which it starts one that was demanded.
_SPAWN, _DEMANDED = 1.0, 10.0
# Seconds that launchctl may take. It mostly answers at once, but some releases wait for a job's end in bootout.
_ANSWER = 90.0
# Seconds between two looks at something that is awaited.
POLL = 0.2


class LaunchdError(Exception):
    """What launchd refused, or did not bring about; `hint` is a command or step that helps, `code` launchctl's."""

    def __init__(self, text: str, hint: str, code: int = 0) -> None:
        super().__init__(text)
        self.hint = hint
        self.code = code


def plist_path(label: str, home: Path) -> Path:
    """Return where the plist of `label` is kept."""
    return agents_folder(home) / f"{label}.plist"


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
        """Do nothing, or raise LaunchdError if nobody is logged in at the screen."""
        if not self.domain_available():
            raise _no_domain(self.domain, _NO_ACTION)

    def state(self, label: str) -> JobState:
        """Return what launchd knows of a job; of one in a domain that isn't there, that it isn't loaded."""
        return self._look(label, disabled=is_disabled(self._ask("print-disabled", self.domain).out, label))

    def steady_state(self, label: str) -> JobState:
        """Return the same. If the job is just coming up, wait a moment to see what becomes of it."""
        state = self.state(label)
        if not state.coming_up:
            return state
        return replace(self._first(label, lambda seen: not seen.coming_up, _SPAWN), disabled=state.disabled)

    def bootstrap(self, path: Path) -> JobState:
        """Load the job of a plist, named after its label, and have it started if it is to start by itself.

        LaunchdError names the cause that launchctl's 5 has, of many.
        """
        done = self._ask("bootstrap", self.domain, str(path))
        if done.code:
            raise self._refused(path, done)
        return self.start_if_left_down(path.stem) if plists.starts_by_itself(path) else self._look(path.stem)

    def start_if_left_down(self, label: str) -> JobState:
        """Start a job that launchd registered and then left down; return its state. A started job is left alone.

        While a login restores its applications, and on macOS 26 at other times too, launchd starts only what someone
        demands. RunAtLoad and KeepAlive are no demand, a kickstart is. Raises LaunchdError if even that starts
        nothing.
        """
        state = self._first(label, lambda seen: not seen.left_down or bool(seen.pended), _SPAWN)
        if state.left_down:
            self.kickstart(label, kill=False)
            state = self._first(label, lambda seen: not seen.left_down, _DEMANDED)
            if state.left_down:
                text = f"{label} is loaded, but launchd does not start it ({state.shown})"
                raise LaunchdError(text, self._print(label))
        return state

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
                f"{label} is still there {allowed:g} s after it was asked to end",
                self._print(label),
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

    def reload(self, label: str, path: Path) -> JobState:
        """Unload a job if it is loaded, load it from its plist, and start it if it should start by itself.

        If a failure can be foreseen, nothing changes. The folders of its output are made, because without them it
        would end with 78.
        """
        self.need_domain()
        self._lint(path)
        if self.state(label).disabled:
            raise self._disabled(label)
        for folder in plists.output_folders(path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            self._sleep(POLL)
        return True

    def _first(self, label: str, wanted: Callable[[JobState], bool], seconds: float) -> JobState:
        """Return the first state of a job that is wanted, or after so many seconds the one that it has."""
        end = self._clock() + seconds
        while not wanted(state := self._look(label)) and self._clock() < end:
            self._sleep(POLL)
        return state

    def _look(self, label: str, *, disabled: bool = False) -> JobState:
        done = self._ask("print", self.target(label))
        if done.code in _NOT_LOADED:
            return JobState(loaded=False, disabled=disabled)
        if done.code:
            raise LaunchdError(f"{label}: {_said(done)}", self._print(label), done.code)
        return read(done.out, disabled=disabled)

    def _print(self, label: str) -> str:
        return f"launchctl print {self.target(label)}"

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
            raise LaunchdError(f"{path} is not a plist: {_said(done)}", f"plutil -lint '{path}'")

    def _refused(self, path: Path, done: Ran) -> LaunchdError:
        """Return why a bootstrap failed. Its code is another than 5 where trying again would not help."""
        label = path.stem
        if done.code in {_NO_DOMAIN, _NO_ACTION, _NO_SESSION}:
            return _no_domain(self.domain, done.code)
        if done.code == _BAD_OWNER:
            return LaunchdError(
                f"{path} must belong to you, and only you may write to it", f"chmod 600 '{path}'", done.code
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
            return LaunchdError(text, self._print(label), done.code)
        hint = f"{_explain(done.code)}; or {LOGIN_ITEMS}" if done.code == _IO_ERROR else _explain(done.code)
        return LaunchdError(f"{label} can't be loaded: {_said(done)}", hint, done.code)

    def _disabled(self, label: str) -> LaunchdError:
        return LaunchdError(f"{label} is disabled", f"launchctl enable {self.target(label)}", _DISABLED)


def _no_domain(domain: str, code: int) -> LaunchdError:
    return LaunchdError(
        f"launchd has no {domain}: nobody is logged in at this Mac's screen",
        "log in at the screen (or with Screen Sharing), then run this again; without a screen: automatic login",
        code,
    )


def _said(done: Ran) -> str:
    """Return the first line of what launchctl says; a second one, if any, advises to become root, which is no use."""
    return next((line.strip() for text in (done.err, done.out) for line in text.splitlines() if line.strip()), "")


def _explain(code: int) -> str:
    return f"launchctl error {code}"
