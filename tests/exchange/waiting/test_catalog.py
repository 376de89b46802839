"""Which requests Ollama would take, in which form their model is loaded, and by which request."""

from __future__ import annotations

import orjson
import pytest

from proxy.exchange.message.tickets import Form
from proxy.exchange.waiting.catalog import SPELLINGS, Listed, UnreadableError, catalog_of, load_request, loaded_in
from proxy.reading.asked import Asked, Naming

TINY = "registry.ollama.ai/library/tiny:latest"


def entry(name: str, *capabilities: str, family: str = "llama", **more: object) -> dict[str, object]:
    """Return a model of /api/tags (server/routes.go, `ListHandler`)."""
    return {"name": name, "details": {"family": family, "families": [family]}, "capabilities": capabilities, **more}


TAGS = catalog_of(
    orjson.dumps(
        {
            "models": [
                entry("tiny:latest", "completion"),
                entry("tools:latest", "completion", "tools"),
                entry("embedder:latest", "embedding"),
                entry("narrow:latest", "completion", family="qwen3next"),
                entry("far:latest", "completion", remote_host="https://ollama.com:443"),
                entry("painter:latest", "image"),
                {"name": "old:latest", "details": {"family": "llama"}},
                {"name": "alone:latest", "details": {"family": "qwen3next", "families": None}},
                {"name": "second:latest", "details": {"family": "llama", "families": ["llama", "mllama"]}},
                {"name": "no name!"},
                7,
            ]
        }
    )
)


def asked(model: str | None, **more: object) -> Asked:
    return Asked(Naming.NAMED if model else Naming.MISSING, model, prompt=True, **more)


@pytest.mark.parametrize("spelling", ["tiny", "TINY", " tiny ", "tiny:latest", "library/tiny", "tiny:local"])
def test_every_spelling_finds_the_model(spelling):
    """Names are compared as Ollama compares them."""
    found = TAGS.find(asked(spelling))
    assert found is not None
    assert found[0] == Form(TINY)


@pytest.mark.parametrize("name", ["nope", "far", "tiny:cloud", "a b", "", None])
def test_what_is_no_model_of_this_machine_is_not_found(name):
    """Unknown, remote and malformed names get Ollama's own answer."""
    assert TAGS.find(asked(name)) is None


def test_an_ambiguous_name_is_not_found():
    """A body in which Ollama's readers may find different models names none."""
    assert TAGS.find(Asked(Naming.AMBIGUOUS, "tiny", prompt=True)) is None


def test_load_options_make_another_form():
    """Options that decide how a model is loaded belong to its form, in whatever order they came."""
    one = TAGS.find(asked("tiny", options={"num_ctx": 8192, "num_gpu": 1}))
    other = TAGS.find(asked("tiny", options={"num_gpu": 1, "num_ctx": 8192}))
    assert one is not None
    assert one == other
    assert one[0].options == (("num_ctx", 8192), ("num_gpu", 1))


@pytest.mark.parametrize(
    "options",
    [{"num_ctx": "8192"}, {"num_gpu": True}, {"use_mmap": 1}, {"num_ctx": 8192, "num_thread": ""}],
    ids=["text", "true_for_1", "1_for_true", "one_of_two"],
)
def test_options_of_the_wrong_type_load_nothing(options):
    """Ollama refuses such a request, which must not fail for a form that others ask for: True equals 1 in Python."""
    assert TAGS.find(asked("tiny", options=options)) is None


def test_an_option_that_newer_versions_do_not_know_is_passed_over():
    """Ollama answers such a request whatever the option's value is, so it needs its turn like any other."""
    assert TAGS.find(asked("tiny", options={"numa": "x", "num_gqa": True})) == TAGS.find(asked("tiny"))


def test_two_entries_that_differ_in_letter_case_are_remote_if_one_is():
    """Which of the two Ollama means isn't known."""
    for hosts in (("https://ollama.com", ""), ("", "https://ollama.com")):
        entries = [{"name": name, "remote_host": host} for name, host in zip(("Tiny", "tiny"), hosts, strict=True)]
        (model,) = catalog_of(orjson.dumps({"models": entries})).models.values()
        assert model.remote


def test_a_null_is_no_option():
    """Ollama passes over a null, so it doesn't make another form."""
    assert TAGS.find(asked("tiny", options={"num_ctx": None})) == TAGS.find(asked("tiny"))


@pytest.mark.parametrize(
    ("name", "needs", "embedding", "accepts"),
    [
        ("tiny", (), False, True),
        ("tiny", ("tools",), False, False),
        ("tools", ("tools",), False, True),
        ("embedder", (), False, False),
        ("embedder", (), True, True),
        ("tiny", (), True, True),
        ("painter", (), True, False),
        ("old", ("tools",), False, True),
    ],
)
def test_capabilities_decide_what_is_accepted(name, needs, embedding, accepts):
    """A request that needs what its model can't do isn't one to load for."""
    found = TAGS.find(asked(name, needs=needs))
    assert found is not None
    assert found[1].accepts(asked(name, needs=needs), embedding=embedding) is accepts


@pytest.mark.parametrize(
    ("name", "more", "embedding", "served"),
    [
        ("tools", {}, False, True),
        ("tools", {"needs": ("tools",)}, False, True),
        ("tools", {"needs": ("vision",)}, False, False),
        ("tools", {"options": {"num_ctx": 9}}, False, True),
        ("tools", {"options": {"num_ctx": "9"}}, False, False),
        ("tools", {"needs": ("vision",)}, True, True),
        ("embedder", {}, True, True),
        ("embedder", {}, False, False),
        ("nope", {}, False, False),
        (None, {}, False, False),
    ],
)
def test_each_request_is_judged_by_its_own_wishes(name, more, embedding, served):
    """What was found for one request isn't given to another one with the same name and other wishes."""
    for model in ("tools", "embedder"):
        for kind in (False, True):
            TAGS.serving(asked(model), kind)
            TAGS.serving(asked(model, needs=("tools",)), kind)
    for _ in range(2):
        request = asked(name, **more)
        assert TAGS.serving(request, embedding) == (TAGS.find(request) if served else None)


def test_an_ambiguous_name_is_served_without_a_model():
    """A body in which Ollama's readers may find different models finds none, also after one that named a model."""
    TAGS.serving(asked("tiny"), False)
    assert TAGS.serving(Asked(Naming.AMBIGUOUS, "tiny", prompt=True), False) is None


def test_spellings_are_remembered_within_bounds():
    """A client that writes a name in ever new ways is served, and fills no memory."""
    catalog = catalog_of(orjson.dumps({"models": [entry("tiny:latest", "completion")]}))
    for number in range(2 * SPELLINGS):
        spelling = "".join(each.upper() if number >> at & 1 else each for at, each in enumerate("tiny:latest"))
        assert catalog.serving(asked(spelling), False) == catalog.find(asked("tiny"))
    assert len(catalog.spellings) == SPELLINGS


@pytest.mark.parametrize(("name", "slots"), [("tiny", 4), ("embedder", 1), ("narrow", 1), ("alone", 1), ("second", 1)])
def test_slots(name, slots):
    """Models for embeddings and some families have one slot, whatever Ollama is set to."""
    found = TAGS.find(asked(name))
    assert found is not None
    assert found[1].has_one_slot is (slots == 1)


@pytest.mark.parametrize(
    ("name", "options", "path", "body"),
    [
        ("tiny", {}, "/api/generate", b'{"model":"tiny:latest"}'),
        ("embedder", {}, "/api/embed", b'{"model":"embedder:latest"}'),
        ("tiny", {"num_ctx": 9}, "/api/generate", b'{"model":"tiny:latest","options":{"num_ctx":9}}'),
    ],
)
def test_a_load_is_of_the_models_own_kind(name, options, path, body):
    """A load has no prompt, no keep_alive, and the options of the request that needs it."""
    found = TAGS.find(asked(name, options=options))
    assert found is not None
    assert load_request(*found) == (path, body)


def test_what_is_loaded():
    """/api/ps names what is loaded, with its memory and context if it says so."""
    ps = b"""{"models":[{"name":"tiny:latest","size":700,"context_length":4096,"expires_at":"2026-12-01T12:00:00Z"},
      {"name":"thinker:latest","size":"much","expires_at":7}]}"""
    tiny = Listed(700, 4096, "2026-12-01T12:00:00Z")
    assert loaded_in(ps) == {TINY: tiny, "registry.ollama.ai/library/thinker:latest": Listed(None, None)}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Input is a zero-length"),
        (b"not json", "invalid literal"),
        *((body, "^no list of models$") for body in (b"[]", b"{}", b'{"models":{}}')),
    ],
)
def test_what_is_no_list_is_an_error(body, words):
    """A response in another shape is never taken for an empty list."""
    with pytest.raises(UnreadableError, match=words):
        loaded_in(body)


@pytest.mark.parametrize("odd", [7, "tiny", {"a": 1}, None, [7, None]], ids=str)
def test_odd_details_are_left_out(odd):
    """What an entry says in another shape is as if it weren't said, and the model is there."""
    tags = {"models": [{"name": "tiny:latest", "details": odd}, {"name": "x", "details": {"families": odd}}]}
    catalog = catalog_of(orjson.dumps(tags))
    assert len(catalog.models) == 2
    assert not any(model.has_one_slot for model in catalog.models.values())
    (model,) = catalog_of(orjson.dumps({"models": [{"name": "tiny", "capabilities": odd}]})).models.values()
    assert model.accepts(asked("tiny"), embedding=False) is not isinstance(odd, list)
