"""Which model a request may have, and whether it leaves the Mac: by what it says, without asking Ollama."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from proxy.policy.models import (
    Cloud,
    cloud_model,
    judge_model,
    judge_name,
    judge_search,
    may_leave,
    named_in,
    place_unknown,
    remote_model,
)
from proxy.policy.refusals import Reason, Refusal
from proxy.reading.asked import Asked, Naming
from proxy.reading.body import read
from proxy.reading.form import read_form
from proxy.reading.names import ModelPattern

CHAT = "/v1/chat/completions"
FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--b--\r\n'


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule that allows the models of some patterns."""

    models: tuple[str, ...]
    title: str = "rule 2 of `access`"

    def allows(self, model: str) -> bool:
        """Return whether one of the patterns means the model."""
        return any(ModelPattern(text).matches(model) for text in self.models)


QWEN = Rule(("qwen3:*", "gemma3:4b"))


def asked(model: str) -> Asked:
    return Asked(Naming.NAMED, model, prompt=True)


def unsure(naming: Naming, why: str) -> Refusal:
    """Return the refusal of a body that names no certain model."""
    refusal = judge_model(Asked(naming, why=why), None, local_only=True)
    assert refusal is not None
    return refusal


def reason(found) -> Reason | None:
    return None if found is None else found.reason


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ("qwen3:8b", True),
        ("QWEN3:8B", True),
        (" qwen3:8b ", True),
        ("library/qwen3:8b", True),
        ("registry.ollama.ai/library/qwen3", True),
        ("qwen3:8b:local", True),
        ("gemma3:4b", True),
        ("gemma3", False),
        ("gemma3:4b-it-q8_0", False),
        ("qwen3.5:8b", False),
        ("someone/qwen3:8b", False),
        ("hf.co/library/qwen3:8b", False),
        ("qwen3:8b\n", True),
        ("../qwen3:8b", False),
        ("qwen3:8b\0", False),
        ("*", False),
    ],
)
def test_a_rule_allows_models_as_ollama_compares_them(model, allowed):
    """Letter case, blanks, and the default host, namespace and tag make no difference, and nothing else passes."""
    found = judge_model(asked(model), QWEN, local_only=False)
    assert reason(found) == (None if allowed else Reason.MODEL_NOT_ALLOWED)


@pytest.mark.parametrize(
    "model",
    [
        "gpt-oss:120b-cloud",
        "gpt-oss:120b-CLOUD",
        "kimi-k2.5:cloud",
        "kimi-k2.5:Cloud ",
        "gpt-oss:20b:cloud",
        "\tx/y:z-cloud",
        "ollama.com/library/x:cloud",
    ],
)
@pytest.mark.parametrize("rule", [None, Rule(("*",))], ids=["no_rules", "rule_for_all"])
def test_a_cloud_name_leaves_the_mac(model, rule):
    """A name that means ollama.com is refused in each spelling while `local_only` is on, and passes without."""
    assert reason(judge_model(asked(model), rule, local_only=True)) is Reason.LEAVES_THE_MAC
    assert judge_model(asked(model), None, local_only=False) is None
    assert may_leave(asked(model), Cloud.UNKNOWN, remote=False)


@pytest.mark.parametrize(
    "model", ["my-cloud-model", "cloud:latest", "x:cloudy", "x-cloud", "x:8b-cloud-q4", "x:cloud:local"]
)
def test_other_names_with_that_word_stay(model):
    """Only the tag decides, so a local model may be called after a cloud."""
    assert judge_model(asked(model), None, local_only=True) is None
    assert not may_leave(asked(model), Cloud.ON, remote=False)


@pytest.mark.parametrize(
    ("naming", "leaves"), [(Naming.MISSING, False), (Naming.AMBIGUOUS, True), (Naming.UNREADABLE, True)]
)
def test_a_model_that_is_not_read_may_be_any(naming, leaves):
    """A request whose model can't be read may leave the Mac, and one that names none doesn't."""
    assert may_leave(Asked(naming), Cloud.OFF, remote=False) is leaves


UNSURE = [
    pytest.param(CHAT, b'{"model":"qwen3:8b","MODEL":"x"}', Reason.MODEL_AMBIGUOUS, id="two_spellings"),
    pytest.param(CHAT, b'{"model":"qwen3:8b","Model":"x"}', Reason.MODEL_AMBIGUOUS, id="another_case"),
    pytest.param(CHAT, b'{"model":"qwen3:8b"}{"model":"x:cloud"}', Reason.MODEL_AMBIGUOUS, id="two_objects"),
    pytest.param("/api/show", b'{"model":"","NAME":"x"}', Reason.MODEL_AMBIGUOUS, id="name"),
    pytest.param(CHAT, b'{"model":', Reason.MODEL_UNREADABLE, id="cut"),
    pytest.param(CHAT, b'{"model":null}', Reason.MODEL_UNREADABLE, id="null"),
    pytest.param(CHAT, b"", Reason.MODEL_UNREADABLE, id="empty"),
    pytest.param(CHAT, b'["qwen3:8b"]', Reason.MODEL_UNREADABLE, id="array"),
    pytest.param(CHAT, b'{"model":["qwen3:8b"]}', Reason.MODEL_UNREADABLE, id="no_text"),
    pytest.param(CHAT, '{"model":"qwen3:8b"}'.encode("utf-16"), Reason.MODEL_UNREADABLE, id="utf_16"),
    pytest.param(CHAT, b'\xef\xbb\xbf{"model":"qwen3:8b"}', Reason.MODEL_UNREADABLE, id="bom"),
    pytest.param(CHAT, b'{"model":"x","y":' + b"[" * 20_000 + b"]" * 20_000 + b"}", Reason.MODEL_UNREADABLE, id="deep"),
    pytest.param(CHAT, b'{"model":"' + b"x" * 5000 + b'"}', Reason.MODEL_UNREADABLE, id="long_name"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "expected"), UNSURE)
def test_an_unsure_model_is_refused_where_it_matters(path, body, expected):
    """A body that Ollama may read in another way is refused with rules or `local_only`, and is Ollama's without."""
    found = read(path, body)
    for rule, local_only in ((None, True), (QWEN, False), (QWEN, True)):
        refusal = judge_model(found, rule, local_only=local_only)
        assert refusal is not None
        assert (refusal.reason, refusal.status) == (expected, 400)
    assert judge_model(found, None, local_only=False) is None


@pytest.mark.parametrize("body", [b"{}", b'{"model":""}', b'{"model":" "}'])
def test_a_body_without_a_model_is_ollamas(body):
    """Ollama itself refuses a request that names no model, whatever the rules are."""
    assert judge_model(read(CHAT, body), Rule(()), local_only=True) is None


@pytest.mark.parametrize(
    ("form", "query", "expected"),
    [
        (FORM % b"qwen3:8b", "", None),
        (FORM % b"x:cloud", "", Reason.MODEL_NOT_ALLOWED),
        (FORM % b"qwen3:8b", "model=x:cloud", Reason.MODEL_AMBIGUOUS),
        (FORM % b"qwen3:8b" + b"x", "", Reason.MODEL_UNREADABLE),
        (FORM % b"", "", None),
    ],
    ids=["allowed", "other_model", "query", "trailing", "none"],
)
def test_forms_are_judged_like_bodies(form, query, expected):
    """The field `model` of a form is judged as that of a JSON body is."""
    found = read_form("multipart/form-data; boundary=b", query, form)
    assert reason(judge_model(found, QWEN, local_only=True)) == expected


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/models/qwen3:8b", "qwen3:8b"),
        ("/v1/models/qwen3%3A8b", "qwen3:8b"),
        ("/v1/models/x%3acloud", "x:cloud"),
        ("/v1/models/x%3A8b%3acloud", "x:8b:cloud"),
    ],
)
def test_the_path_names_a_model(path, model):
    """Ollama decodes the path of a single model, in which the gate lets only the escape of a colon pass."""
    assert named_in(path) == model


@pytest.mark.parametrize(
    ("cloud", "passes"), [(Cloud.OFF, True), (Cloud.ON, False), (Cloud.NO_SWITCH, False), (Cloud.UNKNOWN, False)]
)
def test_a_search_passes_only_while_the_cloud_is_off(cloud, passes):
    """An offered web search is refused unless Ollama says that it can't go out, with what to do about it."""
    refusal = judge_search(cloud)
    assert (refusal is None) is passes
    assert may_leave(Asked(Naming.NAMED, "qwen3:8b", web_search=True), cloud, remote=False) is not passes
    if refusal is not None:
        assert (refusal.reason, refusal.status) == (Reason.WEB_SEARCH, 403)
        for words in ('`web_search = "disabled"`', "`local_only = false`", "`OLLAMA_NO_CLOUD=1`"):
            assert words in refusal.message


KEEPS = "this proxy lets nothing leave the Mac (`local_only`)"
SWITCH = "the owner can allow it with `local_only = false` on the server"
SEARCH = "This request offers a web search, for which Ollama asks ollama.com, and " + KEEPS
SEARCH_OFF = (
    'turn the search off in the client (in Codex: `web_search = "disabled"` in its config.toml), or ask the owner to '
)
CLOUD_OFF = "turn off Ollama's cloud (`OLLAMA_NO_CLOUD=1`) or to set `local_only = false` on the server"
AMBIGUOUS = (
    "Ollama may read another model in this body than this proxy does: it names two; send one body that names its "
    "model once, as `model` in lower case"
)
UNREADABLE = (
    "This proxy can't read which model the body names: it ends early; send one complete JSON object (or a form, where "
    "the path takes one) with the model's name as a plain text"
)
STUB = f"Model `far` only stands for one that runs elsewhere, and {KEEPS}; choose a model that runs there, or {SWITCH}"
LISTED = "choose one that `GET /v1/models` lists, or ask the owner to allow it"
NO_SWITCH = f"{SEARCH} while Ollama can't turn its cloud off; {SEARCH_OFF}update Ollama, and then to {CLOUD_OFF}"


@pytest.mark.parametrize(
    ("refusal", "expected", "message"),
    [
        pytest.param(
            cloud_model("x:cloud"),
            (Reason.LEAVES_THE_MAC, 403),
            f"Model `x:cloud` runs at ollama.com, and {KEEPS}; choose a model that runs there, or {SWITCH}",
            id="cloud",
        ),
        pytest.param(remote_model("far"), (Reason.LEAVES_THE_MAC, 403), STUB, id="stub"),
        pytest.param(
            place_unknown("far"),
            (Reason.LEAVES_THE_MAC, 403),
            f"Ollama didn't say where model `far` runs, and {KEEPS}; see Ollama's log on the server, or {SWITCH}",
            id="unknown_place",
        ),
        pytest.param(
            judge_name("llama3", QWEN, local_only=True),
            (Reason.MODEL_NOT_ALLOWED, 403),
            f"Model `llama3` is not among those that rule 2 of `access` allows; {LISTED}",
            id="rule",
        ),
        pytest.param(
            judge_name("llama3", Rule((), "the grant for this device"), local_only=True),
            (Reason.MODEL_NOT_ALLOWED, 403),
            f"Model `llama3` is not among those that the grant for this device allows; {LISTED}",
            id="grant",
        ),
        pytest.param(
            unsure(Naming.AMBIGUOUS, "it names two"), (Reason.MODEL_AMBIGUOUS, 400), AMBIGUOUS, id="ambiguous"
        ),
        pytest.param(
            unsure(Naming.UNREADABLE, "it ends early"), (Reason.MODEL_UNREADABLE, 400), UNREADABLE, id="unreadable"
        ),
        pytest.param(
            judge_search(Cloud.ON), (Reason.WEB_SEARCH, 403), f"{SEARCH}; {SEARCH_OFF}{CLOUD_OFF}", id="search"
        ),
        pytest.param(judge_search(Cloud.NO_SWITCH), (Reason.WEB_SEARCH, 403), NO_SWITCH, id="search_no_switch"),
        pytest.param(
            judge_search(Cloud.UNKNOWN),
            (Reason.WEB_SEARCH, 403),
            f"{SEARCH} while Ollama doesn't report that its cloud is off; {SEARCH_OFF}{CLOUD_OFF}",
            id="search_unknown_cloud",
        ),
    ],
)
def test_a_refusal_says_what_why_and_what_to_do(refusal, expected, message):
    """Whoever is refused reads what was refused, by which rule, and what they or the owner can do about it."""
    assert refusal == Refusal(*expected, message)


def test_a_long_name_is_cut_in_a_refusal():
    """A refusal has a bounded length, however long a name or an explanation is."""
    name = "llama3:" + "x" * 2000
    found = [judge_name(name, QWEN, local_only=True), cloud_model(name), remote_model(name), place_unknown(name)]
    found += [unsure(naming, name) for naming in (Naming.AMBIGUOUS, Naming.UNREADABLE)]
    assert max(len(each.message) for each in found) < 400


def test_the_rule_comes_before_the_place():
    """A cloud model that no rule allows is refused for the rule: the owner's switch wouldn't open it."""
    assert reason(judge_model(asked("x:cloud"), QWEN, local_only=True)) is Reason.MODEL_NOT_ALLOWED


def test_verdicts_are_kept_for_each_rule():
    """Two rules of one number, as before and after a reload, are judged each by its own models."""
    assert judge_name("llama3", Rule(("llama3",)), local_only=True) is None
    assert reason(judge_name("llama3", Rule(("qwen3",)), local_only=True)) is Reason.MODEL_NOT_ALLOWED
