"""Install the proxy and Ollama as two LaunchAgents: the steps, their order, and what is printed.

Idempotent: a step whose result is there already is skipped. So a second install repairs, and a newer checkout upgrades.
If a step fails, all steps before it are undone. The steps are in `steps`, `environment`, `agents` and `prove`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from proxy import NAME, PROGRAM
from proxy.manage.facts.facts import Facts
from proxy.manage.facts.mac import HAPROXY, Options
from proxy.manage.findings.table import When, findings
from proxy.manage.install import warm_agent
from proxy.manage.install.agents import Agent, TakeOver, alike, ollama_environment, ollama_plist, proxy_plist
from proxy.manage.install.prove import START_TIMEOUT, OllamaAnswers, Prove, prove
from proxy.manage.machine import environment, launchd
from proxy.manage.machine.environment import BuildEnvironment, RemoveOldVersions
from proxy.manage.machine.interpreter import KEPT_BY_UV, BringPython, uv_of
from proxy.manage.machine.launchd import Launchd, LaunchdError
from proxy.manage.machine.receipt import Receipt
from proxy.manage.machine.steps import Folder, Link, RolledBackError, Step, WriteFile, carry_out
from proxy.settings.addresses import TAILSCALE, joined
from proxy.settings.settings import FILE_ONLY, OPTIONS, Settings, written
from proxy.terminal.finding import Outcome
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from proxy.manage.machine.machine import Machine
    from proxy.manage.machine.source import Source
    from proxy.tailnet.tailscale import Tailscale
    from proxy.terminal.finding import Finding
    from proxy.terminal.printer import Printer


class Installer:
    """What an install is done with; a test gives it another builder, proof, or patience."""

    def __init__(
        self,
        machine: Machine,
        *,
        tailscale: Tailscale | None = None,
        builder: Callable[[Machine, Source, Path, Path], None] = environment.build,
        proof: Callable[[Facts], Iterable[Finding]] = prove,
        seconds: float = START_TIMEOUT,
    ) -> None:
        self.machine, self.tailscale = machine, tailscale
        self.builder, self.proof, self.seconds = builder, proof, seconds
        self.agents = Launchd(machine.uid, machine.run)

    def look(self, options: Options) -> Facts:
        """Return what there is on the machine."""
        return Facts.for_install(self.machine, options, self.tailscale)

    def plan(self, seen: Facts) -> list[Step]:
        """Return the steps, in their order: what can fail without harm first, what clients notice last."""
        machine, version = self.machine, _version(seen)
        python = machine.versions / version / "bin" / "python"
        steps: list[Step] = [Folder(machine, machine.support), Folder(machine, machine.logs)]
        steps += [Folder(machine, folder, 0o755) for folder in (machine.agents, machine.link.parent)]
        steps += self._environment(seen)
        config = config_text(Settings()).encode()
        steps.append(WriteFile(machine, "write the settings", machine.config, config, keep=True))
        steps += self._receipt(seen, version)
        if seen.haproxy_is_there and not seen.options.keep_haproxy:
            steps += [Folder(machine, machine.backup), TakeOver(machine, self.agents, HAPROXY)]
        if not seen.options.proxy_only:
            steps += self._ollama(seen)
        ollama = next((step for step in steps if isinstance(step, Agent)), None)
        steps.append(Agent(machine, self.agents, launchd.PROXY, proxy_plist(machine, seen.settings, python)))
        if (words := warm_agent.words(machine)) is not None:  # it runs on the same interpreter, which may have moved
            steps.append(warm_agent.agent(machine, python, words, after=ollama))
        if not seen.own_command:
            steps.append(Link(machine, machine.link, python.with_name(NAME)))
        steps.append(Prove(seen, self.proof, self.seconds))
        return [*steps, RemoveOldVersions(machine, version)]

    def _environment(self, seen: Facts) -> Iterator[Step]:
        """Yield what makes the environment; an installed copy that installs has its own, and keeps it."""
        if seen.source is None or seen.interpreter is None:
            return
        known = seen.interpreter.path
        if known is not None:
            yield BuildEnvironment(self.machine, seen.source, lambda: known, str(known), self.builder)
        elif uv := uv_of(self.machine):
            bring = BringPython(self.machine, uv)
            shown = f"{self.machine.pythons}/cpython-{KEPT_BY_UV}.../bin/python{KEPT_BY_UV}"
            yield bring
            yield BuildEnvironment(self.machine, seen.source, bring.path, shown, self.builder)

    def _receipt(self, seen: Facts, version: str) -> Iterator[Step]:
        before, names = seen.receipt, tuple(name for name, _ in seen.settings.ollama_env)
        now = Receipt(
            version,
            ollama=before.ollama or not seen.options.proxy_only,
            ollama_env=before.ollama_env if seen.options.proxy_only else names,
            haproxy=before.haproxy or (seen.haproxy_is_there and not seen.options.keep_haproxy),
        )
        yield WriteFile(self.machine, "note what is installed in", self.machine.receipt, now.content())

    def _ollama(self, seen: Facts) -> Iterator[Step]:
        """Yield what makes Ollama ours; a plist that someone else wrote is kept aside first."""
        backup = self.machine.backup / f"{launchd.OLLAMA}.plist"
        old = backup.read_bytes() if backup.is_file() else None
        owners = ollama_environment(seen.ollama_plist, old, seen.receipt, seen.settings)
        ollama = seen.ollama or self.machine.at("/opt/homebrew/bin/ollama")
        plist = ollama_plist(self.machine, seen.settings, ollama, owners)
        if seen.ollama_plist is not None and not seen.receipt.ollama and not alike(seen.ollama_plist, plist):
            yield Folder(self.machine, self.machine.backup)
            yield WriteFile(self.machine, "keep the existing com.ollama.plist in", backup, seen.ollama_plist, keep=True)
        yield Agent(self.machine, self.agents, launchd.OLLAMA, plist)
        yield OllamaAnswers(seen.settings, self.seconds)


def _version(seen: Facts) -> str:
    if seen.source is not None:
        return seen.source.version
    return seen.installed_as.name if seen.installed_as else seen.receipt.version


def config_text(defaults: Settings) -> str:
    """Return a settings file that sets nothing and names everything: each option with purpose and default."""
    lines = [
        "# Settings of remote-ollama-proxy: remove the # before a line to change it, then run",
        "#   remote-ollama-proxy --check && remote-ollama-proxy restart proxy",
        "# docs/settings.md explains each option. Units: 10s, 5m, 1h; 64KiB, 64MiB, 1GiB.",
    ]
    texts = written(defaults)
    for option, purpose in OPTIONS.items():
        if option in {"config", "diagnostics_log", *FILE_ONLY}:  # said by the plist; the tables follow
            continue
        value = getattr(defaults, option)
        if option == "access_log":
            shown = '"~/Library/Logs/remote-ollama-proxy/access.log"'
        elif isinstance(value, tuple):
            shown = json.dumps(list(value))
        else:
            text = texts[option]
            shown = text if isinstance(value, bool) or text.isdigit() else json.dumps(text)
        lines += ["", f"# {purpose}", f"# {option} = {shown}"]
    return "\n".join([
        *lines,
        "",
        f"# {OPTIONS['access']}: see docs/access-rules.md. Below all options: they are tables.",
        "# [[access]]",
        '# who = ["alice@example.com", "self"]',
        '# models = ["*"]',
        "",
        f"# {OPTIONS['ollama_env']}; run the install again after a change. Last in the file: it is a table.",
        "# [ollama_env]",
        '# OLLAMA_KEEP_ALIVE = "24h"',
        '# OLLAMA_MODELS = "/Users/Shared/ollama-models"',
        "",
    ])  # fmt: skip


# --- the command ------------------------------------------------------------------------------------------------------


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Install, or show what an install would do."""
    options = Options(proxy_only=args.proxy_only, keep_haproxy=args.keep_haproxy)
    return install(Installer(machine), options, out, dry_run=args.dry_run, yes=args.yes)


def install(
    installer: Installer, options: Options, out: Printer, *, dry_run: bool = False, yes: bool = False
) -> Result:
    """Check, print the findings, ask unless `yes`, and install."""
    machine = installer.machine
    if not machine.is_mac and not dry_run:
        text = f"install needs macOS, and this is {machine.system}"
        raise CommandError(text, f"{PROGRAM} install --dry-run", Exit.MISSING)
    try:
        seen = installer.look(options)
        found = list(findings(seen, When.INSTALL))
    except (OSError, LaunchdError) as error:
        raise CommandError(f"nothing was changed: {error}", getattr(error, "hint", "")) from error
    out.findings(found)
    data: dict[str, object] = {"findings": found, "steps": []}
    wrong = [finding for finding in found if finding.outcome is Outcome.FAIL]
    if wrong and not dry_run:
        text = f"nothing was changed: {len(wrong)} of these must be corrected first"
        return Result(Exit.FAILED, data, (text,), f"{PROGRAM} install")
    steps = installer.plan(seen)
    if dry_run:
        data["steps"] = _show(steps, out)
        return Result(Exit.of(found), data)
    data["steps"] = [{"title": step.title} for step in steps]
    out.step("these steps will be taken; steps that are already in place are skipped")
    for step in steps:
        out.step(f"  {step.title}")
    if not (yes or out.agree("Go ahead?", f"{PROGRAM} install --yes")):
        out.step("nothing was changed")
        return Result(Exit.FAILED, data)
    try:
        carry_out(steps, out.step)
    except RolledBackError as error:
        out.step("all changes were undone" if not error.left else "all changes were undone, except for these")
        for line in error.left:
            out.step(f"  {line}")
        return Result(Exit.FAILED, {**data, "left": error.left}, (str(error),), error.hint)
    return Result(data={**data, "urls": _report(seen, out), "settings": str(machine.config)})


def _report(seen: Facts, out: Printer) -> list[str]:
    """Print where the proxy is now, and how to undo it. Return the URLs."""
    name = seen.tailscale.tailnet.known_as if TAILSCALE in seen.settings.listen else None
    urls = [f"http://{joined(host, seen.settings.port)}" for host in [*([name] if name else []), *seen.expected]]
    out.say()
    out.say("installed; your devices reach it at")
    for url in urls:
        out.say(f"  {url}")
    out.say(f"settings: {seen.machine.config}")
    out.say(f"to undo it: {NAME} uninstall")
    return urls


def _show(steps: Sequence[Step], out: Printer) -> list[dict[str, object]]:
    """Print what each step would run and write, and return it."""
    shown: list[dict[str, object]] = []
    for number, step in enumerate(steps, 1):
        lines = list(step.shown())
        out.say(f"{number}. {step.title}")
        for line in lines:
            out.say(f"   {line}")
        shown.append({"title": step.title, "shows": lines})
    out.say("nothing was changed")
    return shown
