"""The access rules in the settings file: each mistake is reported with the rule's number, the key and the line."""

from __future__ import annotations

import tomllib

import pytest
from pydantic import ValidationError

from proxy.policy.rule_keys import RuleSpec
from proxy.settings.settings import Settings, SettingsError, load, written

HOME = {"HOME": "/nowhere"}
GOOD = """\
port = 21500

[[access]]
who = ["alice@example.com", "tag:agents", "kids-ipad", "node:nABC", "100.64.0.7", "self"]
models = ["qwen3:*", "gemma3:4b"]
also = ["POST /api/chat"]
max_active = 2

[[access]]
who = ["*"]
models = ["gemma3:4b"]

[ollama_env]
OLLAMA_DEBUG = true
"""
RULES = (
    RuleSpec(
        ("alice@example.com", "tag:agents", "kids-ipad", "node:nABC", "100.64.0.7", "self"),
        ("qwen3:*", "gemma3:4b"),
        ("POST /api/chat",),
        2,
    ),
    RuleSpec(("*",), ("gemma3:4b",)),
)


@pytest.fixture
def problems(tmp_path):
    """Return a function that loads a settings file and returns its problems, as lines without the file's path."""

    def found(text: str) -> list[str]:
        path = tmp_path / "config.toml"
        path.write_text(text)
        with pytest.raises(SettingsError) as error:
            load({"config": str(path)}, HOME)
        return [str(problem).replace(str(path), "FILE") for problem in error.value.problems]

    return found


def test_rules_are_read(tmp_path):
    """The rules of a file are read in their order, between the options and the table of variables."""
    path = tmp_path / "config.toml"
    path.write_text(GOOD)
    loaded = load({"config": str(path)}, HOME)
    assert loaded.settings.access == RULES
    assert loaded.settings.port == 21500
    assert loaded.settings.ollama_env == (("OLLAMA_DEBUG", "true"),)


def test_written_rules_can_be_read():
    """What `--check` shows of the rules is TOML that means the same."""
    settings = Settings(access=RULES)
    again = tomllib.loads(f"access = {written(settings)['access']}")
    assert Settings(access=again["access"]) == settings
    assert written(Settings())["access"] == ""


def test_rules_are_written_as_people_write_them():
    """Rules are shown with the letters that the owner wrote, without keys that say nothing."""
    settings = Settings(access=[RuleSpec(("zoë@example.com", "self"), ("*",)), RuleSpec(("*",), ("tiny",), (), 2)])
    assert written(settings)["access"] == (
        '[{ who = ["zoë@example.com", "self"], models = ["*"] }, { who = ["*"], models = ["tiny"], max_active = 2 }]'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            '[[access]]\nwho = ["*"]\n',
            ["access, rule 1 = a table (file FILE, line 1): has no `models`"],
            id="no models",
        ),
        pytest.param(
            '[[access]]\nmodels = ["*"]\n', ["access, rule 1 = a table (file FILE, line 1): has no `who`"], id="no who"
        ),
        pytest.param(
            '[[access]]\nwho = []\nmodels = ["*"]\n',
            ["access, rule 1, who = [] (file FILE, line 2): names nobody: write a login"],
            id="an empty who",
        ),
        pytest.param(
            '[[access]]\nwho = ["*"]\nmodels = []\n',
            ['access, rule 1, models = [] (file FILE, line 3): names no model: write ["*"]'],
            id="empty models",
        ),
        pytest.param(
            '[[access]]\nwho = "alice@example.com"\nmodels = ["*"]\n',
            ['access, rule 1, who = "alice@example.com" (file FILE, line 2): is not a list; write ["alice@'],
            id="a text",
        ),
        pytest.param(
            GOOD.replace('["gemma3:4b"]', '["gem ma", "ok", "a//b"]'),
            ['access, rule 2, models = ["gem ma", "ok", "a//b"] (file FILE, line 11): `gem ma`, `a//b` can\'t be read'],
            id="a bad pattern in the second rule",
        ),
        pytest.param(
            '[[access]]\nwho = ["kids *", "self"]\nmodels = ["*"]\n',
            ['access, rule 1, who = ["kids *", "self"] (file FILE, line 2): `kids *` can\'t be read: `*` stands alone'],
            id="a bad entry",
        ),
        pytest.param(
            '[[access]]\nwho = ["", "a@b@c", "kids *"]\nmodels = ["*"]\n',
            [
                'access, rule 1, who = ["", "a@b@c", "kids *"] (file FILE, line 2): ``, `a@b@c` can\'t be read: write '
                "a login (`alice@example.com`), a tag (`tag:agents`), the name of a device (`kids-ipad`), "
                "`node:STABLEID`, an address or network, `self` or `*`; `kids *` can't be read: `*` stands alone"
            ],
            id="bad entries, each advice once",
        ),
        pytest.param(
            '[[access]]\nwho = ["*"]\nmodels = "a, b"\n',
            ['access, rule 1, models = "a, b" (file FILE, line 3): is not a list; write ["a", "b"]'],
            id="a list in one text",
        ),
        pytest.param(
            '[[access]]\nwho = ["*"]\nmodels = ["*"]\nalso = ["POST /api/pull"]\n',
            ['access, rule 1, also = ["POST /api/pull"] (file FILE, line 4): no setting opens `POST /api/pull`'],
            id="a row that can't be opened",
        ),
        pytest.param(
            '[[access]]\nwho = ["*"]\nmodels = ["*"]\nmax_active = 0\n',
            ["access, rule 1, max_active = 0 (file FILE, line 4): is not a whole number from 1 to 1024"],
            id="a number out of range",
        ),
        pytest.param(
            '[[access]]\nwho = ["*"]\nmodels = ["*"]\nmax_active = true\n',
            ["access, rule 1, max_active = true (file FILE, line 4): is not a whole number"],
            id="a switch for a number",
        ),
        pytest.param(
            '[[access]]\nwho = ["*"]\nmodel = ["*"]\nmodels = ["*"]\n',
            ['access, rule 1, model = ["*"] (file FILE, line 3): is no key of a rule; did you mean models?'],
            id="a misspelt key",
        ),
        pytest.param(
            '[[access]]\nwho = ["*"]\nmodels = ["*"]\nport = 5\n',
            ["access, rule 1, port = 5 (file FILE, line 4): is an option, and no key of a rule: write it above all"],
            id="an option below the rules",
        ),
        pytest.param(
            '[access]\nwho = ["*"]\nmodels = ["*"]\n',
            ["access = a table (file FILE, line 1): is one table: write [[access]], with two brackets"],
            id="one pair of brackets",
        ),
        pytest.param('access = ["*"]\n', ['access = ["*"] (file FILE, line 1): is not a list of tables'], id="a list"),
        pytest.param(
            'port = 0\n[[access]]\nwho = [7]\nmodels = "*"\nzzz = 1\n[[access]]\n',
            [
                "access, rule 1, who = [7] (file FILE, line 3): is not a list of strings",
                'access, rule 1, models = "*" (file FILE, line 4): is not a list; write ["*"]',
                "access, rule 1, zzz = 1 (file FILE, line 5): is no key of a rule; it has who, models, also, max",
                "access, rule 2 = a table (file FILE, line 6): has no `who`",
                "access, rule 2 = a table (file FILE, line 6): has no `models`",
                "port = 0 (file FILE, line 1): is out of range",
            ],
            id="all at once",
        ),
        pytest.param(
            'access = [{ who = ["*"] }]\n',
            ["access, rule 1 = a table (file FILE, line 1): has no `models`"],
            id="an inline table",
        ),
    ],
)
def test_mistakes_name_rule_key_and_line(text, expected, problems):
    """Every mistake in a rule is reported at once, and none of the file is used."""
    found = problems(text)
    assert len(found) == len(expected)
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)


NOT_TABLES = "rule 0, as a whole: is not a list of tables, each below a line [[access]]"
NO_PATTERN = "can't be read: write a model's name, in which `*` may stand for any characters"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("x", NOT_TABLES),
        ([1], NOT_TABLES),
        ([{"who": ["*"]}], "rule 1, as a whole: has no `models`"),
        (
            [{"who": ["*"], "models": ["a b", "c", "d e"]}, {"models": ["*"]}],
            f"rule 1, models: `a b`, `d e` {NO_PATTERN}; rule 2, as a whole: has no `who`",
        ),
    ],
)
def test_settings_made_by_code_are_checked_too(given, said):
    """Values that don't come from a file are judged by the same rules."""
    with pytest.raises(ValidationError) as error:
        Settings(access=given)
    assert [each["msg"] for each in error.value.errors()] == [f"Value error, {said}"]


@pytest.mark.parametrize(
    "given",
    [*("cap", "ollama/cap", "Example.com/cap", "example.com", "example.com/", "/cap", "example.com/a b", ""), 5],
)
def test_capability_has_the_form_of_one(given):
    """A capability is a domain and a path, or `off`."""
    with pytest.raises(ValidationError) as error:
        Settings(capability=given)
    [found] = error.value.errors()
    assert found["msg"] == ("Value error, is not the name of a capability, as in example.com/cap/ollama, or off")


@pytest.mark.parametrize(
    ("given", "capability"), [(" example.com/cap/ollama ", "example.com/cap/ollama"), ("off", None), (" off", None)]
)
def test_capability_may_be_off(given, capability):
    """Blanks around a capability don't count, and `off` is none."""
    assert Settings(capability=given).capability == capability


@pytest.mark.parametrize(
    ("given", "number"), [(1, 1), (1024, 1024), (0, None), (1025, None), (True, None), (2.0, None), ("2", None)]
)
def test_max_active_is_a_number_in_range(given, number):
    """The limit of a rule is a whole number from 1 to 1024, and nothing that only looks like one."""
    rule = {"who": ["*"], "models": ["*"], "max_active": given}
    if number is not None:
        assert Settings(access=[rule]).access[0].max_active == number
        return
    with pytest.raises(ValidationError, match="max_active: is not a whole number from 1 to 1024"):
        Settings(access=[rule])
