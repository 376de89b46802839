"""What Ollama's environment can open: an address beyond loopback, prompts in logs, access for any web page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.settings.addresses import is_local
from proxy.settings.kinds import printable
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from proxy.manage.facts.facts import Facts


def host(facts: Facts) -> Iterator[Finding]:
    """Report whether Ollama is set to loopback: by its plist, by launchd for all programs, by this shell."""
    name = "OLLAMA_HOST"
    if facts.plists["ollama"] is None:
        yield Finding(f"{name} of the agent", Outcome.SKIP, "Ollama isn't one of our agents")
    else:
        value = facts.variables("ollama").get(name, "")
        yield _host(f"{name} of the agent", value, Outcome.FAIL, f"{PROGRAM} install")
    if facts.no_launchd is None:
        value = _of_launchd(facts, name)
        yield _host(f"{name} of the login session", value, Outcome.FAIL, f"launchctl unsetenv {name}")
    else:
        yield Finding(f"{name} of the login session", Outcome.SKIP, facts.no_launchd.why)
    value = facts.machine.environ.get(name, "")
    yield _host(f"{name} of this shell", value, Outcome.WARN, f"unset {name}")


def _host(name: str, value: str, outcome: Outcome, hint: str) -> Finding:
    if not value.strip():
        return Finding(name, Outcome.PASS, "not set: Ollama's default is 127.0.0.1")
    if on_loopback(value):
        return Finding(name, Outcome.PASS, f"{printable(value)}, on loopback")
    detail = f"{printable(value)} is not on loopback: an Ollama started with it lets others past the proxy"
    return Finding(name, outcome, detail, hint)


def on_loopback(value: str) -> bool:
    """Return whether Ollama listens on loopback with that OLLAMA_HOST, which it reads leniently.

    Quotes, a scheme and a path are cut. Only a port, as in `:11434`, is every address. A name may be anything.
    """
    text = value.strip().strip("'\"").strip()
    text = text.partition("://")[2] if "://" in text else text
    host = text.partition("/")[0]
    if not host:
        return True
    if host.count(":") == 1 or (host.startswith("[") and not host.endswith("]")):
        host = host.rpartition(":")[0]
    return is_local(host)


def switches(facts: Facts) -> Iterator[Finding]:
    """Find variables with which Ollama writes prompts to files, or answers any web page."""
    places = list(_environments(facts))
    if not places:
        for name in _SWITCHES:
            yield Finding(name, Outcome.SKIP, "the environment of Ollama can't be seen")
        return
    for name, (is_wrong, then) in _SWITCHES.items():
        wrong = [(where, mend) for where, variables, mend in places if is_wrong(variables.get(name, ""))]
        for where, mend in wrong:
            yield Finding(name, Outcome.WARN, f"{then}; it is set {where}", mend(name))
        if not wrong:
            yield Finding(name, Outcome.PASS, "not set, or harmless")


def _environments(facts: Facts) -> Iterator[tuple[str, Mapping[str, str], Callable[[str], str]]]:
    """Yield each source of Ollama's variables, its variables, and the command that removes one."""
    if facts.plists["ollama"] is not None:
        config = facts.settings.config
        yield (
            "in the agent's plist",
            facts.variables("ollama"),
            lambda name: f"take {name} out of [ollama_env] in '{config}' or out of the plist; {PROGRAM} install",
        )
    if facts.no_launchd is None:
        yield (
            "for the login session",
            {name: _of_launchd(facts, name) for name in _SWITCHES},
            lambda name: f"launchctl unsetenv {name}",
        )


def _of_launchd(facts: Facts, name: str) -> str:
    return facts.machine.run("launchctl", "getenv", name).out.strip()


def switched_on(value: str) -> bool:
    """Return whether Ollama reads a switch as on, which includes any value that it can't parse."""
    text = value.strip().strip("'\"")
    return bool(text) and text not in {"0", "f", "F", "false", "False", "FALSE"}


def _wide(value: str) -> bool:
    """Return whether the origins that Ollama allows include any web page."""
    return not {"*", "http://*", "https://*"}.isdisjoint(each.strip() for each in value.strip("'\"").split(","))


_SWITCHES: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "OLLAMA_ORIGINS": (_wide, "with a * in it, any web page that is open on this Mac can use Ollama directly"),
    "OLLAMA_DEBUG_LOG_REQUESTS": (switched_on, "with it Ollama writes every prompt to a temporary folder"),
    "OLLAMA_DEBUG": (switched_on, "with it Ollama writes much to its log, in some releases prompts"),
}
"""Variable of Ollama's -> whether a value is worth a warning, and why."""
