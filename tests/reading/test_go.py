"""The reader and Go agree: recorded readings of Ollama's own types are the measure, not our idea of them."""

from __future__ import annotations

import json

import pytest

from proxy.reading.asked import Naming
from proxy.reading.body import Passing, read
from proxy.reading.fields import LOAD_OPTIONS, trimmed
from proxy.reading.form import read_form
from proxy.reading.names import ModelNameError, is_cloud, read_name
from proxy.reading.unpacking import NotUnpackedError, unpack
from tests.go_json.corpus import LEFT_OF, without_reloads
from tests.go_json.readings import READINGS, readings

GIVEN_UP = {
    "folded-same": "the key is spelled twice, with the same model",
    "endless-integer": "a number of 5,000 digits",
    "model-long": "a name of 6,000 letters, which no model has",
    "zstd-empty-frames": "51 frames of zstd, and no client sends more than one",
}
"""Bodies of which both readers of Ollama read one model, and ours says that it can't."""

EMPTIED = {"prompt-empty-after", "prompt-messages-null-after"}
"""Bodies with an empty prompt after another one. They may wait for their turn although Ollama only loads the model."""


def cases(kind):
    """Return parameters for all readings of a kind, those whose names begin with the same word in one."""
    families = {}
    for each in readings(kind):
        families.setdefault(each.id.partition("-")[0], []).append(each)
    return pytest.mark.parametrize("group", [pytest.param(group, id=name) for name, group in families.items()])


def asked_of(reading):
    """Return what our reader makes of a reading's body."""
    return read(reading.case["path"], reading.body)


def test_readings_name_their_makers():
    """The data says which Go and which Ollama read it."""
    first = json.loads(READINGS.read_text().partition("\n")[0])
    assert first["go"].startswith("go1.26")
    assert first["ollama"] == "v0.32.15"


def in_passing(reading):
    """Return what our reader makes of a reading's body while it passes."""
    passing = Passing(reading.case["path"])
    passing.feed(reading.body)
    return passing.end()


@cases("json")
def test_a_named_model_is_the_one_that_both_readers_find(group):
    """A model is named only if both of Ollama's readers find exactly that one, or Ollama refuses the body."""
    for reading in group:
        go = reading.go
        for asked in (asked_of(reading), in_passing(reading)):
            if asked.naming is Naming.NAMED and "error" not in go:
                assert trimmed(asked.model) == trimmed(go["model"])
                assert go.get("cloud", "") == trimmed(asked.model) or reading.case["path"] == "/api/show"
            if asked.naming is Naming.MISSING:
                assert "error" in go or not {"model", "cloud"} & go.keys()


@cases("json")
def test_a_model_that_both_readers_find_is_named(group):
    """Whenever Ollama's readers agree on a model, it is named, unless the key `model` is spelled in two ways."""
    for reading in group:
        asked, go = asked_of(reading), reading.go
        if "error" in go or not go.get("model") or trimmed(go["model"]) != go.get("cloud"):
            continue
        if reading.id in GIVEN_UP or "\ufffd" in go["model"]:
            assert asked.naming in {Naming.AMBIGUOUS, Naming.UNREADABLE}
        elif "is spelled" not in asked.why:
            assert asked.naming is Naming.NAMED, asked.why


@cases("json")
def test_uses_are_read_as_go_reads_them(group):
    """What the request uses is what Ollama finds in it.

    A prompt, a web search or a load option is never missed, and what Ollama doesn't refuse isn't taken for refused.
    """
    for reading in group:
        asked, go = asked_of(reading), reading.go
        if "error" in go or asked.naming is not Naming.NAMED or reading.case["path"] == "/api/show":
            continue
        assert asked.streams == go.get("streams", False) or b"null" in reading.body
        assert asked.tools == go.get("tools", False)
        assert go.get("thinking") or "thinking" not in asked.needs
        assert asked.web_search or not go.get("web_search")
        assert (asked.keep_alive is not None) == go.get("keep_alive", False)
        assert {*asked.options} >= LOAD_OPTIONS & {*go.get("options", ())}
        if "embed" not in reading.case["path"]:
            assert asked.prompt == go.get("prompt", False) or (asked.prompt and reading.id in EMPTIED)


def test_what_is_left_of_a_native_request_is_read_alike():
    """Without what would change a model, Go reads the same in a native request, and nothing of that."""
    by_name = {each.id: each for each in readings("json")}
    left = [each for each in by_name.values() if each.id.startswith(LEFT_OF)]
    assert len(left) > 15
    for reading in left:
        sent = by_name[reading.id.removeprefix(LEFT_OF)]
        assert reading.body == without_reloads(sent.body)
        assert "keep_alive" not in reading.go
        assert LOAD_OPTIONS.isdisjoint(reading.go.get("options", ()))
        if "error" not in sent.go:
            assert facts_besides_reloads(reading) == facts_besides_reloads(sent)


def facts_besides_reloads(reading):
    """Return what Go read but for how the model is loaded and where the body ends."""
    options = {*reading.go.get("options", ())} - {*LOAD_OPTIONS, "NUM_CTX"}
    return {key: value for key, value in reading.go.items() if key not in {"keep_alive", "options", "end"}}, options


@cases("json")
def test_passing_body_is_held_from_the_byte_with_which_go_acts(group):
    """Of a passing body everything goes on but the object's last brace and what follows it."""
    for reading in group:
        passing = Passing(reading.case["path"])
        on = passing.feed(reading.body)
        passing.end()
        assert on + passing.held == reading.body
        if "error" not in reading.go and reading.body.strip().startswith(b"{"):
            assert len(on) <= reading.go["end"] - 1
            if passing.asked.naming is not Naming.UNREADABLE:
                assert len(on) == reading.go["end"] - 1


@cases("form")
def test_form(group):
    """Whenever a form names a model, Go finds exactly that one, or refuses the form."""
    for reading in group:
        asked = read_form(reading.case["content_type"], reading.case["query"], reading.body)
        if asked.naming is Naming.NAMED and "error" not in reading.go:
            assert asked.model == reading.go["model"]
        if asked.naming is Naming.MISSING:
            assert "model" not in reading.go or not trimmed(reading.go["model"])


@pytest.mark.parametrize("name", ["plain", "model-last", "quoted-boundary", "query-other", "end-without-line"])
def test_forms_of_clients_are_read(name):
    """The forms that clients write name their model."""
    (reading,) = [each for each in readings("form") if each.id == f"form-{name}"]
    assert read_form(reading.case["content_type"], reading.case["query"], reading.body).model == "a"


@cases("name")
def test_name(group):
    """A name is read as Ollama reads it: the same parts, the same source, the same refusals."""
    for reading in group:
        sent, go = reading.case["name"], reading.go
        if "error" in go:
            with pytest.raises(ModelNameError):
                read_name(sent)
            continue
        name = read_name(sent)
        assert (name.cloud, is_cloud(sent)) == (go.get("source") == "cloud",) * 2
        if not name.cloud:
            assert name.canonical == go["canonical"]


@cases("zstd")
def test_zstd(group):
    """What is unpacked here, Ollama would unpack to as many bytes."""
    for reading in group:
        try:
            size = len(unpack(reading.body))
        except NotUnpackedError:
            assert "error" in reading.go or reading.id in GIVEN_UP
        else:
            assert size == reading.go.get("size", 0)
            assert "error" not in reading.go
