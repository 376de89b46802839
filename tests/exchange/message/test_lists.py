"""Lists of models show an asker its own models, and change nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange.message.failures import Unlisted
from proxy.exchange.message.lists import Shown, shortened, without_validators
from proxy.policy.access import Access, Rule
from proxy.policy.gate import Policy
from proxy.policy.routes import ROUTES, Route
from proxy.policy.rule_keys import RuleSpec

ROUTE = {route.name: route for route in ROUTES}
OPENAI, TAGS, PS = (ROUTE[f"GET {path}"] for path in ("/v1/models", "/api/tags", "/api/ps"))
KEYS = {OPENAI: ("data", "id"), TAGS: ("models", "name"), PS: ("models", "name")}


def rule(*models: str) -> Rule:
    """Return a rule that allows these models."""
    return Access.of([RuleSpec(("*",), models)], Policy.of(max_body=1024)).rules[0]


def listed(route: Route, content: bytes) -> list[str]:
    """Return the names in a list."""
    key, name = KEYS[route]
    return [entry[name] for entry in json.loads(content)[key]]


# As Ollama writes them: server/routes.go (ListHandler, PsHandler), openai/openai.go (ToListCompletion); Go escapes `<`.
REAL = {
    OPENAI: (
        b'{"object":"list","data":[{"id":"qwen3:8b","object":"model","created":1764000000,"owned_by":"library"},'
        b'{"id":"gemma3:4b","object":"model","created":1764000001,"owned_by":"library"}]}\n'
    ),
    TAGS: (
        b'{"models":[{"name":"qwen3:8b","model":"qwen3:8b","modified_at":"2026-11-25T10:00:00.123456789+01:00",'
        b'"size":5225388164,"digest":"500a","details":{"families":["qwen3"],"parameter_size":"8.2B"}},'
        b'{"name":"gemma3:4b","model":"gemma3:4b","size":3338801804,"details":{"families":null}}]}'
    ),
    PS: (
        b'{"models":[{"name":"qwen3:8b","model":"qwen3:8b","size_vram":6e9,"x":"\\u003c\\u00e9"},'
        b'{"name":"gemma3:4b","model":"gemma3:4b","size_vram":18446744073709551615}]}'
    ),
}


@pytest.mark.parametrize("route", REAL, ids=lambda route: route.path)
def test_entry_of_another_asker_is_cut_out(route: Route) -> None:
    """What stays of a list is as Ollama wrote it, down to numbers, escapes and the last newline."""
    content = REAL[route]
    first = content[content.index(b"[{") + 1 : content.index(b",{")]
    assert shortened(content, Shown(route, rule("qwen3:*"))) == content[: content.index(b"[{") + 1] + first + (
        b"]}\n" if content.endswith(b"\n") else b"]}"
    )


@pytest.mark.parametrize("route", REAL, ids=lambda route: route.path)
def test_whole_list_stays_as_it_is(route: Route) -> None:
    """A list whose every model is allowed passes unchanged."""
    assert shortened(REAL[route], Shown(route, rule("*"), local_only=True)) is REAL[route]


@pytest.mark.parametrize(
    ("models", "shown"),
    [
        pytest.param(["Qwen3"], ["qwen3:latest", "QWEN3"], id="case and tag"),
        pytest.param(["registry.ollama.ai/library/qwen3"], ["qwen3:latest", "QWEN3"], id="default host"),
        pytest.param(["qwen3:*"], ["qwen3:latest", "QWEN3", "qwen3:8b"], id="every tag"),
        pytest.param(["hf.co/*"], ["hf.co/a/b:q4"], id="a host"),
        pytest.param(["nope"], [], id="none"),
    ],
)
def test_names_are_compared_as_ollama_does(models: list[str], shown: list[str]) -> None:
    """A list shows exactly the names that a request may give."""
    names = ["qwen3:latest", "QWEN3", "qwen3:8b", "hf.co/a/b:q4", "not a name"]
    content = json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode()
    assert listed(OPENAI, shortened(content, Shown(OPENAI, rule(*models)))) == shown


@pytest.mark.parametrize(
    ("entry", "stays"),
    [
        pytest.param({"name": "a", "model": "a"}, True, id="a local model"),
        pytest.param({"name": "a", "remote_host": "https://ollama.com:443"}, False, id="a stub"),
        pytest.param({"name": "a", "remote_model": "big"}, False, id="a stub without its host"),
        pytest.param({"name": "a", "remote_host": "", "remote_model": ""}, True, id="empty fields"),
        pytest.param({"name": "a:cloud"}, False, id="a name of ollama.com"),
        pytest.param({"name": "a:20b-CLOUD"}, False, id="such a tag in capitals"),
        pytest.param({"name": "known"}, False, id="known to run elsewhere"),
        pytest.param({"name": "a", "model": "KNOWN:latest"}, False, id="known under its other name"),
        pytest.param({"name": "not a name"}, False, id="a name that no request can give"),
    ],
)
def test_models_elsewhere_are_left_out(entry: dict[str, str], stays: bool) -> None:
    """With `local_only` a list has only models that run on the Mac; without it, all of them."""
    content = json.dumps({"models": [entry]}).encode()
    elsewhere = frozenset({"registry.ollama.ai/library/known:latest"})
    found = shortened(content, Shown(TAGS, local_only=True, elsewhere=elsewhere))
    assert found == (content if stays else b'{"models": []}')
    assert shortened(content, Shown(TAGS, elsewhere=elsewhere)) == content


@pytest.mark.parametrize(
    "entry",
    ["null", "3", '"qwen3"', "[]", "{}", '{"name":null}', '{"name":3}', '{"Name":"qwen3"}', '{"name":""}'],
)
def test_entry_that_names_nothing_is_left_out(entry: str) -> None:
    """An entry without a readable name can't be judged, so it isn't shown."""
    content = b'{"models":[%b,{"name":"qwen3"}]}' % entry.encode()
    assert shortened(content, Shown(TAGS, rule("*"))) == b'{"models":[{"name":"qwen3"}]}'


def test_both_names_of_an_entry_count() -> None:
    """An entry with two names is shown only if its asker may use both."""
    content = b'{"models":[{"name":"qwen3","model":"secret"}]}'
    assert shortened(content, Shown(TAGS, rule("qwen3"))) == b'{"models":[]}'


def test_null_in_place_of_a_list_passes() -> None:
    """Ollama writes `"data":null` where it has no model."""
    content = b'{"object":"list","data":null}\n'
    assert shortened(content, Shown(OPENAI, rule("x"))) == content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "no JSON that can be read: JSONDecodeError", id="nothing"),
        pytest.param(b"not JSON", "no JSON that can be read: JSONDecodeError", id="no JSON"),
        pytest.param(b"[]", "no object", id="an array"),
        pytest.param(b"null", "no object", id="null"),
        pytest.param(b"{}", "not one list under `data`", id="no list"),
        pytest.param(b'{"models":[]}', "not one list under `data`", id="the list under another key"),
        pytest.param(b'{"data":"qwen3"}', "no list under `data`", id="a text"),
        pytest.param(b'{"data":{"id":"qwen3"}}', "no list under `data`", id="an object"),
        pytest.param(b'{"data":[],"data":[{"id":"secret"}]}', "not one list under `data`", id="two lists"),
        pytest.param(
            b'{"data":[],"Data":[{"id":"secret"}]}', "not one list", id="a list that Go would read as the same"
        ),
        pytest.param(b'{"data":[{"id":"secret"}', "no JSON", id="cut"),
        pytest.param(b'{"data":[]}{"data":[{"id":"secret"}]}', "no JSON", id="two values"),
        pytest.param(b'\xef\xbb\xbf{"data":[]}', "no JSON", id="a byte order mark"),
        pytest.param('{"data":[]}'.encode("utf-16"), "no JSON", id="UTF-16"),
        pytest.param(b'{"data":[{"id":"\xff"}]}', "no JSON", id="no UTF-8"),
        pytest.param(b'{"data":[NaN]}', "no JSON", id="no number"),
        pytest.param(b'{"data":[],"x":%b}' % (b"9" * 5000), "no JSON", id="a number that Python doesn't read"),
        pytest.param(b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b',"data":[]}', "no JSON", id="20,000 levels"),
    ],
)
def test_list_that_cannot_be_read_is_refused(content: bytes, why: str) -> None:
    """A list that can't be read is never passed on unfiltered, and the failure says what is wrong with it."""
    with pytest.raises(Unlisted, match=f"^{why}"):
        shortened(content, Shown(OPENAI, rule("qwen3")))


@pytest.mark.parametrize("names", [None, rule("*")], ids=["no rules", "every model"])
def test_list_is_refused_while_the_models_elsewhere_are_unknown(names: Rule | None) -> None:
    """With `local_only`, a list isn't shown before Ollama has said which of its models run elsewhere."""
    with pytest.raises(Unlisted, match=r"^it isn't known which models run elsewhere$"):
        shortened(REAL[OPENAI], Shown(OPENAI, names, local_only=True, elsewhere=None))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["qwen3", "Qwen3:8b", "secret", "a:cloud", "x y"]) | st.text(max_size=4)
ENTRIES = st.fixed_dictionaries({"id": NAMES | JSON}, optional={"other": JSON, '"]}': JSON}) | JSON


@given(st.lists(ENTRIES, max_size=5), JSON, st.sampled_from([None, 1]), st.booleans())
def test_shows_what_is_allowed_and_nothing_else(
    entries: list[object], around: object, indent: int | None, before: bool
) -> None:
    """Whatever JSON the list holds, entries that stay are equal and in order, and no other one is there."""
    whole = {"x": around, "data": entries} if before else {"data": entries, "x": around}
    content = json.dumps(whole, indent=indent, ensure_ascii=before).encode("utf-8", "surrogatepass")
    shown = Shown(OPENAI, rule("qwen3:*"), local_only=True)
    try:
        found = json.loads(shortened(content, shown))
    except Unlisted:  # a lone surrogate, for instance
        return
    assert found == {**whole, "data": [each for each in entries if shown.includes(each)]}
    assert all(each["id"].lower().startswith("qwen3") for each in found["data"])


def test_fields_about_the_whole_list_go() -> None:
    """Fields that describe the bytes of the unfiltered list don't reach the client."""
    head = b'HTTP/1.1 200 OK\r\nETag: "abc"\r\nContent-Type: application/json\r\nlast-modified: x\r\nContent-MD5: y'
    assert without_validators(head) == b"HTTP/1.1 200 OK\r\nContent-Type: application/json"
