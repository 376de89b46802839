"""Settings: where values come from, what is refused, and that all mistakes are reported at once."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.serving.descriptors import connections_for, descriptors_for
from proxy.settings.kinds import KIB, MIB, quoted
from proxy.settings.settings import (
    FILE_ONLY,
    OPTIONS,
    RESTART_ONLY,
    SPELLED,
    Settings,
    SettingsError,
    default_paths,
    flag,
    load,
    needing_restart,
    variable,
    written,
)

# Per option: three texts in TOML's spelling, for file, environment and flag, and what the last of them means.
VALUES = {
    "listen": (["127.0.0.2"], "127.0.0.3", "127.0.0.4,::1", ("127.0.0.4", "::1")),
    "port": (2001, "2002", "2003", 2003),
    "serve_port": (2004, "2005", "2006", 2006),
    "upstream": ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3", "http://127.0.0.1:3"),
    "access_log": ("/tmp/a", "/tmp/b", "-", "-"),
    "diagnostics_log": ("/tmp/c", "/tmp/d", "/tmp/e", "/tmp/e"),
    "log_level": ("debug", "warning", "error", "error"),
    "log_max_size": (2 * MIB, "3MiB", "4MiB", 4 * MIB),
    "log_keep": (1, "2", "3", 3),
    "allow": (["GET /"], "GET /api/ps", "POST /api/chat,POST /api/embed", ("POST /api/chat", "POST /api/embed")),
    "allowed_hosts": (["a.example"], "b.example", "c.example", ("c.example",)),
    "allowed_origins": (["https://a.example"], "https://b.example", "https://c.example", ("https://c.example",)),
    "allowed_peers": (["10.0.0.0/8"], "10.1.0.0/16", "10.2.0.0/16", ("10.2.0.0/16",)),
    "allow_any_address": (True, "false", "true", True),
    "allow_any_upstream": (True, "false", "true", True),
    "forward_credentials": (True, "false", "true", True),
    "max_body": (2 * MIB, "3MiB", "4MiB", 4 * MIB),
    "max_head": (2048, "4KiB", "8KiB", 8 * KIB),
    "max_connections": (10, "20", "30", 30),
    "max_connections_per_client": (3, "2", "0", 0),
    "head_timeout": (1, "2s", "1m", 60.0),
    "body_timeout": (1.5, "2s", "1h", 3600.0),
    "stall_timeout": ("3s", "2s", "0.5", 0.5),
    "connect_timeout": (1, "2", "3s", 3.0),
    "drain_timeout": (1, "2s", "0", 0.0),
    "parallel": (2, "auto", "4", 4),
    "swap_after": (1, "2s", "0", 0.0),
    "max_waiting": (1, "2", "3", 3),
    "ping_after": (1, "2s", "0", 0.0),
    "ping_every": (1, "2s", "3s", 3.0),
    "stuck_after": (1, "2s", "0", 0.0),
    "keep_awake": (False, "true", "false", False),
    "native_options": ("refuse", "pass", "REFUSE", "refuse"),
    "capability": ("a.example/cap/x", "b.example/cap/x", "c.example/cap/x", "c.example/cap/x"),
    "capability_may_open_rows": (True, "false", "true", True),
    "local_only": (False, "true", "false", False),
}


def read(option: str, given: object) -> object:
    """Return the value of an option for which a source gives that."""
    return getattr(Settings(**{option: given}), option)


def toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def mistakes(flags=None, environ=None) -> dict[str, tuple[str, str, str]]:
    """Return the problems of a load that must fail: option -> value, source, message."""
    with pytest.raises(SettingsError) as caught:
        load(flags or {}, {"HOME": "/nowhere", **(environ or {})})
    return {problem.option: tuple(problem)[1:] for problem in caught.value.problems}


@pytest.fixture
def config(tmp_path):
    """Return a function that writes a TOML file and returns the flag that names it."""

    def write(text: str | bytes) -> dict[str, str]:
        path = tmp_path / "config.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return {"config": str(path)}

    return write


# --- sources ----------------------------------------------------------------------------------------------------------


def test_every_option_has_values_here():
    """The table above leaves out no option but `config`, which a file can't set, and those that only a file can."""
    assert {*VALUES, "config"} == set(OPTIONS) - FILE_ONLY == set(SPELLED)


@pytest.mark.parametrize("option", VALUES)
def test_flag_beats_environment_beats_file_beats_default(option, config):
    """Each option can be set by each source; the nearest one counts, and is named."""
    in_file, in_environment, in_flag, meant = VALUES[option]
    named = config(f"{option} = {toml(in_file)}\n")
    environ = {"HOME": "/nowhere", variable(option): in_environment}
    steps = [
        ({}, {"HOME": "/nowhere"}, "default"),
        (named, {"HOME": "/nowhere"}, f"file {named['config']}, line 1"),
        (named, environ, f"environment {variable(option)}"),
        (named | {option: in_flag}, environ, f"flag {flag(option)}"),
    ]
    loads = [load(flags, variables) for flags, variables, _ in steps]
    assert [loaded.sources[option] for loaded in loads] == [source for *_, source in steps]
    values = [getattr(loaded.settings, option) for loaded in loads]
    assert values[1:] == [read(option, in_file), read(option, in_environment), meant]
    assert values[0] not in values[1:2]


@pytest.mark.parametrize("option", OPTIONS)
def test_defaults_are_values(option):
    """Every default is a value that could be given, and is shown as one."""
    assert option in FILE_ONLY or read(option, written(Settings())[option]) == getattr(Settings(), option)


def test_only_the_file_has_tables(config):
    """`ollama_env` is a table in the file. It isn't a variable, and not a flag."""
    loaded = load(
        config('[ollama_env]\nOLLAMA_MODELS = "/x"\nOLLAMA_NUM_PARALLEL = 2\nOLLAMA_DEBUG = true\n'),
        {"HOME": "/nowhere", "PROXY_OLLAMA_ENV": "A=1"},
    )
    pairs = (("OLLAMA_MODELS", "/x"), ("OLLAMA_NUM_PARALLEL", "2"), ("OLLAMA_DEBUG", "true"))
    assert loaded.settings.ollama_env == pairs
    assert loaded.sources["ollama_env"].startswith("file ")
    assert loaded.warnings[0].startswith("environment PROXY_OLLAMA_ENV sets nothing")
    assert mistakes({"--ollama-env": "A=1"})["--ollama-env"][2].startswith("no such option")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('ollama_env = "A=1"', "is not a table whose values are strings, numbers or booleans", id="text"),
        pytest.param("ollama_env = [1]", "is not a table", id="list"),
        pytest.param('[ollama_env]\n"A B" = "1"', 'has "A B", which is not a valid name of a variable', id="name"),
        pytest.param(
            "[ollama_env]\nA = []", "has a list for A; a value is a string, a number or a boolean", id="value"
        ),
        pytest.param(
            "[ollama_env.A]\nB = 1", "has a table for A; a value is a string, a number or a boolean", id="table"
        ),
        pytest.param("[ollama_env]\nA = 2026-11-23", "has a date or time for A", id="date"),
        pytest.param('[ollama_env]\nA = "\\u0000"', "has a string for A that no variable can hold", id="nul"),
        pytest.param(
            '[ollama_env]\nOLLAMA_HOST = "0.0.0.0"', "has OLLAMA_HOST, which only the proxy may set", id="host"
        ),
        pytest.param('[ollama_env]\nOLLAMA_NO_CLOUD = "0"', "has OLLAMA_NO_CLOUD", id="no_cloud"),
        pytest.param('[ollama_env]\nHOME = "/"', "has HOME", id="home"),
    ],
)
def test_wrong_table(text, message, config):
    """What is no environment, or would undo what install promises, is a mistake."""
    assert message in mistakes(config(text))["ollama_env"][2]


PROXY_URL = "http://alice:hunter2@proxy:3128"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f'[ollama_env]\nHTTPS_PROXY = "{PROXY_URL}"\nTOKEN = "hunter2"\nA = []', id="next_to_a_wrong_one"),
        pytest.param(f'[ollama-env]\nHTTPS_PROXY = "{PROXY_URL}"\nTOKEN = "hunter2"', id="misspelt_table"),
        pytest.param(f'[[ollama_env]]\nHTTPS_PROXY = "{PROXY_URL}"\nTOKEN = "hunter2"', id="list_of_tables"),
        pytest.param('[ollama_env]\nTOKEN = ["hunter2"]', id="in_the_wrong_one"),
        pytest.param(f'ollama_env = "HTTPS_PROXY={PROXY_URL}"', id="url_in_a_text"),
        pytest.param(f'upstream = "{PROXY_URL}"', id="upstream"),
        pytest.param(f'allowed_origins = ["{PROXY_URL}/x"]', id="origin"),
        pytest.param(f'[ollama_env]\nHTTPS_PROXY = "{PROXY_URL}', id="line_that_is_no_toml"),
    ],
)
def test_errors_show_no_secrets(text, config):
    """An error shows no value of a table, and no user or password of a URL, because people paste errors."""
    with pytest.raises(SettingsError) as error:
        load(config(text), {"HOME": "/nowhere"})
    assert "hunter2" not in str(error.value)


def test_written_settings_show_no_password(config):
    """What `--check` prints of Ollama's variables has no password in it; what Ollama gets has."""
    settings = load(config(f'[ollama_env]\nHTTPS_PROXY = "{PROXY_URL}"\n'), {"HOME": "/nowhere"}).settings
    assert written(settings)["ollama_env"] == '{ HTTPS_PROXY = "http://*************@proxy:3128" }'
    assert dict(settings.ollama_env) == {"HTTPS_PROXY": PROXY_URL}


def test_sources_name_every_option():
    """The source of each option is shown, even of defaults."""
    assert list(load({}, {"HOME": "/nowhere"}).sources) == list(OPTIONS)


@pytest.mark.parametrize(
    ("flags", "environ", "source"),
    [
        pytest.param({"config": "{}"}, {}, "flag --config", id="flag"),
        pytest.param({}, {"PROXY_CONFIG": "{}"}, "environment PROXY_CONFIG", id="environment"),
    ],
)
def test_named_file_is_read(flags, environ, source, config):
    """The TOML file may be named by flag or environment."""
    path = config("port = 5")["config"]
    loaded = load(
        {name: text.format(path) for name, text in flags.items()},
        {name: text.format(path) for name, text in environ.items()},
    )
    assert loaded.settings.port == 5
    assert loaded.settings.config == path
    assert loaded.sources["config"] == source


def test_file_in_the_default_place_is_read(tmp_path):
    """The TOML file in its default place counts without being named."""
    environ = {"HOME": str(tmp_path)}
    path = tmp_path / default_paths(environ)["config"]
    path.parent.mkdir(parents=True)
    path.write_text("port = 5")
    assert load({}, environ).sources["port"] == f"file {path}, line 1"


def test_half_of_max_connections_is_the_default_per_client():
    """The limit per client follows `max_connections`, and never falls to 0, which would mean none."""
    assert Settings(max_connections=9).max_connections_per_client == 4
    assert Settings(max_connections=1).max_connections_per_client == 1
    assert Settings(max_connections=9, max_connections_per_client=0).max_connections_per_client == 0


@pytest.mark.parametrize(
    ("environ", "platform", "config", "access_log"),
    [
        pytest.param(
            {"HOME": "/Users/a", "XDG_CONFIG_HOME": "/x"},
            "darwin",
            "/Users/a/Library/Application Support/remote-ollama-proxy/config.toml",
            "/Users/a/Library/Logs/remote-ollama-proxy/access.log",
            id="macos",
        ),
        pytest.param(
            {"HOME": "/home/a"},
            "linux",
            "/home/a/.config/remote-ollama-proxy/config.toml",
            "/home/a/.local/state/remote-ollama-proxy/access.log",
            id="linux",
        ),
        pytest.param(
            {"HOME": "/home/a", "XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"},
            "linux",
            "/c/remote-ollama-proxy/config.toml",
            "/s/remote-ollama-proxy/access.log",
            id="linux_xdg",
        ),
        pytest.param(
            {"HOME": "/home/a", "XDG_CONFIG_HOME": "c", "XDG_STATE_HOME": ""},
            "linux",
            "/home/a/.config/remote-ollama-proxy/config.toml",
            "/home/a/.local/state/remote-ollama-proxy/access.log",
            id="linux_relative_xdg_is_ignored",
        ),
    ],
)
def test_default_paths(environ, platform, config, access_log):
    """File and log are where the platform's users look for them."""
    assert default_paths(environ, platform) == {"config": config, "access_log": access_log}


def test_user_without_a_home(monkeypatch):
    """A missing home folder is no mistake: the paths begin at the root, and an unwritable one is reported."""
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert default_paths({}, "linux")["access_log"] == "/.local/state/remote-ollama-proxy/access.log"


def test_nothing_else_is_read(tmp_path, monkeypatch):
    """Neither a .env file nor the process's own environment is a source."""
    (tmp_path / ".env").write_text("PROXY_PORT=5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROXY_PORT", "6")
    assert load({}, {"HOME": str(tmp_path)}).settings.port == 11434
    assert Settings().port == 11434


def test_settings_are_frozen():
    """No room can change an option for the others."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 5


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("port", "0", "is out of range: 1 to 65535"),
        ("port", "65536", "is out of range: 1 to 65535"),
        ("port", "", "is not a whole number"),
        ("max_body", "12XB", "is not a size"),
        ("max_body", "0", "is out of range: 1KiB to 16GiB"),
        ("max_head", "1023", "is out of range: 1KiB to 1MiB"),
        ("max_connections", "0", "is out of range: 1 to 100000"),
        ("max_connections_per_client", "-1", "is out of range: 0 to 100000"),
        ("head_timeout", "0", "is out of range: 0.1s to 5m"),
        ("body_timeout", "2h", "is out of range: 0.1s to 1h"),
        ("stall_timeout", "soon", "is not a duration"),
        ("connect_timeout", "61", "is out of range: 0.1s to 1m"),
        ("drain_timeout", "-1", "is out of range: 0s to 1h"),
        ("log_level", "\udcff", "is not valid UTF-8"),
        ("log_level", "loud", "is not debug, info, warning or error"),
        ("log_keep", "0", "is out of range: 1 to 99"),
        ("log_max_size", "1KiB", "is out of range: 1MiB to 1GiB"),
        ("allow", "POST /api/pull", "no setting opens `POST /api/pull`; `allow` takes: GET /, HEAD /,"),
        ("allowed_hosts", "*.example", "`*.example` is not a host name"),
        ("allowed_origins", "*", "`*` would let every web page use this proxy"),
        ("allowed_peers", "home", "names home, which is not a network"),
        ("forward_credentials", "maybe", "is not true or false"),
        ("access_log", "", "is not a path"),
        ("config", "-", "is not a path"),
        ("listen", "mac.local", "names mac.local; it takes `tailscale`, `localhost` or IP addresses"),
        ("listen", "0.0.0.0", "0.0.0.0 is every address of this machine"),
        ("listen", "192.168.1.7", "192.168.1.7 is an address on a LAN"),
        ("listen", "8.8.8.8", "8.8.8.8 is a public address"),
        ("upstream", "https://127.0.0.1:11434", "is not a URL of the form http://127.0.0.1:11434"),
        ("upstream", "http://192.168.1.7:11434", "is not on loopback"),
    ],
)
def test_wrong_value(option, text, message):
    """An invalid value is reported with option, value and source."""
    found = mistakes({}, {"PROXY_PORT": "21434", variable(option): text})
    assert list(found) == [option]
    value, source, noted = found[option]
    assert (value, source) == (quoted(text), f"environment {variable(option)}")
    assert noted.startswith(message)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({"listen": "0.0.0.0,192.168.1.7,8.8.8.8", "port": "5", "allow_any_address": "true"}, id="address"),
        pytest.param({"upstream": "http://192.168.1.7:11434", "allow_any_upstream": "true"}, id="upstream"),
    ],
)
def test_refused_addresses_can_be_allowed(flags):
    """What is refused as dangerous, and not as senseless, is served when the owner says so."""
    assert load(flags, {"HOME": "/nowhere"}).settings


@pytest.mark.parametrize("allowed", ["true", "false"])
def test_proxy_never_forwards_to_itself(allowed):
    """An upstream that is a listening address is an error, whatever is allowed."""
    flags = {"listen": "127.0.0.1", "upstream": "http://127.0.0.1:11434", "allow_any_upstream": allowed}
    assert mistakes(flags)["upstream"][2] == "is an address on which the proxy itself listens; choose another --port"


def test_tailscale_is_the_default():
    """With nothing set, the proxy listens on this machine's own addresses in its tailnet."""
    assert load({}, {"HOME": "/nowhere"}).settings.listen == ("tailscale",)


def test_two_logs_need_two_files():
    """Two logs in one file would rotate each other away."""
    assert "diagnostics_log" in mistakes({"access_log": "/tmp/x", "diagnostics_log": "/tmp/../tmp/x"})
    assert load({"access_log": "-", "diagnostics_log": "-"}, {}).settings.diagnostics_log is None


def test_all_mistakes_are_told_at_once(config):
    """One run reports all wrong values, unknown names and dangerous addresses, from all sources."""
    flags = config('max_head = "x"\nprot = 5\n') | {"listen": "0.0.0.0,8.8.8.8", "--max-bdy": "5MiB"}
    environ = {"PROXY_MAX_CONNECTIONS": "0", "PROXY_UPSTREAM": "http://192.168.1.7:1"}
    found = mistakes(flags, environ)
    assert set(found) == {"max_head", "prot", "listen", "--max-bdy", "max_connections", "upstream"}
    with pytest.raises(SettingsError) as caught:
        load(flags, environ)
    assert str(caught.value).count("listen = ") == 2


def test_mistake_as_text():
    """A mistake reads as one line: option, value, source, what is wrong."""
    with pytest.raises(SettingsError) as caught:
        load({}, {"PROXY_MAX_BODY": "12XB"})
    assert str(caught.value) == (
        'max_body = "12XB" (environment PROXY_MAX_BODY): '
        "is not a size: bytes, or with a unit as in 64KiB, 64MiB or 1GiB"
    )


def test_values_are_shown_escaped():
    """Whatever a value or an unknown flag holds, no message can steer a terminal, and each stays short."""
    environ = {"PROXY_LISTEN": "\x1b[31m\x9b", "PROXY_LOG_LEVEL": "x" * 9999, "PROXY_ALLOW": "\udcff\x7f"}
    environ |= {"PROXY_ALLOWED_HOSTS": "!" * 9999, "PROXY_ALLOWED_PEERS": "x" * 9999}
    found = mistakes({"\x1b[2J": "1", "x" * 9999: "1"}, environ)
    assert all(part.isprintable() and len(part) <= 601 for parts in found.values() for part in parts)


def test_overridden_value_is_not_judged(config):
    """A wrong value that a nearer source replaces does no harm."""
    assert load(config("port = 0") | {"port": "5"}, {}).settings.port == 5


@pytest.mark.parametrize(
    ("text", "option", "message"),
    [
        pytest.param("max_bdy = 5", "max_bdy", "no such option; did you mean max_body?", id="near"),
        pytest.param("[server]\na = 5", "server", "no such table", id="table"),
        pytest.param("PORT = 5", "PORT", "no such option", id="letter_case_counts"),
        pytest.param('config = "x"', "config", "a file can't name itself; use --config or PROXY_CONFIG", id="itself"),
    ],
)
def test_unknown_key_in_the_file(text, option, message, config):
    """A key that sets nothing is an error, with the nearest name if there is one."""
    flags = config(text)
    _, source, noted = mistakes(flags)[option]
    assert source.removesuffix(", line 1") == f"file {flags['config']}"
    assert noted == message


@pytest.mark.parametrize(
    ("text", "where"),
    [
        pytest.param("# a comment\n\nport = 0\n", ", line 3", id="number"),
        pytest.param('  "port"  =  0', ", line 1", id="quoted"),
        pytest.param("log_keep = 6\r\nport = 0\r\n", ", line 2", id="windows"),
    ],
)
def test_line_of_the_file(text, where, config):
    """The source of a value in the file is its line."""
    flags = config(text)
    assert mistakes(flags)["port"][1] == f"file {flags['config']}{where}"


def test_line_of_a_table(config):
    """The source of a table in the file is the line of its first header, also of one that isn't an option."""
    flags = config("# a comment\n[ollama_env]\nA = 1\n[[acess]]\n[[acess]]\n")
    assert mistakes(flags)["acess"][1:] == (f"file {flags['config']}, line 4", "no such option; did you mean access?")
    flags = config("# a comment\n[ollama_env]\nA = 1\n")
    assert load(flags, {"HOME": "/nowhere"}).sources["ollama_env"] == f"file {flags['config']}, line 2"


def test_unknown_flag():
    """A flag that sets nothing is an error; so is the TOML spelling of one that does."""
    found = mistakes({"--max-bdy": "5", "--max_body": "6", "--zzz": ""})
    assert found["--max-bdy"] == ('"5"', "flag --max-bdy", "no such option; did you mean --max-body?")
    assert found["--max_body"] == ('"6"', "flag --max_body", "no such option; did you mean --max-body?")
    assert found["--zzz"] == ('""', "flag --zzz", "no such option")


def test_unknown_variable_is_a_warning():
    """A variable that looks like an option's may belong to another program, and its value may be a secret."""
    environ = {"HOME": "/nowhere", "PROXY_MAX_BDY": "s3cret", "PROXY_ZZZZZZ": "1", "NO_PROXY": "x", "PROXY_port": "5"}
    loaded = load({}, environ)
    assert loaded.warnings == (
        "environment PROXY_MAX_BDY sets nothing; did you mean PROXY_MAX_BODY?",
        "environment PROXY_ZZZZZZ sets nothing",
        "environment PROXY_port sets nothing; did you mean PROXY_PORT?",
    )
    assert loaded.settings.port == 11434


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "port = 5\nlisten 7\n",
            "is not TOML: expected '=' after a key in a key/value pair, in line 2, column 8: `listen 7`",
            id="syntax",
        ),
        pytest.param(
            "port = 5\nport = 6\n", "is not TOML: cannot overwrite a value, in line 2, column 9: `port = 6`", id="twice"
        ),
        pytest.param(b"port = 5\n# \xff\n", r"is not UTF-8 in line 2: `# \xff`: save it as plain", id="encoding"),
    ],
)
def test_broken_file(text, message, config):
    """A file that isn't TOML is reported with the line, together with other mistakes."""
    flags = config(text)
    found = mistakes(flags | {"port": "0"})
    assert set(found) == {"config", "port"}
    value, source, noted = found["config"]
    assert (value, source) == (f'"{flags["config"]}"', "flag --config")
    assert noted.startswith(message)


@pytest.mark.parametrize(
    ("text", "option", "message"),
    [
        pytest.param(
            'port = 5\n[ollama_env]\nA = 1\nmax_body = "128MiB"\n',
            "max_body",
            "is in line 4, below [ollama_env], so it isn't an option of the proxy: write it above [ollama_env]",
            id="below_a_table",
        ),
        pytest.param(
            '[ ollama_env ]\n\n  "allow" = ["GET /"]\n', "allow", "is in line 3, below [ollama_env]", id="a_list"
        ),
        pytest.param("[ollama_env]\nport = 5\n", "port", "is in line 2, below [ollama_env]", id="a_short_name"),
        pytest.param(
            '[ollama_env]\nallowed-hosts = "a"\n',
            "allowed-hosts",
            "write it above [ollama_env] as allowed_hosts",
            id="dash",
        ),
        pytest.param(
            '[ollama_env]\nMax_boddy = "1MiB"\n', "Max_boddy", "write it above [ollama_env] as max_body", id="misspelt"
        ),
        pytest.param("ollama_env = { port = 5 }\n", "port", "is in [ollama_env], so", id="inline"),
        pytest.param("ollama_env.port = 5\n", "port", "is in [ollama_env], so", id="dotted"),
        pytest.param(
            "[proxy]\nport = 5\n",
            "proxy",
            "no such table; options belong at the top of the file, above all tables, without [proxy]",
            id="unknown_table",
        ),
        pytest.param("[ollama-env]\nA = 1\n", "ollama-env", "no such table; did you mean ollama_env?", id="near_table"),
    ],
)
def test_option_below_a_table(text, option, message, config):
    """An option that TOML gives to a table is a mistake that names both and says where to write it."""
    found = mistakes(config(text))
    assert set(found) == {option}
    assert message in found[option][2]


@pytest.mark.parametrize(
    "name", ["PORT", "https_proxy", "OLLAMA_MAX_LOADED_MODELS", "no_proxy", "LISTEN_FDS", "http_proxy"]
)
def test_variables_that_look_like_options(name, config):
    """A variable for Ollama stays one, however near an option it sounds."""
    assert load(config(f'[ollama_env]\n{name} = "1"\n'), {"HOME": "/nowhere"}).settings.ollama_env == ((name, "1"),)


def test_name_without_end(config):
    """The name of an unknown option is shown cut, as its value is."""
    assert set(mistakes(config(f"{'p' * 5000} = 1\n"))) == {"p" * 200 + "…"}


def test_absent_file(tmp_path):
    """Only a file that was named must be there; what is there must be readable."""
    assert load({}, {"HOME": str(tmp_path)}).sources["config"] == "default"
    named = {"config": str(tmp_path / "none.toml")}
    assert mistakes(named)["config"][2] == "can't be read: No such file or directory"
    assert mistakes({"config": str(tmp_path)})["config"][2] == "can't be read: Is a directory"
    os.makedirs(default_paths({"HOME": str(tmp_path)})["config"])
    with pytest.raises(SettingsError, match="can't be read: Is a directory"):
        load({}, {"HOME": str(tmp_path)})


JUNK = st.one_of(
    st.text(st.characters(codec=None)),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.datetimes(),
    st.lists(st.one_of(st.text(max_size=9), st.integers()), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@given(st.sampled_from(list(OPTIONS)), JUNK)
def test_no_value_raises_anything_else(option, value):
    """Whatever a source gives is a value that can be written or a mistake, never another exception."""
    with suppress(SettingsError):
        assert isinstance(written(load({option: value}, {"HOME": "/nowhere"}).settings)[option], str)


# --- reload and descriptors -------------------------------------------------------------------------------------------


def test_needing_restart():
    """Sockets and logs are opened once: of what changed, these options are named, the others apply."""
    old = Settings()
    new = Settings(port=5, listen="::1", access_log="-", max_body="1MiB", head_timeout="1s", allow="GET /")
    assert needing_restart(old, new) == ("listen", "port", "access_log")
    assert needing_restart(old, old) == ()
    assert set(OPTIONS) >= RESTART_ONLY


@given(st.integers(1, 100_000))
def test_descriptors_and_connections_agree(connections):
    """What so many connections need is enough for exactly so many."""
    assert connections_for(descriptors_for(connections)) == connections
    assert connections_for(descriptors_for(connections) - 1) == max(1, connections - 1)
