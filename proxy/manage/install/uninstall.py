"""Remove an install: the agents, the command, the environments. Restore what the install replaced.

Idempotent, and not rolled back: each thing is removed separately, even if another can't be. Models, Ollama, Tailscale
and Python stay. So do settings and logs, unless they are purged.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import NAME, PROGRAM
from proxy.manage.facts.mac import HAPROXY
from proxy.manage.install.agents import remove
from proxy.manage.machine import launchd
from proxy.manage.machine.launchd import Launchd, LaunchdError
from proxy.manage.machine.log_index import index_files
from proxy.manage.machine.plists import read_plist, variables
from proxy.manage.machine.receipt import Receipt
from proxy.manage.machine.services import settings_environ
from proxy.manage.machine.steps import remove_empty
from proxy.settings.live_socket import port_of
from proxy.settings.settings import SettingsError, load
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.terminal.printer import Printer


class Uninstaller:
    """One uninstall: functions that yield what they did, in words; nothing where there was nothing to do.

    In a dry run they do nothing, and yield the same.
    """

    def __init__(self, machine: Machine, *, purge: bool = False, dry_run: bool = False) -> None:
        self.machine, self.purge, self.dry_run = machine, purge, dry_run
        self.agents = Launchd(machine.uid, machine.run)
        self.receipt = Receipt.of(machine)
        self.gone: set[Path] = set()  # what was removed, or would be
        self._index = _index_of(machine) if purge else []  # read now, because the settings will be gone

        self.services = (self.proxy, self.warm, self.ollama, self.haproxy)
        self.files = (self.command, self.environments, self.sockets, self.index, self.settings, self.folders)

    def proxy(self) -> Iterator[str]:
        """Unload the proxy; its streams get their time to finish."""
        yield from self._agent(launchd.PROXY)

    def warm(self) -> Iterator[str]:
        """Unload what warms models at login, if there is such an agent."""
        yield from self._agent(launchd.WARM)

    def ollama(self) -> Iterator[str]:
        """Give Ollama's agent back, if an install took it: the plist that was there before, or none."""
        if not self.receipt.ollama:
            return
        backup = self._backup(launchd.OLLAMA)
        host = variables(read_plist(backup)).get("OLLAMA_HOST", "")
        yield from self._agent(launchd.OLLAMA)
        yield from self._put_back(launchd.OLLAMA)
        if host and not host.removeprefix("http://").startswith(("127.", "localhost", "[::1]")):
            yield f"note: that com.ollama listens on {host}, beyond loopback, as it did before"

    def haproxy(self) -> Iterator[str]:
        """Give a HAProxy that was taken over back."""
        if self.receipt.haproxy:
            yield from self._put_back(HAPROXY)

    def command(self) -> Iterator[str]:
        """Remove the link, if it is ours."""
        link = self.machine.link
        if link.is_symlink() and link.readlink().is_relative_to(self.machine.support):
            yield self._removed(link, Path.unlink)

    def environments(self) -> Iterator[str]:
        """Remove environments, the Python that uv kept, and the receipt."""
        for folder in (self.machine.versions, self.machine.pythons):
            if folder.exists():
                yield self._removed(folder, shutil.rmtree)
        if self.machine.receipt.exists():
            self._removed(self.machine.receipt, Path.unlink)

    def sockets(self) -> Iterator[str]:
        """Remove the folder of the proxy's sockets, unless something else is in it."""
        folder = self.machine.sockets
        if folder.is_dir() and not folder.is_symlink() and all(map(_is_socket, folder.iterdir())):
            yield self._removed(folder, shutil.rmtree)

    def index(self) -> Iterator[str]:
        """Remove `dashboard`'s index of the log, if that is wanted, wherever the log is."""
        for path in self._index:
            if path.exists() and not path.is_relative_to(self.machine.logs):  # which goes as a whole
                yield self._removed(path, Path.unlink)

    def settings(self) -> Iterator[str]:
        """Remove settings and logs, if that is wanted."""
        if self.purge and os.path.lexists(self.machine.config):
            yield self._removed(self.machine.config, Path.unlink)
        if self.purge and self.machine.logs.exists():
            yield self._removed(self.machine.logs, shutil.rmtree)

    def folders(self) -> Iterator[str]:
        """Remove our folders once they are empty."""
        for folder in (self.machine.backup, self.machine.support, self.machine.logs):
            if self._is_empty(folder) if self.dry_run else remove_empty(folder):
                self.gone.add(folder)
                yield f"removed {folder}"

    def left(self) -> Iterator[str]:
        """Yield what stays, after the steps."""
        machine = self.machine
        ours = (machine.config, machine.logs, machine.backup)
        for path in ours:
            if path.exists() and path not in self.gone:
                yield f"{path}{'' if self.purge or path == machine.backup else ' (--purge removes it)'}"
        for path in sorted(machine.support.glob("*")):
            known = (*ours, *self.gone, machine.versions, machine.pythons, machine.receipt)
            if path.name != ".DS_Store" and path not in known:
                yield f"{path}, which this program did not make"
        if os.path.lexists(machine.link) and machine.link not in self.gone:
            yield f"{machine.link}, which `uv tool uninstall {NAME}` or `pipx uninstall {NAME}` removes"
        yield "Ollama, its models in ~/.ollama, Tailscale, and Python"

    def _agent(self, label: str) -> Iterator[str]:
        yield from remove(self.machine, self.agents, label, dry_run=self.dry_run)
        self.gone.add(launchd.plist_path(label, self.machine.home))

    def _removed(self, path: Path, act: Callable[[Path], object]) -> str:
        """Remove what is at a path, and return that in words."""
        if not self.dry_run:
            act(path)
        self.gone.add(path)
        return f"removed {path}"

    def _is_empty(self, folder: Path) -> bool:
        """Return whether a folder would be empty after what is gone in a dry run."""
        if folder in self.gone or not folder.is_dir():
            return False
        return set(folder.iterdir()) <= {*self.gone, folder / ".DS_Store"}

    def _backup(self, label: str) -> Path:
        return self.machine.backup / f"{label}.plist"

    def _put_back(self, label: str) -> Iterator[str]:
        """Move a plist back from the backup and load it; a disabled one stays disabled."""
        path, backup = launchd.plist_path(label, self.machine.home), self._backup(label)
        if not backup.exists():
            return
        if os.path.lexists(path) and path not in self.gone:
            yield f"left {backup}: there is another {path}"
            return
        self._removed(backup, lambda kept: kept.replace(path))
        yield f"put back {path}"
        if self.agents.domain_available() and not self.agents.state(label).disabled:
            if not self.dry_run:
                self.agents.reload(label, path)
            yield f"loaded {label} again"


def _index_of(machine: Machine) -> list[Path]:
    """Return the files of the index that belongs to the log in the settings; none if these are wrong."""
    with suppress(SettingsError):
        return [Path(each) for each in index_files(load({}, settings_environ(machine)).settings.access_log)]
    return []


def _is_socket(path: Path) -> bool:
    return port_of(path.name) is not None or path.name == ".DS_Store"


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Uninstall, or show what an uninstall would do."""
    return uninstall(Uninstaller(machine, purge=args.purge, dry_run=args.dry_run), out, yes=args.yes)


def uninstall(uninstaller: Uninstaller, out: Printer, *, yes: bool = False) -> Result:
    """Ask unless `yes`, uninstall, and print what was removed and what was left."""
    machine = uninstaller.machine
    if not machine.is_mac:
        text = f"uninstall needs macOS, and this is {machine.system}"
        raise CommandError(text, f"{PROGRAM} status", Exit.MISSING)
    question = f"Remove {NAME}{', its settings and its logs' if uninstaller.purge else ''}?"
    if uninstaller.dry_run:
        out.step("an uninstall would report this")
    elif not (yes or out.agree(question, f"{PROGRAM} uninstall --yes")):
        out.step("nothing was changed")
        return Result(Exit.FAILED, {"done": [], "left": []})
    done, failures = _done(uninstaller, out)
    left = list(uninstaller.left())
    out.step("left as they are")
    for line in left:
        out.step(f"  {line}")
    if uninstaller.dry_run:
        out.step("nothing was changed")
    data = {"done": done, "left": left}
    if not failures:
        return Result(data=data)
    hints = [str(getattr(failure, "hint", "")) or f"{NAME} uninstall" for failure in failures]
    for failure, hint in zip(failures[:-1], hints, strict=False):
        out.complain(str(failure), hint)
    return Result(Exit.FAILED, data, (str(failures[-1]),), hints[-1])


def _done(uninstaller: Uninstaller, out: Printer) -> tuple[list[str], list[Exception]]:
    """Take the steps, print what they did, and return it with what failed."""
    done: list[str] = []
    failures: list[Exception] = []
    for steps in (uninstaller.services, uninstaller.files):
        for step in () if failures else steps:  # while a service is left, what it runs on stays too
            try:
                for line in step():
                    out.step(f"  {line}")
                    done.append(line)
            except (OSError, LaunchdError) as error:
                failures.append(error)
    return done, failures
