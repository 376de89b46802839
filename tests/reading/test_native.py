"""What goes on of a native request without what loads, unloads or pins a model: the same bytes, without those."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.reading.asked import Naming
from proxy.reading.body import read
from proxy.reading.fields import LOAD_OPTIONS
from proxy.reading.native import Cutter
from tests.go_json.corpus import bodies, without_reloads
from tests.go_json.readings import readings
from tests.support.examples import examples

PATHS = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings")
CHAT = PATHS[0]
CASES = [each for each in readings("json") if each.case["path"] in PATHS]

CUTS = {
    "last": (b'{"model":"a","keep_alive":0}', b'{"model":"a"}'),
    "first": (b'{"keep_alive":0,"model":"a"}', b'{"model":"a"}'),
    "middle": (b'{"model":"a","keep_alive":-1,"stream":false}', b'{"model":"a","stream":false}'),
    "alone": (b'{"keep_alive":"24h"}', b"{}"),
    "alone_with_blanks": (b'{ "keep_alive" : 0 }', b"{ }"),
    "blanks": (b' { "model" : "a" ,\n "keep_alive" : 0 }\n', b' { "model" : "a" }\n'),
    "twice": (b'{"keep_alive":1,"model":"a","keep_alive":0}', b'{"model":"a"}'),
    "in_a_row": (b'{"x":1,"keep_alive":1,"keep_alive":2,"model":"a"}', b'{"x":1,"model":"a"}'),
    "in_a_row_at_the_end": (b'{"model":"a","keep_alive":1,"keep_alive":2}', b'{"model":"a"}'),
    "letter_case": (b'{"model":"a","KEEP_Alive":0}', b'{"model":"a"}'),
    "kelvin_sign": (b'{"model":"a","\xe2\x84\xaaeep_alive":0}', b'{"model":"a"}'),
    "escaped_key": (b'{"model":"a","keep\\u005falive":0}', b'{"model":"a"}'),
    "value_of_any_kind": (b'{"keep_alive":{"a":[1,"]}"]},"model":"a","keep_alive":[{}]}', b'{"model":"a"}'),
    "value_with_quotes": (b'{"keep_alive":"\\",\\"","model":"a"}', b'{"model":"a"}'),
    "null": (b'{"keep_alive":null,"model":"a"}', b'{"model":"a"}'),
    "deeper_ones_stay": (b'{"messages":[{"keep_alive":1,"options":{"num_ctx":1}}],"x":{"keep_alive":1}}',) * 2,
    "text_that_looks_so": (b'{"prompt":"\\"keep_alive\\":0,","model":"\\"num_ctx\\""}',) * 2,
    "options": (b'{"options":{"num_ctx":8,"seed":7,"num_gpu":1}}', b'{"options":{"seed":7}}'),
    "options_last": (b'{"options":{"seed":7 , "num_ctx":8 }}', b'{"options":{"seed":7 }}'),
    "options_all": (b'{"model":"a","options":{"num_ctx":8}}', b'{"model":"a","options":{}}'),
    "options_twice": (
        b'{"options":{"num_ctx":8},"model":"a","options":{"seed":7,"num_batch":1}}',
        b'{"options":{},"model":"a","options":{"seed":7}}',
    ),
    "options_long_s": (
        b'{"option\xc5\xbf":{"num_thread":1},"OPTIONS":{"use_mma\\u0070":true}}',
        b'{"option\xc5\xbf":{},"OPTIONS":{}}',
    ),
    "options_and_keep_alive": (b'{"options":{"num_ctx":8},"keep_alive":0}', b'{"options":{}}'),
    "options_nested_twice": (
        b'{"options":{"options":{"num_ctx":8},"num_ctx":9}}',
        b'{"options":{"options":{"num_ctx":8}}}',
    ),
    "options_as_a_list": (b'{"options":[{"num_ctx":8}]}',) * 2,
    "options_null": (b'{"options":null,"stream":false}',) * 2,
    "run_time_options": (b'{"options":{"num_predict":9,"temperature":0,"stop":["x"],"seed":1,"num_keep":4,"top_k":1}}',)
    * 2,
    "large_numbers": (
        b'{"keep_alive":0,"options":{"seed":123456789012345678901234567890,"temperature":1.10e2}}',
        b'{"options":{"seed":123456789012345678901234567890,"temperature":1.10e2}}',
    ),
    "schema_in_its_order": (
        b'{"format":{"z":1,"a":{"required":["b","a"],"b":2}},"keep_alive":0,"format":{"y":1}}',
        b'{"format":{"z":1,"a":{"required":["b","a"],"b":2}},"format":{"y":1}}',
    ),
    "lone_surrogate": (b'{"prompt":"\\ud800","keep_alive":0}', b'{"prompt":"\\ud800"}'),
    "what_follows": (b'{"model":"a","keep_alive":0} {"keep_alive":0}', b'{"model":"a"} {"keep_alive":0}'),
    "nothing": (b"{}", b"{}"),
}
"""What was sent, and what goes on."""


@pytest.mark.parametrize(("sent", "left"), CUTS.values(), ids=CUTS)
def test_what_goes_on(sent: bytes, left: bytes) -> None:
    """Exactly the members that would change a model go, with their commas, however they are spelled."""
    assert without_reloads(sent) == left


@pytest.mark.parametrize("body", [b'{"keep_alive"}', b'{"keep_alive":0,"model', b"{keep_alive:0}", b'{"model":"a"]'])
def test_body_that_was_not_read_is_not_cut(body: bytes) -> None:
    """Only a body that was read to its end can be cut; nothing of another one goes on."""
    with pytest.raises(ValueError, match=r"^the body was not read to its end before$"):
        without_reloads(body)


@pytest.mark.parametrize("name", sorted(LOAD_OPTIONS))
def test_each_load_time_option_goes(name: str) -> None:
    """Every option for which some Ollama loads a model again goes, in any letter case."""
    assert without_reloads(b'{"options":{"%b":1,"%b":2}}' % (name.encode(), name.upper().encode())) == b'{"options":{}}'


def unchanged_but_for_reloads(path: str, body: bytes) -> None:
    """Check that the rest of a body asks for the same, without what would change a model."""
    asked = read(path, body)
    if asked is None or asked.naming is Naming.UNREADABLE:
        return
    left = without_reloads(body)
    assert read(path, left) == replace(asked, keep_alive=None, options={})
    assert without_reloads(left) == left
    if not asked.reloads and b"null" not in body:
        assert left == body


@pytest.mark.parametrize("reading", [pytest.param(each, id=each.id) for each in CASES if "made-up" not in each.id])
def test_rest_of_what_go_read(reading) -> None:
    """What goes on of a body that Go was asked about is read as before, but for what would change a model."""
    unchanged_but_for_reloads(reading.case["path"], reading.body)


@examples(500)
@given(st.sampled_from(PATHS), bodies())
def test_rest_of_any_body(path, body) -> None:
    """Whatever is sent, what goes on has nothing left that would change a model, and asks for the same otherwise."""
    unchanged_but_for_reloads(path, body)


PLAIN = (
    st.none() | st.integers(-(2**53), 2**53) | st.text(max_size=4) | st.floats(allow_nan=False, allow_infinity=False)
)
NESTED = PLAIN | st.lists(PLAIN | st.lists(PLAIN, max_size=2), max_size=3)
MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(["keep_alive", "Keep_Alive", "\u212aeep_alive", "model", "prompt", "format"]),
        NESTED | st.dictionaries(st.text(max_size=4), NESTED, max_size=3),
    ),
    max_size=8,
)


@examples(500)
@given(MEMBERS, st.sampled_from([b"", b" ", b"\n\t"]))
def test_other_members_keep_their_bytes(members, blank) -> None:
    """Whatever stands next to it, the other members go on as they were sent, in their order."""
    comma = blank + b"," + blank
    written = [(key, orjson.dumps(key) + blank + b":" + blank + orjson.dumps(value)) for key, value in members]
    kept = [text for key, text in written if not key.lower().endswith("eep_alive")]
    body = b"{" + comma.join(text for _, text in written) + b"}"
    assert without_reloads(body) == b"{" + comma.join(kept) + b"}"


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_it_goes_in_steps(steps: int) -> None:
    """However few steps are taken at a time, the same goes on."""
    body = b'{"messages":[[{"a":[]}],{}],"options":{"num_ctx":[[8]],"seed":1},"keep_alive":{"a":[{}]},"model":"a"}'
    cutter, runs = Cutter(body), 1
    while (left := cutter.run(steps)) is None:
        runs += 1
    assert left == b'{"messages":[[{"a":[]}],{}],"options":{"seed":1},"model":"a"}' == without_reloads(body)
    assert runs <= 40 // steps + 1
