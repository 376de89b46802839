"""Every option, declared once: its type, default, bounds and purpose. All mistakes are reported at once.

An option has one name in three spellings: flag `--max-body`, variable `PROXY_MAX_BODY`, key `max_body` of the TOML
file, in this order of precedence. No `.env` is read. Settings never change: a reload makes new ones and swaps them.
Other modules get plain values.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from proxy import NAME
from proxy.policy import gate, origins
from proxy.settings import addresses, config_file, kinds
from proxy.settings.addresses import TAILSCALE
from proxy.settings.kinds import GIB, KIB, MIB, Count, Duration, Size, Switch, Texts, each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import ModelWrapValidatorHandler
    from pydantic_core import ErrorDetails

# What a reload can only report: sockets are bound and logs opened once.
RESTART_ONLY = frozenset(
    {"listen", "port", "serve_port", "upstream", "access_log", "diagnostics_log", "log_max_size", "log_keep"}
)


def default_paths(environ: Mapping[str, str], platform: str = sys.platform) -> dict[str, str]:
    """Return the default `config` and `access_log`; a relative XDG folder counts as unset."""
    home = environ.get("HOME") or os.path.expanduser("~").removeprefix("~")  # it stays "~" for a user without a home
    if platform == "darwin":
        settings, logs = f"{home}/Library/Application Support", f"{home}/Library/Logs"
    else:
        settings, logs = (
            named if (named := environ.get(variable, "")).startswith("/") else f"{home}/{usual}"
            for variable, usual in (("XDG_CONFIG_HOME", ".config"), ("XDG_STATE_HOME", ".local/state"))
        )
    return {"config": f"{settings}/{NAME}/config.toml", "access_log": f"{logs}/{NAME}/access.log"}


def _rows(entries: tuple[str, ...]) -> tuple[str, ...]:
    gate.open_rows(entries)
    return entries


_Allow = Annotated[Texts, AfterValidator(_rows), Field(title="names of opt-in rows, as in `POST /api/chat`")]
_Hosts = Annotated[Texts, each(gate.host_fault), Field(title="host names")]
_Origins = Annotated[
    Texts, each(origins.origin_pattern_fault), Field(title="`scheme://host[:port]`, `scheme://*` or `null`")
]


class Settings(BaseSettings):
    """The options, in the order in which help, `--check` and docs/settings.md show them.

    It uses only the given values and defaults, so a test needs no clean environment. `load` reads the sources.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=False, case_sensitive=True, enable_decoding=False
    )

    listen: addresses.Listen = Field(
        default=(TAILSCALE,),
        description="addresses to listen on; tailscale means this machine's addresses in its tailnet",
    )
    port: Count = Field(default=11434, ge=1, le=65535, description="port to listen on")
    serve_port: Count = Field(default=0, ge=0, le=65535, description="port for `tailscale serve`, for https; 0: none")
    upstream: addresses.Upstream = Field(default="http://127.0.0.1:11434", description="where Ollama listens")
    config: kinds.File = Field(
        default_factory=lambda: default_paths(os.environ)["config"],
        description="the TOML file; the default file may be missing",
    )
    access_log: kinds.Output = Field(
        default_factory=lambda: default_paths(os.environ)["access_log"],
        description="where the access log goes, one line for each exchange",
    )
    diagnostics_log: kinds.Errors = Field(default=None, description="where the proxy logs its own events")
    log_level: kinds.Level = Field(default="info", description="least severe level of these events to log")
    log_max_size: Size = Field(default=16 * MIB, ge=MIB, le=GIB, description="size at which a log is rotated")
    log_keep: Count = Field(default=5, ge=1, le=99, description="how many rotated logs are kept")
    allow: _Allow = Field(default=(), description="opt-in rows of the allowlist to open")
    allowed_hosts: _Hosts = Field(default=(), description="more names that a Host field may hold")
    allowed_origins: _Origins = Field(default=(), description="origins to allow in addition to Ollama's own")
    allowed_peers: addresses.Networks = Field(default=(), description="networks to allow in addition to the tailnet")
    allow_any_address: Switch = Field(default=False, description="allow wildcard, LAN and public addresses in listen")
    allow_any_upstream: Switch = Field(default=False, description="allow another machine as upstream")
    forward_credentials: Switch = Field(default=False, description="forward Authorization, X-Api-Key and Cookie")
    max_body: Size = Field(default=64 * MIB, ge=KIB, le=16 * GIB, description="largest request body")
    max_head: Size = Field(default=64 * KIB, ge=KIB, le=MIB, description="largest request head")
    max_connections: Count = Field(default=4096, ge=1, le=100_000, description="most connections of clients at once")
    max_connections_per_client: Count = Field(
        default_factory=lambda data: max(1, data["max_connections"] // 2),
        ge=0,
        le=100_000,
        description="most connections from one address; 0: no such limit; default: half of max_connections",
    )
    head_timeout: Duration = Field(default=10.0, ge=0.1, le=300, description="time limit for a request head")
    body_timeout: Duration = Field(default=60.0, ge=0.1, le=3600, description="time limit for each 16 KiB of a body")
    stall_timeout: Duration = Field(
        default=60.0, ge=0.1, le=3600, description="time after which a stalled client is cut"
    )
    connect_timeout: Duration = Field(
        default=5.0, ge=0.1, le=60, description="time limit for Ollama to accept a connection"
    )
    drain_timeout: Duration = Field(
        default=25.0, ge=0, le=3600, description="time for streams to finish when the proxy stops; 0: cut at once"
    )
    parallel: kinds.AutoCount = Field(
        default=None,
        description="most requests for one model that Ollama gets at once; auto: as many as it answers at once",
    )
    swap_after: Duration = Field(
        default=60.0, ge=0, le=3600, description="longest time that one model in use may hold up another"
    )
    max_waiting: Count = Field(default=64, ge=1, le=4096, description="most requests that wait for a model")
    ping_after: Duration = Field(
        default=15.0, ge=0, le=3600, description="silence before a stream gets its head and pings; 0: never"
    )
    ping_every: Duration = Field(
        default=30.0, ge=1, le=3600, description="silence after which a stream gets another ping"
    )
    stuck_after: Duration = Field(
        default=300.0, ge=0, le=86400, description="silence after which Ollama may be stuck; 0: never"
    )
    keep_awake: Switch = Field(default=True, description="keep the Mac awake while a model answers")
    ollama_env: kinds.Variables = Field(default=(), description="environment variables that install gives to Ollama")

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the given values, because `load` names the sources: flags, environment and file."""
        return (sources["init_settings"],)

    @field_validator("*", mode="before")
    @classmethod
    def _in_utf8(cls, given: object) -> object:
        """Refuse bytes that aren't UTF-8, which the environment represents as lone surrogates."""
        if not kinds.encodable(given):
            raise ValueError("is not valid UTF-8")
        return given

    @model_validator(mode="wrap")
    @classmethod
    def _all_mistakes(cls, data: dict[str, Any], handler: ModelWrapValidatorHandler[Settings]) -> Settings:
        """Find every mistake, because pydantic checks no rule over several options while one of them is wrong.

        Here defaults replace the wrong values, and the rules over all other options are checked.
        """
        faults: list[ErrorDetails] = []
        try:
            settings = handler(data)
        except ValidationError as error:
            # default_factory_not_called only follows from a wrong max_connections.
            faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
            settings = handler({name: data[name] for name in data.keys() - {fault["loc"][0] for fault in faults}})
        wrong = {fault["loc"][0] for fault in faults}
        conflicts = [
            {"type": "value_error", "loc": names[:1], "input": None, "ctx": {"error": ValueError(message)}}
            for names, message in _conflicts(settings)
            if wrong.isdisjoint(names)
        ]
        if faults or conflicts:
            raise ValidationError.from_exception_data(cls.__name__, [*faults, *conflicts])  # type: ignore[list-item]
        return settings


def _conflicts(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the options that conflict, the one to blame first, and what is wrong."""
    for address in settings.listen:
        if address != TAILSCALE and (fault := addresses.listen_fault(address, settings.allow_any_address)):
            yield ("listen", "allow_any_address"), fault
    if fault := addresses.upstream_fault(settings.upstream, settings.allow_any_upstream):
        yield ("upstream", "allow_any_upstream"), fault
    if addresses.is_loop(settings.upstream, settings.listen, settings.port):
        yield ("upstream", "listen", "port"), "is an address on which the proxy itself listens; choose another --port"
    if settings.serve_port and addresses.is_loop(settings.upstream, ("127.0.0.1",), settings.serve_port):
        yield ("serve_port", "upstream"), "is Ollama's port; choose another"
    if settings.serve_port == settings.port and addresses.on_loopback(settings.listen):
        yield ("serve_port", "port", "listen"), "is where the proxy itself listens; choose another"
    if settings.access_log == settings.diagnostics_log:
        yield ("diagnostics_log", "access_log"), "is the access log; choose a separate file"


OPTIONS: Mapping[str, str] = {name: field.description or "" for name, field in Settings.model_fields.items()}
"""The purpose of each option."""

FILE_ONLY = frozenset({"ollama_env"})  # a table has no good spelling on a command line
SPELLED = tuple(option for option in OPTIONS if option not in FILE_ONLY)  # with a flag and a variable


def written(settings: Settings) -> Mapping[str, str]:
    """Return the value of each option as a person would write it."""
    return settings.model_dump(mode="json")


def flag(option: str) -> str:
    """Return the flag that sets `option`."""
    return f"--{option.replace('_', '-')}"


def variable(option: str) -> str:
    """Return the environment variable that sets `option`."""
    return f"PROXY_{option.upper()}"


class Problem(NamedTuple):
    """One mistake; as text it is an error line."""

    option: str
    value: str  # as given, escaped
    source: str  # "flag --port", "environment PROXY_PORT", "file <path>, line 5" or "default"
    message: str

    def __str__(self) -> str:
        """Return option, value, source and fault."""
        return f"{self.option} = {self.value} ({self.source}): {self.message}"


class SettingsError(Exception):
    """Settings that the proxy can't serve with; `problems` has all mistakes."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, the source of each value, and warnings."""

    settings: Settings
    sources: Mapping[str, str]
    warnings: tuple[str, ...]


class _Given(NamedTuple):
    value: object
    source: str


def load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    """Return the settings that flags (option -> text), environment and TOML file add up to. Reads that file only.

    A flag that isn't an option's is one of the mistakes. SettingsError has every mistake.
    """
    variables = EnvSettingsSource(Settings)
    variables.env_vars = {name: environ[variable(name)] for name in SPELLED if variable(name) in environ}
    sources = [
        (
            InitSettingsSource(Settings, dict(flags)),
            lambda name: f"flag {flag(name) if name in OPTIONS else kinds.shown(name)}",
        ),
        (variables, lambda name: f"environment {variable(name)}"),
        (InitSettingsSource(Settings, dict(default_paths(environ))), lambda _: "default"),
    ]
    table, origin, problems = _read_file(_gathered(sources)["config"])
    sources.insert(2, (InitSettingsSource(Settings, table), origin))
    given = _gathered(sources)
    try:
        settings = Settings(_build_sources=(tuple(source for source, _ in sources), {}))
    except ValidationError as error:
        problems += [_judged(fault, given) for fault in error.errors()]
    if problems:
        raise SettingsError(tuple(sorted(problems, key=lambda problem: problem.option in OPTIONS)))
    known = {variable(option) for option in SPELLED}
    odd = [name for name in environ if name.startswith("PROXY_") and name not in known]
    return Loaded(
        settings,
        {option: given[option].source if option in given else "default" for option in OPTIONS},
        tuple(f"environment {kinds.printable(name)} sets nothing{config_file.nearest(name, known)}" for name in odd),
    )


def _gathered(sources: Sequence[tuple[PydanticBaseSettingsSource, Callable[[str], str]]]) -> dict[str, _Given]:
    """Return each option that has a value, with the value of the first source that sets it."""
    return {name: _Given(value, of(name)) for source, of in reversed(sources) for name, value in source().items()}


def _read_file(config: _Given) -> tuple[dict[str, Any], Callable[[str], str], list[Problem]]:
    """Return what the TOML file sets, in which line, and what is wrong with it; only the default file may be absent."""
    octets = b""

    def origin(name: str) -> str:
        line = config_file.line_of(octets, name)
        return f"file {kinds.printable(path)}" + (f", line {line}" if line else "")

    try:
        path = kinds.path(config.value)
    except ValueError:
        return {}, origin, []  # the value is checked with the others
    try:
        if config.source == "default" and not os.path.exists(path):
            return {}, origin, []
        octets = config_file.read(path)
        table = config_file.parse(octets)
    except OSError as error:
        message = f"can't be read: {error.strerror}"
    except config_file.ConfigFileError as error:
        message = str(error)
    else:
        wrong = [*config_file.take_misplaced(table, octets, OPTIONS, FILE_ONLY)]
        if "config" in table:
            wrong.append(("config", table.pop("config"), "a file can't name itself; use --config or PROXY_CONFIG"))
        return table, origin, [_problem(name, _Given(value, origin(name)), text) for name, value, text in wrong]
    return {}, origin, [_problem("config", _Given(path, config.source), message)]


def _judged(fault: ErrorDetails, given: Mapping[str, _Given]) -> Problem:
    """Return the meaning of a pydantic error for a user."""
    option = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        names = map(flag, SPELLED) if given[option].source.startswith("flag") else OPTIONS
        return _problem(option, given[option], f"no such option{config_file.nearest(option, names)}")
    found = given.get(option) or _Given(written(Settings())[option], "default")
    return _problem(option, found, kinds.said(fault, Settings.model_fields[option]))


def _problem(option: str, given: _Given, message: str) -> Problem:
    return Problem(kinds.shown(option), kinds.quoted(given.value), given.source, message)


def needing_restart(old: Settings, new: Settings) -> tuple[str, ...]:
    """Return the changed options that a reload can't apply, in their order."""
    return tuple(o for o in OPTIONS if o in RESTART_ONLY and getattr(old, o) != getattr(new, o))
