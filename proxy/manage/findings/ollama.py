"""What can be wrong with Ollama: no answer, an old version, a port open to others, prompts that leave the Mac."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.manage.facts.listeners import NO_LSOF, who_listens
from proxy.manage.findings.ollama_environment import switched_on
from proxy.manage.verify.asking.session import SINCE as APIS_SINCE
from proxy.settings.kinds import printable
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.manage.facts.facts import Facts

SINCE = {f"/v1/{name}": since for name, since in sorted(APIS_SINCE.items())}
"""The release of Ollama that first served a path of the allowlist, where that still matters."""

CLOUD_SINCE = "0.16.2"
"""The release of Ollama that first reports, at /api/status, whether its cloud is off."""

REMOTE = "remote model"


def numbers(version: str) -> tuple[int, ...] | None:
    """Return the numbers of a version: what follows them (`-rc2`) is cut; None if there are no three."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version, re.ASCII)
    return tuple(map(int, match.groups())) if match else None


def lacks(version: tuple[int, ...]) -> list[str]:
    """Return the paths that a release doesn't serve yet; 0.0.0, built from source, is the newest."""
    return [path for path, since in SINCE.items() if (0, 0, 0) < version < since]


def answers(facts: Facts) -> Iterator[Finding]:
    """Report whether Ollama answers, and in a version that serves the whole allowlist."""
    url, job = facts.settings.upstream, facts.jobs.get("ollama")
    if facts.ollama_version is not None:
        yield of_version(url, facts.ollama_version)
        return
    if facts.of_ollama("/api/version") is None and facts.silence:
        detail, hint = f"{url} does not answer: {facts.silence}", facts.start("ollama", "restart")
        if facts.silence.startswith("connected") and not facts.installed("ollama"):
            hint = who_listens(facts.upstream[1])  # a second Ollama couldn't have the port
    else:
        detail, hint = f"{url} answers, but not like Ollama", f"curl -i {url}/api/version"
    for each in facts.of("ollama"):
        if (job is None or each.pid != job.pid) and not each.may_be("ollama"):
            detail, hint = f"{detail}: {each.where} is held by {each.who}", who_listens(each.port)
    yield Finding("Ollama HTTP", Outcome.FAIL, detail, hint)


def of_version(upstream: str, version: str) -> Finding:
    """Judge the version of an Ollama that answers."""
    name, detail = "Ollama HTTP", f"Ollama {printable(version[:40])} answers at {upstream}"
    known = numbers(version)
    if known is None:
        return Finding(name, Outcome.WARN, f"{detail}: its version can't be compared", "ollama --version")
    if lacking := lacks(known):
        return Finding(name, Outcome.WARN, f"{detail}: too old for {' and '.join(lacking)}", "brew upgrade ollama")
    return Finding(name, Outcome.PASS, detail)


def stuck(facts: Facts) -> Iterator[Finding]:
    """Report what the proxy that runs noticed: an Ollama that is silent and idle, or that answers without a token."""
    for trouble in facts.live.get("troubles", ()):
        detail = f"{printable(str(trouble))}: it may be stuck"
        yield Finding("Ollama's answers", Outcome.WARN, detail, facts.start("ollama", "restart"))


def exposure(facts: Facts) -> Iterator[Finding]:
    """Report whether Ollama listens on loopback only, by what lsof shows. Beyond it, it serves past the proxy."""
    name = "Ollama's address"
    if not facts.local_upstream:
        yield Finding(name, Outcome.SKIP, f"Ollama is on another machine, at {facts.settings.upstream}")
        return
    if facts.listening is None:
        yield Finding(name, Outcome.SKIP, NO_LSOF)
        return
    there = [each for each in facts.listening if each.is_ollama or (facts.is_ollamas(each) and each.on_loopback)]
    if not there:
        port = facts.upstream[1]
        detail = f"no process of yours listens on port {port}: the Ollama there can't be identified"
        yield Finding(name, Outcome.SKIP, detail, who_listens(port))
    job = facts.jobs.get("ollama")
    for each in there:
        if not each.on_loopback:
            detail = f"{each.who} listens on {each.where}: anyone who can reach that gets past the proxy"
            ours = facts.installed("ollama") or not facts.machine.is_mac
            if facts.is_install and not facts.options.proxy_only and job is not None and each.pid == job.pid:
                yield Finding(name, Outcome.WARN, f"{detail}; the installer binds it to loopback")
            elif ours and not facts.is_install:
                yield Finding(name, Outcome.FAIL, detail, f"{PROGRAM} install")
            else:
                hint = "launchctl unsetenv OLLAMA_HOST; in Ollama.app: Settings, Expose Ollama to the network: off"
                yield Finding(name, Outcome.FAIL, detail, hint)
    if there and all(each.on_loopback for each in there):
        yield Finding(name, Outcome.PASS, f"loopback only: {', '.join(each.where for each in there)}")


# --- the cloud --------------------------------------------------------------------------------------------------------


def cloud_is_off(facts: Facts) -> bool | None:
    """Return whether Ollama's cloud is off, by its answer to GET /api/status; None if it doesn't say."""
    response = facts.of_ollama("/api/status")
    entry = response.get("cloud") if isinstance(response, dict) else None
    disabled = entry.get("disabled") if isinstance(entry, dict) else None
    return disabled if isinstance(disabled, bool) else None


def cloud(facts: Facts) -> Iterator[Finding]:
    """Report whether Ollama's cloud is off, and whether the proxy lets requests for it through."""
    name, proxy = "Ollama's cloud", _SHUT if facts.settings.local_only else _OPEN
    if facts.ollama_version is None:
        yield Finding(name, Outcome.SKIP, f"Ollama doesn't answer; {proxy}")
        return
    disabled = cloud_is_off(facts)
    if facts.of_ollama("/api/status") == 404:
        detail = f"Ollama {printable(facts.ollama_version)} doesn't report it; {CLOUD_SINCE} and newer do; {proxy}"
        yield Finding(name, Outcome.SKIP, detail, "brew upgrade ollama")
    elif disabled is True:
        yield Finding(name, Outcome.PASS, f"is off: no model name sends a prompt off this machine; {proxy}")
    elif disabled is False:
        detail = f"is on: a model named …:cloud or …-cloud, and web search, send prompts to ollama.com; {proxy}"
        yield Finding(name, Outcome.WARN, detail, _no_cloud(facts))
    else:
        yield Finding(name, Outcome.SKIP, f"Ollama's answer to GET /api/status isn't understood; {proxy}")


_SHUT = "the proxy refuses what would leave this machine (`local_only`)"
_OPEN = "the proxy lets such requests through (`local_only = false`)"


def _no_cloud(facts: Facts) -> str:
    """Return the command that turns the cloud off. Our agent has OLLAMA_NO_CLOUD=1; one without it is an old one."""
    if switched_on(facts.variables("ollama").get("OLLAMA_NO_CLOUD", "")):
        return facts.start("ollama", "restart")
    if facts.machine.is_mac:
        return f"{PROGRAM} install; an Ollama of your own: start it with OLLAMA_NO_CLOUD=1"
    return "OLLAMA_NO_CLOUD=1 ollama serve"


def unusable_models(facts: Facts) -> Iterator[Finding]:
    """Find stubs of models that an Ollama keeps although its cloud is off: it lists them, but refuses to use them."""
    if facts.ollama_version is not None and cloud_is_off(facts):
        yield from _stubs(facts)


def remote_models(facts: Facts) -> Iterator[Finding]:
    """Report which models run elsewhere."""
    if facts.ollama_version is None:
        return
    tags = facts.of_ollama("/api/tags")
    remote = list(_stubs(facts))
    yield from remote
    models = tags.get("models") if isinstance(tags, dict) else None
    if isinstance(models, list) and not remote:
        yield Finding(REMOTE, Outcome.PASS, f"none of the {len(models)} models runs elsewhere")


def _stubs(facts: Facts) -> Iterator[Finding]:
    response: Any = facts.of_ollama("/api/tags")
    models = response.get("models") if isinstance(response, dict) else None
    for each in models if isinstance(models, list) else ():
        if isinstance(each, dict) and each.get("remote_host"):
            model, host = printable(str(each.get("name"))), printable(str(each["remote_host"]))
            then = "prompts for it leave this machine"
            if cloud_is_off(facts):
                then = (
                    "refused while the cloud is off, and a client that asks about every model, such as Copilot Chat or "
                    "Zed, then shows none at all"
                )
            quoted = model.replace("'", "'\\''")
            yield Finding(REMOTE, Outcome.WARN, f"{model} runs at {host}: {then}", f"ollama rm '{quoted}'")
