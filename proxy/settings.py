"""Every option: its type, unit, default and range. All mistakes are told at once, each with its value and source.

One name for each: flag `--max-body`, variable `PROXY_MAX_BODY`, key `max_body` of the TOML file, in that order of
precedence; no `.env` is read. Frozen: a reload makes a new one and swaps it whole. Inner rooms get plain values.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, PlainValidator, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from proxy import addresses, config_file, gate, kinds, origins
from proxy.addresses import TAILSCALE
from proxy.kinds import GIB, KIB, MIB, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# What a reload can only report: sockets are bound and logs opened once.
RESTART_ONLY = frozenset(
    {"listen", "port", "serve_port", "upstream", "access_log", "diagnostics_log", "log_max_size", "log_keep"}
)

FILE_ONLY = frozenset({"ollama_env"})  # a table has no good spelling on a command line

_NAME = "remote-ollama-proxy"


def default_paths(environ: Mapping[str, str], platform: str = sys.platform) -> dict[str, str]:
    """Return where `config` and `access_log` are when nobody says so; a relative XDG folder counts as unset."""
    home = environ.get("HOME") or os.path.expanduser("~").removeprefix("~")  # it stays "~" for a user without a home
    if platform == "darwin":
        settings, logs = f"{home}/Library/Application Support", f"{home}/Library/Logs"
    else:
        settings, logs = (
            named if (named := environ.get(variable, "")).startswith("/") else f"{home}/{usual}"
            for variable, usual in (("XDG_CONFIG_HOME", ".config"), ("XDG_STATE_HOME", ".local/state"))
        )
    return {"config": f"{settings}/{_NAME}/config.toml", "access_log": f"{logs}/{_NAME}/access.log"}


def _rows(entries: tuple[str, ...]) -> tuple[str, ...]:
    gate.open_rows(entries)
    return entries


_ALLOW = kinds.several("names of opt-in rows, as in `POST /api/chat`", _rows)
_HOSTS = kinds.several("host names", kinds.each(gate.host_fault))
_ORIGINS = kinds.several("`scheme://host[:port]`, `scheme://*` or `null`", kinds.each(origins.origin_pattern_fault))
_Allow = Annotated[tuple[str, ...], PlainValidator(_ALLOW)]
_Hosts = Annotated[tuple[str, ...], PlainValidator(_HOSTS)]
_Origins = Annotated[tuple[str, ...], PlainValidator(_ORIGINS)]
_Switch = Annotated[bool, PlainValidator(kinds.SWITCH)]


class Settings(BaseSettings):
    """The options, in the order in which help, `--check` and docs/settings.md show them.

    Made of what it is given and of defaults, so that a test needs no clean environment; `load` reads the sources.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=False, env_prefix="PROXY_", enable_decoding=False
    )

    listen: Annotated[tuple[str, ...], PlainValidator(addresses.LISTEN)] = Field(
        default=(TAILSCALE,), description="addresses to listen on; tailscale is this machine's own in its tailnet"
    )
    port: Annotated[int, PlainValidator(kinds.number(1, 65535))] = Field(default=11434, description="port to listen on")
    serve_port: Annotated[int, PlainValidator(kinds.number(0, 65535))] = Field(
        default=0, description="port on 127.0.0.1 for `tailscale serve`, which brings https; 0: none"
    )
    upstream: Annotated[str, PlainValidator(addresses.UPSTREAM)] = Field(
        default="http://127.0.0.1:11434", description="where Ollama listens"
    )
    config: Annotated[str, PlainValidator(kinds.file())] = Field(
        default_factory=lambda: default_paths(os.environ)["config"],
        description="the TOML file; it may be absent unless it is named",
    )
    access_log: Annotated[str, PlainValidator(kinds.file("standard output"))] = Field(
        default_factory=lambda: default_paths(os.environ)["access_log"],
        description="where the line of each exchange goes",
    )
    diagnostics_log: Annotated[str | None, PlainValidator(kinds.file("standard error", dash_value=None))] = Field(
        default=None, description="where the proxy tells of itself"
    )
    log_level: Annotated[str, PlainValidator(kinds.choice("debug", "info", "warning", "error"))] = Field(
        default="info", description="the least that diagnostics tell"
    )
    log_max_size: Annotated[int, PlainValidator(kinds.size(MIB, GIB))] = Field(
        default=16 * MIB, description="size at which a log is set aside and a new one begun"
    )
    log_keep: Annotated[int, PlainValidator(kinds.number(1, 99))] = Field(
        default=5, description="how many logs set aside are kept"
    )
    allow: _Allow = Field(default=(), description="opt-in rows of the allowlist to open")
    allowed_hosts: _Hosts = Field(
        default=(), description="names that a Host field may hold beside addresses, single labels and .ts.net"
    )
    allowed_origins: _Origins = Field(
        default=(), description="web pages and apps that may use the proxy beside those that Ollama itself allows"
    )
    allowed_peers: Annotated[tuple[str, ...], PlainValidator(addresses.NETWORKS)] = Field(
        default=(), description="networks that are served on the Tailscale address beside the tailnet"
    )
    allow_any_address: _Switch = Field(default=False, description="listen on wildcard, LAN and public addresses too")
    allow_any_upstream: _Switch = Field(default=False, description="forward to another machine too")
    forward_credentials: _Switch = Field(
        default=False, description="forward Authorization, X-Api-Key and Cookie to Ollama"
    )
    max_body: Annotated[int, PlainValidator(kinds.size(KIB, 16 * GIB))] = Field(
        default=64 * MIB, description="largest content of a request"
    )
    max_head: Annotated[int, PlainValidator(kinds.size(KIB, MIB))] = Field(
        default=64 * KIB, description="largest head of a request"
    )
    max_connections: Annotated[int, PlainValidator(kinds.number(1, 100_000))] = Field(
        default=4096, description="most connections of clients at once"
    )
    max_connections_per_client: Annotated[int, PlainValidator(kinds.number(0, 100_000))] = Field(
        default_factory=lambda data: max(1, data["max_connections"] // 2),
        description="most of them from one address; 0: no such limit; default: half of max_connections",
    )
    head_timeout: Annotated[float, PlainValidator(kinds.duration(0.1, 300))] = Field(
        default=10.0, description="time in which a begun request head must be complete"
    )
    body_timeout: Annotated[float, PlainValidator(kinds.duration(0.1, 3600))] = Field(
        default=60.0, description="time in which content must bring 16 KiB or its end"
    )
    stall_timeout: Annotated[float, PlainValidator(kinds.duration(0.1, 3600))] = Field(
        default=60.0, description="time after which a client that takes nothing is cut"
    )
    connect_timeout: Annotated[float, PlainValidator(kinds.duration(0.1, 60))] = Field(
        default=5.0, description="time in which Ollama must take a connection"
    )
    drain_timeout: Annotated[float, PlainValidator(kinds.duration(0, 3600))] = Field(
        default=25.0, description="time that streams get to finish at a stop; 0: cut at once"
    )
    keep_awake: _Switch = Field(default=True, description="keep the Mac from sleeping while a model answers")
    ollama_env: Annotated[
        tuple[tuple[str, str], ...], PlainValidator(kinds.variables("HOME", "OLLAMA_HOST", "OLLAMA_NO_CLOUD"))
    ] = Field(default=(), description="environment variables that install gives to Ollama")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes all of these by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take nothing unseen: `load` merges the sources itself, to know where each value is from."""
        return (init_settings,)


OPTIONS: Mapping[str, str] = {name: field.description or "" for name, field in Settings.model_fields.items()}
"""What each option is for."""

SPELLED = tuple(option for option in OPTIONS if option not in FILE_ONLY)  # with a flag and a variable


def kind(option: str) -> Kind:
    """Return how the values of `option` are read and shown."""
    return next(rule.func for rule in Settings.model_fields[option].metadata if isinstance(rule, PlainValidator))  # type: ignore[return-value]


def flag(option: str) -> str:
    """Return the flag that sets `option`."""
    return f"--{option.replace('_', '-')}"


def variable(option: str) -> str:
    """Return the environment variable that sets `option`."""
    return f"PROXY_{option.upper()}"


class Problem(NamedTuple):
    """One mistake; as text it is what an error line says."""

    option: str
    value: str  # as given, escaped
    source: str  # "flag --port", "environment PROXY_PORT", "file <path>" or "default"
    message: str

    def __str__(self) -> str:
        """Return option, value, source and what is wrong."""
        return f"{self.option} = {self.value} ({self.source}): {self.message}"


class SettingsError(Exception):
    """Settings that can't be served with; `problems` are all of them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, where the value of each option is from, and what looks odd without being wrong."""

    settings: Settings
    sources: Mapping[str, str]
    warnings: tuple[str, ...]


class _Given(NamedTuple):
    value: object
    source: str


def load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    """Return the settings that flags (option -> text), environment and TOML file add up to. Reads that file only.

    A flag of another name than an option's, as it was typed, is one of the mistakes.
    SettingsError holds every mistake there is.
    """
    given, problems = _gather(flags, environ)
    settings, faults = _validate(given)
    for option, message in faults:
        value, source = given.get(option) or _Given(kind(option).show(getattr(settings, option)), "default")
        problems.append(Problem(option, kinds.quoted(value), source, kinds.printable(message)))
    if problems:
        raise SettingsError(tuple(problems))
    known = {variable(option) for option in SPELLED}
    odd = [name for name in environ if name.startswith("PROXY_") and name not in known]
    return Loaded(
        settings,
        {option: given[option].source if option in given else "default" for option in OPTIONS},
        tuple(f"environment {kinds.printable(name)} sets nothing{config_file.nearest(name, known)}" for name in odd),
    )


def _gather(flags: Mapping[str, str], environ: Mapping[str, str]) -> tuple[dict[str, _Given], list[Problem]]:
    """Return each option that has a value with the one that counts, and what is wrong with names and the file."""
    defaults = {option: _Given(value, "default") for option, value in default_paths(environ).items()}
    variables = EnvSettingsSource(Settings)
    variables.env_vars = {f"proxy_{name}": environ[variable(name)] for name in SPELLED if variable(name) in environ}
    named = {option: _Given(value, f"environment {variable(option)}") for option, value in variables().items()}
    named |= {
        option: _Given(value, f"flag {flag(option) if option in OPTIONS else option}")
        for option, value in flags.items()
    }
    table, problems = _read_file((defaults | named)["config"])
    problems += [_unknown(option, named[option], map(flag, SPELLED)) for option in flags if option not in SPELLED]
    for option in [option for option in table if option == "config" or option not in OPTIONS]:
        problems.append(_unknown(option, table.pop(option), OPTIONS))
    every = defaults | table | named
    return {option: every[option] for option in OPTIONS if option in every}, problems


def _unknown(option: str, given: _Given, names: Iterable[str]) -> Problem:
    message = f"no such option{config_file.nearest(option, names)}"
    if option == "config":
        message = "a file can't name itself; use --config or PROXY_CONFIG"
    return Problem(kinds.shown(option), kinds.quoted(given.value), given.source, message)


def _read_file(config: _Given) -> tuple[dict[str, _Given], list[Problem]]:
    """Return the options that the TOML file sets; only a file that nobody named may be absent."""
    try:
        path = Path(kind("config")(config.value))
    except ValueError:
        return {}, []  # the value is judged with the others
    try:
        if config.source == "default" and not path.exists():
            return {}, []
        octets = config_file.read(path)
        table = config_file.parse(octets)
    except OSError as error:
        message = f"can't be read: {error.strerror}"
    except config_file.ConfigFileError as error:
        message = str(error)
    else:
        source = f"file {kinds.printable(str(path))}"
        wrong = config_file.take_misplaced(table, octets, OPTIONS, FILE_ONLY)
        problems = [Problem(kinds.shown(name), kinds.quoted(value), source, text) for name, value, text in wrong]
        return {option: _Given(value, source) for option, value in table.items()}, problems
    return {}, [Problem("config", kinds.quoted(str(path)), config.source, message)]


def _validate(given: Mapping[str, _Given]) -> tuple[Settings, list[tuple[str, str]]]:
    """Return the settings, with defaults in place of what is wrong, and (option, what is wrong with it).

    Pydantic checks no rule over several options while one of them is wrong; here those that are right are checked on.
    """
    # Octets that are no UTF-8 come from the environment as lone surrogates, at which pydantic itself raises.
    wrong = {name: "is not valid UTF-8" for name, (value, _) in given.items() if not kinds.encodable(value)}
    values: dict[str, Any] = {name: value for name, (value, _) in given.items() if name not in wrong}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        # The other type there is, default_factory_not_called, only follows from a wrong max_connections.
        found = [fault for fault in error.errors() if fault["type"] == "value_error"]
        wrong |= {str(fault["loc"][0]): str(fault["ctx"]["error"]) for fault in found}
        settings = Settings(**{name: value for name, value in values.items() if name not in wrong})
    conflicts = [(names[0], message) for names, message in _conflicts(settings) if wrong.keys().isdisjoint(names)]
    return settings, [*wrong.items(), *conflicts]


def _conflicts(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the options that together make a mistake, the one to blame first, and what is wrong."""
    for address in settings.listen:
        if address != TAILSCALE and (fault := addresses.listen_fault(address, settings.allow_any_address)):
            yield ("listen", "allow_any_address"), fault
    if fault := addresses.upstream_fault(settings.upstream, settings.allow_any_upstream):
        yield ("upstream", "allow_any_upstream"), fault
    if addresses.is_loop(settings.upstream, settings.listen, settings.port):
        yield (
            ("upstream", "listen", "port"),
            "is where the proxy itself listens; give it another --port",
        )
    if settings.serve_port and addresses.is_loop(settings.upstream, ("127.0.0.1",), settings.serve_port):
        yield ("serve_port", "upstream"), "is Ollama's port; give it one of its own"
    if settings.serve_port == settings.port and addresses.on_loopback(settings.listen):
        yield ("serve_port", "port", "listen"), "is where the proxy itself listens; give it one of its own"
    if settings.access_log == settings.diagnostics_log:
        yield ("diagnostics_log", "access_log"), "is the access log; each needs a file of its own"


_OTHER_DESCRIPTORS = 64  # listening sockets, logs, the event loop's own, and room for what is being closed


def descriptors_for(connections: int) -> int:
    """Return the file descriptors that so many connections of clients need: one each, and one each to Ollama."""
    return 2 * connections + _OTHER_DESCRIPTORS


def connections_for(descriptors: int) -> int:
    """Return how many connections of clients so many file descriptors are enough for; at least one."""
    return max(1, (descriptors - _OTHER_DESCRIPTORS) // 2)


def needing_restart(old: Settings, new: Settings) -> tuple[str, ...]:
    """Return the options that differ and that a reload can't apply, in their order."""
    return tuple(o for o in OPTIONS if o in RESTART_ONLY and getattr(old, o) != getattr(new, o))
