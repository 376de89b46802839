"""What a request's body asks for: named or not, and what it uses, whole and in pieces."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.reading.asked import Naming
from proxy.reading.body import Passing, read, read_at_once, read_chat, read_objects
from proxy.reading.reader import FORM, read_whole, reader_of
from proxy.reading.scanner import DEEPEST, MOST_TOKENS
from tests.go_json.corpus import PATHS, bodies
from tests.go_json.readings import readings
from tests.support.examples import examples

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
NATIVE, GENERATE = "/api/chat", "/api/generate"


def passed(path, pieces):
    """Feed a body in pieces. Return what it asks for, what went on, and what was held."""
    passing = Passing(path)
    on = b"".join([passing.feed(piece) for piece in pieces])
    return passing.end(), on, passing.held


def split(body, cuts):
    """Return a body, cut at some places."""
    places = [0, *sorted({cut % (len(body) + 1) for cut in cuts}), len(body)]
    return [body[begin:end] for begin, end in pairwise(places)]


def test_group_of_tools_behind_another_key_counts():
    """Go reads the second array into the first one's elements, so a tool may keep a type that stands nowhere else."""
    asked = read(RESPONSES, b'{"model":"m","input":"Hi","tools":[{"type":"namespace"}],"tools":[{"name":"f"}]}')
    assert asked.tools
    assert not asked.needs


SHORT = [each for each in readings("json") if len(each.body) <= 21_000]
NAMED = [pytest.param((each,), id=each.id) for each in SHORT if not each.id.startswith("made-up")]
MADE_UP = tuple(each for each in SHORT if each.id.startswith("made-up"))


@pytest.mark.parametrize("group", [*NAMED, pytest.param(MADE_UP, id="made-up")])
def test_byte_by_byte_is_as_whole(group):
    """A body that comes byte by byte is read as one that comes at once, and the same bytes go on."""
    for reading in group:
        path, body = reading.case["path"], reading.body
        whole, on, held = passed(path, [body])
        asked, on_in_bytes, held_in_bytes = passed(path, [body[at : at + 1] for at in range(len(body))])
        assert asked == whole
        assert on_in_bytes + held_in_bytes == on + held == body
        if whole.naming is not Naming.UNREADABLE:
            assert on_in_bytes == on


@examples(500)
@given(PATHS, bodies(), st.lists(st.integers(0, 1000), max_size=8))
@example(CHAT, b'{"model":"a\\"b"}', [11, 12])
@example(CHAT, b'{"model":"a","x":-1.5e+3}', [18, 19, 20, 23])
@example(CHAT, b'{"model":"a\\\\","x":"\\\\\\""}', [11, 12, 13, 14, 21, 22, 23])
def test_pieces_are_as_whole(path, body, cuts):
    """However a body is cut, it asks for the same, and nothing from its last brace on goes on."""
    whole, on, held = passed(path, [body])
    asked, on_in_pieces, held_in_pieces = passed(path, split(body, cuts))
    assert asked == whole
    assert on + held == on_in_pieces + held_in_pieces == body
    if whole.naming is not Naming.UNREADABLE:
        assert on_in_pieces == on


@examples(500)
@given(PATHS, bodies())
def test_whole_and_passing_bodies_are_read_alike(path, body):
    """A body that is held whole names the model that it would name in passing, and uses no less."""
    whole, (passing, _, _) = read(path, body), passed(path, [body])
    assert (whole.naming, whole.model) == (passing.naming, passing.model)
    assert whole.web_search or not passing.web_search or body.count(b"ype") > 1
    assert {*whole.options} <= {*passing.options}


@examples(300)
@given(
    st.dictionaries(
        st.text(max_size=6),
        st.recursive(
            st.none() | st.text() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        ),
    ),
    st.text(min_size=1, max_size=40).filter(lambda text: text.strip() and "\ufffd" not in text),
)
def test_what_python_writes_is_read(fields, model):
    """Whatever other fields a client sends, and however it writes text, the model is found, whole and in passing."""
    fields = {key: value for key, value in fields.items() if key.lower() not in ("model", "name")}
    for body in (orjson.dumps(fields | {"model": model}), orjson.dumps({"model": model} | fields)):
        assert read(CHAT, body).model == passed(CHAT, [body])[0].model == model


@pytest.mark.parametrize(
    ("path", "fields", "uses"),
    [
        (CHAT, {}, {}),
        (CHAT, {"stream": True}, {"streams": True}),
        (CHAT, {"stream": None}, {}),
        (NATIVE, {}, {"streams": True}),
        (NATIVE, {"stream": False}, {"streams": False}),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}]}, {"prompt": True}),
        (CHAT, {"messages": []}, {"prompt": False}),
        (CHAT, {"messages": [{"role": "user"}], "stream": True}, {"prompt": True, "streams": True}),
        (CHAT, {"messages": [{"role": "user"}], "stream": 1}, {"prompt": True, "streams": False}),
        (CHAT, {"messages": [{"role": "user"}], "stream": [True]}, {"prompt": True, "streams": False}),
        (NATIVE, {"messages": [None]}, {"prompt": True}),
        (CHAT, {"messages": [{}], "tools": [{}]}, {"prompt": True, "tools": True}),
        (NATIVE, {"messages": [{"role": "user"}]}, {"prompt": True, "streams": True}),
        (NATIVE, {"messages": [{"role": "user"}], "stream": None}, {"prompt": True, "streams": True}),
        (NATIVE, {"messages": [{"role": "user"}], "stream": False}, {"prompt": True, "streams": False}),
        (RESPONSES, {"input": [{"role": "user"}], "stream": True}, {"prompt": True, "streams": True}),
        (RESPONSES, {"messages": [{"role": "user"}]}, {"prompt": False}),
        (GENERATE, {"prompt": ""}, {"prompt": False}),
        (GENERATE, {"prompt": "hi"}, {"prompt": True}),
        ("/api/embed", {"input": ["hi"]}, {"prompt": True}),
        ("/api/embed", {"input": []}, {"prompt": False}),
        ("/api/embed", {"input": [""]}, {"prompt": True}),
        ("/api/embed", {"input": ""}, {"prompt": False}),
        ("/v1/embeddings", {"input": ""}, {"prompt": True}),
        ("/v1/embeddings", {"input": None}, {"prompt": False}),
        (CHAT, {"reasoning": {}, "reasoning_effort": "high"}, {"needs": ()}),
        (CHAT, {"reasoning": {"effort": "none"}, "reasoning_effort": "high"}, {"needs": ()}),
        (CHAT, {"reasoning": None, "reasoning_effort": "high"}, {"needs": ("thinking",)}),
        (RESPONSES, {"input": "hi"}, {"prompt": True}),
        (RESPONSES, {"instructions": "be brief"}, {"prompt": True}),
        (CHAT, {"tools": [{"type": "function"}]}, {"tools": True, "needs": ("tools",)}),
        (CHAT, {"tools": []}, {"tools": False, "needs": ()}),
        (CHAT, {"tools": [{"type": "function"}], "user": "namespace"}, {"tools": True, "needs": ("tools",)}),
        (RESPONSES, {"tools": [{"type": "function"}]}, {"tools": True, "needs": ("tools",)}),
        (RESPONSES, {"tools": [{"type": "namespace", "tools": []}]}, {"tools": True, "needs": ()}),
        (RESPONSES, {"tools": [{"type": "namespace"}, {"type": "function"}]}, {"tools": True, "needs": ()}),
        (RESPONSES, {"tools": [{"type": 1}, {"type": "function"}]}, {"tools": True, "needs": ()}),
        (CHAT, {"tools": [{"type": "web_search"}]}, {"web_search": False}),
        (MESSAGES, {"tools": [{"type": "web_search_20250305"}]}, {"web_search": True}),
        (MESSAGES, {"tools": [{"type": "custom", "name": "web_search"}]}, {"web_search": False}),
        (MESSAGES, {"tools": [{"name": "f"}, {"type": None}]}, {"web_search": True}),
        (RESPONSES, {"tools": [{"type": "web_search"}]}, {"web_search": True}),
        (RESPONSES, {"tools": [{"TYPE": "web_search"}]}, {"web_search": True}),
        (RESPONSES, {"tools": [{"type": "web_search_preview"}]}, {"web_search": False}),
        (CHAT, {"reasoning_effort": "high"}, {"thinking": True, "needs": ("thinking",)}),
        (CHAT, {"reasoning_effort": "none"}, {"thinking": False}),
        (RESPONSES, {"reasoning": {"effort": "low"}}, {"thinking": True}),
        (RESPONSES, {"reasoning": {"effort": ""}}, {"thinking": False}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"thinking": True, "needs": ()}),
        (MESSAGES, {"thinking": {"type": "disabled"}}, {"thinking": False}),
        (NATIVE, {"think": True}, {"thinking": True, "needs": ("thinking",)}),
        (NATIVE, {"think": "low"}, {"thinking": True}),
        (NATIVE, {"think": False}, {"thinking": False}),
        (NATIVE, {"think": ""}, {"thinking": False}),
        (MESSAGES, {"thinking": {"type": "adaptive"}}, {"thinking": False}),
        (CHAT, {"reasoning_effort": ""}, {"thinking": False}),
        (CHAT, {"messages": [{"content": [{"type": "image_url", "image_url": "data:"}]}]}, {"images": True}),
        (CHAT, {"messages": [{"content": [{"type": "text", "text": "image"}]}]}, {"images": False}),
        (MESSAGES, {"messages": [{"content": [{"type": "image"}]}]}, {"images": True}),
        (MESSAGES, {"messages": [{"content": [{"content": [{"type": "image"}]}]}]}, {"images": True}),
        (RESPONSES, {"input": [{"content": [{"type": "input_image"}]}]}, {"images": True}),
        (NATIVE, {"messages": [{"images": ["aGk="]}]}, {"images": True}),
        (GENERATE, {"images": []}, {"images": False}),
        (NATIVE, {"keep_alive": 0}, {"keep_alive": 0, "reloads": ("keep_alive",)}),
        (NATIVE, {"keep_alive": "24h"}, {"keep_alive": "24h"}),
        (NATIVE, {"keep_alive": None}, {"keep_alive": None, "reloads": ()}),
        (NATIVE, {"keep_alive": True}, {"keep_alive": ""}),
        (NATIVE, {"keep_alive": [1]}, {"keep_alive": ""}),
        (NATIVE, {"options": {"num_ctx": [8]}}, {"options": {"num_ctx": None}}),
        (NATIVE, {"options": {"NUM_CTX": 8}}, {"options": {"num_ctx": 8}}),
        (NATIVE, {"options": {"num_ctx": 8, "temperature": 0}}, {"options": {"num_ctx": 8}, "reloads": ("num_ctx",)}),
        (CHAT, {"options": {"num_ctx": 8}, "keep_alive": 0}, {"options": {}, "keep_alive": None}),
    ],
    ids=str,
)
def test_uses(path, fields, uses):
    """What a request uses is found, whether its body is held whole or passes."""
    body = orjson.dumps({"model": "a"} | fields)
    for asked in (read(path, body), passed(path, [body])[0]):
        assert {name: getattr(asked, name) for name in uses} == uses
        assert (asked.naming, asked.model, asked.why) == (Naming.NAMED, "a", "")


def test_other_routes_have_no_body_to_read():
    """A route that takes no JSON with a model is not read."""
    assert read("/api/pull", b'{"model":"a"}') is None
    assert reader_of("/api/pull", "", "") is None


def test_show_takes_another_key():
    """On /api/show a `name` counts where there is no `model`."""
    for body, model in ((b'{"name":"a"}', "a"), (b'{"name":"a","model":"b"}', "b"), (b'{"model":"","name":"a"}', "a")):
        assert read("/api/show", body).model == passed("/api/show", [body])[0].model == model


def test_a_form_is_read_whole():
    """A form that is held whole is read at once, as a form."""
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--b--\r\n'
    assert read_whole(FORM, "multipart/form-data; boundary=b", "", form).model == "a"


@pytest.mark.parametrize(
    ("body", "naming", "why"),
    [
        (b"{}", Naming.MISSING, "the body names no model"),
        (b'{"MODEL":"a"}', Naming.AMBIGUOUS, "the key `model` is spelled 'MODEL'"),
        (b'{"model":"a"}{}', Naming.AMBIGUOUS, "more follows the JSON object"),
        (b'{"model":"a"}\f', Naming.AMBIGUOUS, "more follows the JSON object"),
        (b'{"model":"a"}X', Naming.AMBIGUOUS, "more follows the JSON object"),
        (b'{"model":"a"}' + b" " * 70_000, Naming.UNREADABLE, "too many blanks follow the JSON object"),
        (b'{"model":"a"', Naming.UNREADABLE, "the JSON object is not complete"),
        (b'{"model":1}', Naming.UNREADABLE, "`model` is not a plain text"),
        (b'{"model":"a\xff"}', Naming.UNREADABLE, "`model` is not a plain text"),
        (b'{"model":"a\xef\xbf\xbd"}', Naming.UNREADABLE, "`model` is not a plain text"),
        (b'["a"]', Naming.UNREADABLE, "the body is not a JSON object"),
        (b"\xef\xbb\xbf{}", Naming.UNREADABLE, "the body is not a JSON object"),
        (b"]", Naming.UNREADABLE, "the body is not a JSON object"),
        (b'{"model" "a"}', Naming.UNREADABLE, "the body is not valid JSON"),
        (b'{"model" x"a"}', Naming.UNREADABLE, "the body is not valid JSON"),
        (b'{"model":"a" X"b":1}', Naming.UNREADABLE, "the body is not valid JSON"),
        (b'{"model":"a","messages":[X}', Naming.UNREADABLE, "the body is not valid JSON"),
        (b'{"model":"a","x":01}', Naming.UNREADABLE, "the body is not valid JSON"),
        (b'{"model":"a","stream":ture}', Naming.UNREADABLE, "the body is not valid JSON"),
        (b'{"model":"a","messages":[1,]}', Naming.UNREADABLE, "the body is not valid JSON"),
        (b'{"model":"a"]', Naming.UNREADABLE, "the body is not valid JSON"),
        (
            b'{"a":' + b"[" * DEEPEST,
            Naming.UNREADABLE,
            "the body is nested more than 10,000 levels deep",
        ),
        (b'{"a":' + b"1" * 600, Naming.UNREADABLE, "the body has a number that is too long to read"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)
def test_why_no_model_is_named(body, naming, why):
    """A body without a certain model says why, in words for a refusal."""
    asked, on, held = passed(CHAT, [body])
    assert (asked.naming, asked.model, asked.why) == (naming, None, why)
    assert on + held == body


@pytest.mark.parametrize("body", [b'["a"]', b'"a"', b"1"], ids=["array", "text", "number"])
def test_whole_body_that_is_no_object_is_unreadable(body):
    """A body that is held whole and is valid JSON, but no object, says so as a passing one does."""
    assert read(CHAT, body) == passed(CHAT, [body])[0]
    assert read(CHAT, body).why == "the body is not a JSON object"


@pytest.mark.parametrize(("blanks", "naming"), [(65_535, Naming.NAMED), (65_536, Naming.UNREADABLE)])
def test_so_many_blanks_may_follow(blanks, naming):
    """A brace and 65,535 blanks are held back behind a passing body, and no more."""
    assert passed(CHAT, [b'{"model":"a"}' + b" " * blanks])[0].naming is naming


def test_whole_body_with_padding_is_read():
    """Blanks after a body that is held whole are no reason to refuse it."""
    assert read(CHAT, b'{"model":"a"}' + b" " * 70_000).model == "a"


def test_what_does_not_matter_costs_little():
    """A passing body may have any number of small objects and arrays where nothing matters: they aren't tokens."""
    passing = Passing(CHAT)
    passing.feed(b'{"model":"a","x":[')
    passing.feed(b'{"a":1,"b":"}"},[2],' * 3_000)
    assert passing.tokens < 20


def test_tokens_are_counted():
    """Each brace, key, comma and value that matters is a token; a value that doesn't is read with its key."""
    passing = Passing(CHAT)
    passing.feed(b'{"model":"a","x":1,"y":[2],"stream":true}')
    assert passing.tokens == 11


@pytest.mark.parametrize(("size", "naming"), [(4096, Naming.NAMED), (4097, Naming.UNREADABLE)])
def test_a_long_name_is_not_read(size, naming):
    """No name is longer than 593 characters, and what is kept of a request must be small."""
    body = b'{"model":"%b"}' % (b"a" * size)
    assert read(CHAT, body) == passed(CHAT, [body])[0]
    assert read(CHAT, body).naming is naming


@pytest.mark.parametrize("first", [1, 511, 512], ids=lambda first: f"{first} in the first piece")
@pytest.mark.parametrize(("digits", "naming"), [(512, Naming.NAMED), (513, Naming.UNREADABLE)])
def test_a_long_number_is_not_read(digits, naming, first):
    """A number in a passing body has 512 bytes at most, wherever it is cut: a part of it must be kept."""
    before, number = b'{"model":"a","x":', b"1" * digits
    asked, on, held = passed(CHAT, [before + number[:first], number[first:] + b"}"])
    assert asked.naming is naming
    assert on + held == before + number + b"}"


def test_scanner_gives_up():
    """After a million tokens a passing body is unreadable, and nothing more goes on."""
    passing = Passing(NATIVE)
    passing.feed(b'{"messages":[')
    fed = 0
    while passing.asked is None and fed * 4 <= MOST_TOKENS:
        passing.feed(b'{"images":[1]},' * 4000)
        fed += 4000
    assert fed * 4 <= MOST_TOKENS < fed * 12
    assert passing.asked.why == "the body has more JSON tokens than this proxy reads"
    assert passing.feed(b"x") == b""


@pytest.mark.parametrize(
    ("path", "body", "at_once"),
    [
        pytest.param(path, body, at_once, id=name)
        for name, path, body, at_once in [
            ("most_values", MESSAGES, b'{"model":"a","tools":[],"messages":[' + b'{"a":1},' * 19_996 + b"{}]}", True),
            ("a_value_more", MESSAGES, b'{"model":"a","tools":[],"messages":[' + b'{"a":1},' * 19_997 + b"{}]}", False),
            ("many_messages", MESSAGES, b'{"model":"a","messages":[{}' + b",{}" * 21_000 + b"]}", True),
            ("too_many_messages", MESSAGES, b'{"model":"a","messages":[{}' + b",{}" * 150_000 + b"]}", False),
            ("many_parts", MESSAGES, b'{"model":"a","messages":[' + b'{"content":[{},{},{}]},' * 6_000 + b"{}]}", True),
            (
                "many_parts_with_images",
                MESSAGES,
                b'{"model":"a","x":"image","messages":[' + b'{"content":[{},{},{}]},' * 6_000 + b"{}]}",
                False,
            ),
            ("many_that_do_not_matter", MESSAGES, b'{"model":"a","metadata":[0' + b",0" * 200_000 + b"]}", True),
            ("bad_text", MESSAGES, b'{"model":"a","messages":["\\ud800"' + b",{}" * 150_000 + b"]}", False),
            ("tools", MESSAGES, b'{"model":"a","tools":[{"type":"web_search"}]}', True),
            ("tools_twice", MESSAGES, b'{"model":"a","tools":[],"tools":[{}]}', True),
            ("a_search_twice", MESSAGES, b'{"model":"a","x":[{"tools":1}],"tools":[],"y":"web_search"}', False),
            ("an_escape", MESSAGES, b'{"model":"a","x":"\\u00e9"}', True),
            ("an_escaped_letter", MESSAGES, b'{"model":"a","x":"\\u0061"}', False),
            ("nothing_to_hide", CHAT, b'{"model":"a","tools":[],"tools":[],"x":"web_search \\u0061"}', True),
            ("no_options", NATIVE, b'{"model":"a"}', True),
            ("options", NATIVE, b'{"model":"a","options":{"num_ctx":8}}', True),
            ("options_twice", NATIVE, b'{"model":"a","options":{"num_ctx":8},"options":{}}', False),
            ("a_prompt_and_null", GENERATE, b'{"model":"a","prompt":"b","prompt":null}', False),
            ("an_unknown_key", MESSAGES, b'{"model":"a","x":1}', True),
            ("an_odd_key", MESSAGES, b'{"model":"a","x":1,"STREAM":true}', False),
        ]
    ],
)
def test_what_is_read_at_once(path, body, at_once):
    """A body is read at once if orjson reads it as Go does, and few of its values matter; else in pieces, and alike."""
    assert (read_at_once(path, body) is not None) is at_once
    assert read(path, body) == passed(path, [body])[0]
    assert read(path, body).model == "a"


def test_a_long_text_goes_on_at_once():
    """Every byte of a long text goes on with the piece that brings it."""
    passing = Passing(GENERATE)
    piece = b"x" * 65536
    assert passing.feed(b'{"model":"a","prompt":"') == b'{"model":"a","prompt":"'
    assert all(passing.feed(piece) is piece for _ in range(64))
    assert (passing.feed(b'" }\n'), passing.held) == (b'" ', b"}\n")
    assert passing.end().prompt


_PLAIN_VALUES = st.sampled_from(
    [
        *(b'"a"', b'"b"', b'" "', b'"\\ud800"', b'"a\xff"', b'"\xed\xa0\x80"', b'"a\\u0000"', b'"' + b"a" * 129 + b'"'),
        *(b"true", b"false", b"null", b"1", b"1e999", b"01", b"NaN", b"[]", b"{}", b"[{}]", b"[ {}, {}]", b"[[{}]]"),
        *(b'[{"content":"\xff"}]', b'[{"content":[{"type":"text"}]}]', b'[{},""]', b'["",{}]', b"[{}", b"[{},]"),
        *(b'[{"\xff":1}]', b'[{"content":"\\x"}]', b'[{"content":"\x01"}]', b'[{"tools":[{}],"model":"c"}]', b"[null]"),
        *(b"\n[\t{ } ]", b"[" * 1100 + b"]" * 1100, b'[{"content":' + b"[" * 1100 + b"]" * 1100 + b"}]"),
    ]
)
_PLAIN_KEYS = st.sampled_from(
    [
        b"model",
        b"model",
        b"stream",
        b"messages",
        b"messages",
        b"input",
        b"seed",
        b"\\u006dodel",
        b"MODEL",
        b"tools",
        b"\xff",
    ]
)


@st.composite
def plain_chats(draw):
    """Return a body near to a chat that is read without objects, often with a key that stands twice."""
    fields = draw(st.lists(st.tuples(_PLAIN_KEYS, _PLAIN_VALUES), max_size=4))
    fields = [(b"model", b'"a"'), (b"messages", b"[{}]"), (b"input", b"[{}]"), *fields]
    order = draw(st.permutations(fields))
    after = draw(st.sampled_from([b"", b"", b" \n", b"x", b"{}", b"\f"]))
    return b"{" + b",".join(b'"%b":%b' % field for field in order) + b"}" + after


@examples(1000)
@given(PATHS, plain_chats() | bodies())
@example(CHAT, b'{"model":"a","messages":[{"content":"\xff"}]}')
@example(CHAT, b'{"model":"a","model":"b","messages":[{}],"stream":true,"stream":null}')
@example(CHAT, b'{"model":"a","messages":[{}],"messages":[]}')
@example(CHAT, b'{"model":"a","messages":[{"content":"\xff"},{"content":[{"type":"\\u0069mage"}]}]}')
def test_a_plain_chat_is_read_as_any_other_body(path, body):
    """A chat that is read without making objects asks for what the other ways of reading find in it."""
    fast = None if b"image" in body else read_chat(path, body)
    if fast is not None:
        slow = read_objects(path, body, images=False) or passed(path, [body])[0]
        assert fast == replace(slow, images=False)  # an escaped `image` is found only in passing


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"model":"a","messages":[{}]}'),
        (CHAT, b' {"model" : "a", "messages":\n[ {"content":"\xff"} , {}], "stream" : null}\r\n'),
        (RESPONSES, b'{"model":"a","input":[{"role":"user"}],"prompt_cache_key":"b"}'),
        (MESSAGES, b'{"model":"a","max_tokens":1,"messages":[{}],"metadata":{"user_id":"b"},"stream":true}'),
        (NATIVE, b'{"model":"a","messages":[{}],"stream":false}'),
    ],
    ids=str,
)
def test_plain_chats_need_no_objects(path, body):
    """A chat with plain keys is read without making objects of its messages."""
    assert read_chat(path, body).model == "a"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a"}',
        b'{"model":"a","messages":null}',
        b'{"model":"a","messages":[]}',
        b'{"model":"a","messages":"b"}',
        b'{"model":"a","messages":["b"]}',
        b'{"model":"a","messages":[[{}]]}',
        b'{"model":"a","input":[{}]}',
        b'{"model":"a","messages":[{}],"messages":[]}',
        b'{"model":"a","messages":[{}],"tools":[{}]}',
        b'{"model":"a","messages":[{}],"MODEL":"b"}',
        b'{"model":"a","messages":[{}],"\xff":1}',
        b'{"model":"a","messages":[{}],"stream":1}',
        b'{"model":1,"messages":[{}]}',
        b'{"model":null,"messages":[{}]}',
        b'{"model":"a\xff","messages":[{}]}',
        b'{"model":"a\\ud800","messages":[{}]}',
        b'{"model":"%b","messages":[{}]}' % (b"a" * 129),
        b'{"model":"a","messages":[{}]}{}',
        b'{"model":"a","messages":[{}]}\f',
        b'\xef\xbb\xbf{"model":"a","messages":[{}]}',
        b'{"model":"a","messages":[{"content":"%b"}]}' % (b"b" * 65_536),
        b'["a",[{}]]',
        b"",
    ],
    ids=lambda body: body[:60].decode("latin-1"),
)
def test_other_bodies_are_read_in_another_way(body):
    """A body that isn't plainly a chat with a model and a message is left to the other ways of reading."""
    assert read_chat(CHAT, body) is None


@pytest.mark.parametrize("size", [65_536, 65_537])
def test_longest_plain_chat(size):
    """A chat of up to 64 KiB is read without making objects."""
    body = b'{"model":"a","messages":[{}]}'.ljust(size)
    assert (read_chat(CHAT, body) is not None) is (size <= 65_536)


@pytest.mark.parametrize("size", [128, 129])
def test_longest_name_in_a_plain_chat(size):
    """A chat is read without making objects if its model's name has up to 128 characters."""
    body = b'{"model":"%b","messages":[{}]}' % (b"a" * size)
    assert (read_chat(CHAT, body) is not None) is (size <= 128)


@pytest.mark.parametrize("levels", [500, 1100, DEEPEST, 30_000])
def test_deep_nesting_raises_nothing(levels):
    """A chat that is nested as deep as Go reads names its model. A deeper one raises nothing, and Ollama refuses it."""
    body = b'{"model":"a","messages":[{"content":%b%b}]}' % (b"[" * (levels - 3), b"]" * (levels - 3))
    assert read(CHAT, body).model in (("a",) if levels <= DEEPEST else ("a", None))
