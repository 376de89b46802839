"""The corpus: bodies that two readers may read differently, real clients' bodies, and what hypothesis makes up."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy.policy.native import PATHS as NATIVE_PATHS
from proxy.reading.asked import Naming
from proxy.reading.body import read
from proxy.reading.fields import SHAPES
from proxy.reading.native import Cutter

if TYPE_CHECKING:
    from collections.abc import Iterator

Case = dict[str, Any]
"""What the oracle is asked: `id`, `kind` and, by kind, `path`, `body`, `name`, `content_type` and `query`."""

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
NATIVE, GENERATE, SHOW = "/api/chat", "/api/generate", "/api/show"

LEFT_OF = "left-of-"
"""How the name of a case begins that is another one without what would change a model."""

_TRACES = Path(__file__).parent.parent / "traces"

_JSON: list[tuple[str, str, bytes]] = [
    ("plain", CHAT, b'{"model":"a","messages":[{"role":"user","content":"hi"}],"stream":true}'),
    ("model-last", CHAT, b'{"messages":[{"role":"user","content":"hi"}],"model":"a"}'),
    ("blanks-around", CHAT, b' \t\r\n{ "model" : "a" } \n\n'),
    ("padding-after", CHAT, b'{"model":"a"}' + b" " * 200),
    ("padding-after-long", CHAT, b'{"model":"a"}' + b"\n" * 70_000),
    ("padding-before-long", CHAT, b"\t" * 70_000 + b'{"model":"a"}'),
    ("padding-then-value", CHAT, b'{"model":"a"}' + b" " * 70_000 + b'{"model":"x:cloud"}'),
    ("padding-inside", CHAT, b'{"model"' + b" " * 70_000 + b':"a"}'),
    ("value-then-broken-value", CHAT, b'{"model":"a"}{"model":'),
    ("three-values", CHAT, b'{}{"model":"a"}{"model":"x:cloud"}'),
    ("null-then-value", CHAT, b'null{"model":"x:cloud"}'),
    ("array-then-value", CHAT, b'[]{"model":"x:cloud"}'),
    ("vertical-tab-after", CHAT, b'{"model":"a"}\x0b'),
    ("form-feed-before", CHAT, b'\x0c{"model":"a"}'),
    ("no-break-space-after", CHAT, b'{"model":"a"}\xc2\xa0'),
    ("nul-after", CHAT, b'{"model":"a"}\0'),
    ("two-values", CHAT, b'{"model":"a"}{"model":"x:cloud"}'),
    ("two-lines", CHAT, b'{"model":"a"}\n{"model":"x:cloud"}\n'),
    ("garbage-after", CHAT, b'{"model":"a"} x'),
    ("comma-after", CHAT, b'{"model":"a"},'),
    ("brace-after", CHAT, b'{"model":"a"}}'),
    ("duplicate", CHAT, b'{"model":"a","model":"b"}'),
    ("duplicate-of-three", CHAT, b'{"model":"x:cloud","model":"b","model":"a"}'),
    ("duplicate-then-null", CHAT, b'{"model":"a","model":null}'),
    ("null-then-model", CHAT, b'{"model":null,"model":"a"}'),
    ("duplicate-then-number", CHAT, b'{"model":"a","model":1}'),
    ("number-then-model", CHAT, b'{"model":1,"model":"a"}'),
    ("duplicate-then-object", CHAT, b'{"model":"a","model":{}}'),
    ("duplicate-then-empty", CHAT, b'{"model":"a","model":""}'),
    ("duplicate-of-hundred", CHAT, b"{" + b'"model":"x:cloud",' * 99 + b'"model":"a"}'),
    ("duplicate-then-array", CHAT, b'{"model":"a","model":["x:cloud"]}'),
    ("duplicate-around-deep", CHAT, b'{"model":"x:cloud","x":' + b"[" * 900 + b"]" * 900 + b',"model":"a"}'),
    ("folded", CHAT, b'{"MODEL":"a"}'),
    ("folded-after", CHAT, b'{"model":"x:cloud","MODEL":"a"}'),
    ("folded-before", CHAT, b'{"Model":"x:cloud","model":"a"}'),
    ("folded-null-after", CHAT, b'{"model":"a","MODEL":null}'),
    ("folded-same", CHAT, b'{"model":"a","modeL":"a"}'),
    ("escaped-key", CHAT, b'{"\\u006dodel":"a"}'),
    ("escaped-key-folded", CHAT, b'{"model":"x:cloud","\\u004dodel":"a"}'),
    ("escaped-key-duplicate", CHAT, b'{"model":"x:cloud","mod\\u0065l":"a"}'),
    ("escaped-key-whole", CHAT, b'{"model":"a","\\u006D\\u006F\\u0064\\u0065\\u006C":"x:cloud"}'),
    ("escaped-key-pair", CHAT, b'{"model":"a","\\ud83d\\ude00model":"b"}'),
    ("escaped-key-broken", CHAT, b'{"model":"a","\\u006":"b"}'),
    ("escaped-key-solidus", CHAT, b'{"model":"a","mo\\/del":"b"}'),
    ("key-with-lone-surrogate", CHAT, b'{"model":"a","\\ud83dmodel":"b"}'),
    ("key-with-invalid-utf8", CHAT, b'{"model":"a","model\xff":"b"}'),
    ("key-with-nul", CHAT, b'{"model":"a","model\\u0000":"b"}'),
    ("key-with-zero-width", CHAT, '{"model":"a","mo\u200bdel":"b"}'.encode()),
    ("key-with-blank", CHAT, b'{"model":"a","model ":"b"," model":"c"}'),
    ("key-full-width", CHAT, '{"model":"a","\uff4dodel":"b"}'.encode()),
    ("nested", CHAT, b'{"x":{"model":"x:cloud"},"model":"a"}'),
    ("nested-only", CHAT, b'{"x":{"model":"a"}}'),
    ("nested-after", CHAT, b'{"model":"a","x":[{"model":"x:cloud"}]}'),
    ("in-text", CHAT, b'{"messages":[{"role":"user","content":"\\",\\"model\\":\\"x:cloud\\""}],"model":"a"}'),
    ("in-text-backslash-end", CHAT, b'{"x":"\\\\","model":"a"}'),
    ("in-array-of-models", CHAT, b'{"model":["x:cloud","a"],"model":"a"}'),
    ("in-message", CHAT, b'{"messages":[{"role":"user","content":"hi","model":"x:cloud"}],"model":"a"}'),
    ("in-array", CHAT, b'[{"model":"a"}]'),
    ("missing", CHAT, b"{}"),
    ("null", CHAT, b"null"),
    ("true", CHAT, b"true"),
    ("number", CHAT, b"12"),
    ("text", CHAT, b'"model"'),
    ("empty", CHAT, b""),
    ("blanks", CHAT, b"  \n"),
    ("model-null", CHAT, b'{"model":null}'),
    ("model-number", CHAT, b'{"model":1}'),
    ("model-true", CHAT, b'{"model":true}'),
    ("model-array", CHAT, b'{"model":["a"]}'),
    ("model-object", CHAT, b'{"model":{"model":"a"}}'),
    ("model-empty", CHAT, b'{"model":""}'),
    ("model-blank", CHAT, b'{"model":" \\t\\u00a0"}'),
    ("model-trimmed", CHAT, b'{"model":"\\u3000 a \\n"}'),
    ("model-not-trimmed", CHAT, b'{"model":"\\u001ca\\u200b"}'),
    ("model-escaped", CHAT, b'{"model":"\\u0061"}'),
    ("model-cloud-escaped", CHAT, b'{"model":"x\\u003acloud"}'),
    ("model-invalid-utf8", CHAT, b'{"model":"a\xff"}'),
    ("model-overlong-utf8", CHAT, b'{"model":"\xc1\xa1"}'),
    ("model-utf8-surrogate", CHAT, b'{"model":"\xed\xa0\x80"}'),
    ("model-lone-surrogate", CHAT, b'{"model":"a\\ud800"}'),
    ("model-pair", CHAT, b'{"model":"\\ud83d\\ude00"}'),
    ("model-swapped-pair", CHAT, b'{"model":"\\ude00\\ud83d"}'),
    ("model-replacement", CHAT, '{"model":"a\ufffd"}'.encode()),
    ("model-nul", CHAT, b'{"model":"a\\u0000"}'),
    ("model-long", CHAT, b'{"model":"' + b"a" * 6000 + b'"}'),
    ("model-control", CHAT, b'{"model":"a\nb"}'),
    ("control-elsewhere", CHAT, b'{"model":"a","x":"a\tb"}'),
    ("delete-in-text", CHAT, b'{"model":"a","x":"\x7f"}'),
    ("bad-escape", CHAT, b'{"model":"a","x":"\\x"}'),
    ("bad-hex", CHAT, b'{"model":"a","x":"\\u00g0"}'),
    ("upper-u-escape", CHAT, b'{"model":"a","x":"\\U0041"}'),
    ("invalid-utf8-elsewhere", CHAT, b'{"model":"a","x":"\xff\xfe"}'),
    ("lone-surrogate-elsewhere", CHAT, b'{"model":"a","x":"\\ud800"}'),
    ("invalid-utf8-outside", CHAT, b'{"model":"a"\xff}'),
    ("huge-number", CHAT, b'{"model":"a","x":1e999}'),
    ("huge-integer", CHAT, b'{"model":"a","x":' + b"9" * 400 + b"}"),
    ("endless-integer", CHAT, b'{"model":"a","x":' + b"9" * 5000 + b"}"),
    ("huge-exponent", CHAT, b'{"model":"a","x":1e' + b"9" * 400 + b"}"),
    ("tiny-exponent", CHAT, b'{"model":"a","x":1e-' + b"9" * 400 + b"}"),
    ("huge-fraction", CHAT, b'{"model":"a","x":0.' + b"0" * 4000 + b"1}"),
    ("huge-known-number", CHAT, b'{"model":"a","temperature":1e999}'),
    ("huge-known-integer", CHAT, b'{"model":"a","max_tokens":99999999999999999999}'),
    ("huge-number-then-model", CHAT, b'{"max_tokens":99999999999999999999,"model":"a"}'),
    ("huge-number-as-model", CHAT, b'{"model":1e999,"model":"a"}'),
    ("fraction-for-integer", CHAT, b'{"model":"a","max_tokens":1.5}'),
    ("leading-zero", CHAT, b'{"model":"a","x":01}'),
    ("plus", CHAT, b'{"model":"a","x":+1}'),
    ("point-end", CHAT, b'{"model":"a","x":1.}'),
    ("point-begin", CHAT, b'{"model":"a","x":.1}'),
    ("minus", CHAT, b'{"model":"a","x":-}'),
    ("minus-zero", CHAT, b'{"model":"a","x":-0}'),
    ("hex", CHAT, b'{"model":"a","x":0x10}'),
    ("nan", CHAT, b'{"model":"a","x":NaN}'),
    ("infinity", CHAT, b'{"model":"a","x":-Infinity}'),
    ("true-upper", CHAT, b'{"model":"a","x":True}'),
    ("comma-last", CHAT, b'{"model":"a",}'),
    ("comma-first", CHAT, b'{,"model":"a"}'),
    ("comma-twice", CHAT, b'{"model":"a",,"x":1}'),
    ("comma-in-array", CHAT, b'{"model":"a","x":[1,]}'),
    ("comma-missing", CHAT, b'{"model":"a" "x":1}'),
    ("colon-missing", CHAT, b'{"model" "a"}'),
    ("colon-twice", CHAT, b'{"model"::"a"}'),
    ("value-missing", CHAT, b'{"model":}'),
    ("single-quotes", CHAT, b"{'model':'a'}"),
    ("bare-key", CHAT, b'{model:"a"}'),
    ("comment", CHAT, b'{"model":"a"/*,"model":"b"*/}'),
    ("line-comment", CHAT, b'{"model":"a"//\n}'),
    ("brackets-crossed", CHAT, b'{"model":"a","x":[}]}'),
    ("brackets-open", CHAT, b'{"model":"a","x":[[]}'),
    ("cut-after-model", CHAT, b'{"model":"a"'),
    ("cut-in-text", CHAT, b'{"model":"a'),
    ("cut-after-backslash", CHAT, b'{"model":"a\\'),
    ("cut-in-word", CHAT, b'{"model":"a","x":tru'),
    ("bom", CHAT, b'\xef\xbb\xbf{"model":"a"}'),
    ("bom-twice", CHAT, b'\xef\xbb\xbf\xef\xbb\xbf{"model":"a"}'),
    ("bom-after", CHAT, b'{"model":"a"}\xef\xbb\xbf'),
    ("bom-in-key", CHAT, '{"model":"a","\ufeffmodel":"b"}'.encode()),
    ("utf-16-be", CHAT, '{"model":"a"}'.encode("utf-16-be")),
    ("utf-16-of-ascii-value", CHAT, b'{"model":"a","x":"' + "x:cloud".encode("utf-16-le") + b'"}'),
    ("utf-16-le", CHAT, '{"model":"a"}'.encode("utf-16-le")),
    ("utf-16", CHAT, '{"model":"a"}'.encode("utf-16")),
    ("utf-32", CHAT, '{"model":"a"}'.encode("utf-32")),
    ("utf-7", CHAT, '{"model":"a"}'.encode("utf-7")),
    ("gzip", CHAT, gzip.compress(b'{"model":"a"}', mtime=0)),
    ("deep-1000", CHAT, b'{"model":"a","x":' + b"[" * 1000 + b"]" * 1000 + b"}"),
    ("deep-1025", CHAT, b'{"model":"a","x":' + b"[" * 1025 + b"]" * 1025 + b"}"),
    ("deep-9999", CHAT, b'{"model":"a","x":' + b"[" * 9999 + b"]" * 9999 + b"}"),
    ("deep-10000", CHAT, b'{"model":"a","x":' + b"[" * 10000 + b"]" * 10000 + b"}"),
    ("deep-20000", CHAT, b'{"model":"a","x":' + b"[" * 20000 + b"]" * 20000 + b"}"),
    ("deep-20000-objects", CHAT, b'{"model":"a","x":' + b'{"x":' * 20000 + b"1" + b"}" * 20000 + b"}"),
    ("deep-20000-before", CHAT, b'{"x":' + b"[" * 20000 + b"]" * 20000 + b',"model":"a"}'),
    ("deep-20000-open", CHAT, b'{"model":"a","x":' + b"[" * 20000),
    ("deep-20000-in-messages", CHAT, b'{"model":"a","messages":' + b"[" * 20000 + b"]" * 20000 + b"}"),
    ("deep-1000-models", CHAT, b'{"model":"a","x":' + b'{"model":' * 1000 + b'"x:cloud"' + b"}" * 1000 + b"}"),
    ("deep-objects", CHAT, b'{"model":"a","x":' + b'{"x":' * 3000 + b"1" + b"}" * 3000 + b"}"),
    ("many-keys", CHAT, b'{"model":"x:cloud",' + b'"x":1,' * 3000 + b'"model":"a"}'),
    ("stream-long-s", CHAT, '{"model":"a","\u017ftream":true}'.encode()),
    ("stream-null-after", CHAT, b'{"model":"a","stream":true,"stream":false}'),
    ("stream-text", CHAT, b'{"model":"a","stream":"true"}'),
    ("stream-upper", CHAT, b'{"model":"a","STREAM":true}'),
    ("stream-default-native", NATIVE, b'{"model":"a","messages":[]}'),
    ("stream-null-native", NATIVE, b'{"model":"a","stream":null}'),
    ("stream-false-native", NATIVE, b'{"model":"a","stream":false}'),
    ("tools", CHAT, b'{"model":"a","tools":[{"type":"function","function":{"name":"f"}}]}'),
    ("tools-empty", CHAT, b'{"model":"a","tools":[]}'),
    ("tools-null", CHAT, b'{"model":"a","tools":null}'),
    ("tools-gone", NATIVE, b'{"model":"a","messages":[{}],"tools":[{}],"Tools":[]}'),
    ("tools-gone-null", NATIVE, b'{"model":"a","messages":[{}],"Tools":[{}],"tools":null}'),
    ("prompt-null-after", GENERATE, b'{"model":"a","prompt":"hi","prompt":null}'),
    ("prompt-empty-after", GENERATE, b'{"model":"a","prompt":"hi","prompt":""}'),
    ("prompt-escaped-before", GENERATE, b'{"model":"a","\\u0070rompt":"hi","prompt":null}'),
    ("prompt-null", GENERATE, b'{"model":"a","prompt":null}'),
    ("prompt-of-instructions", RESPONSES, b'{"model":"a","instructions":"hi","instructions":null}'),
    ("prompt-input-empty-after", RESPONSES, b'{"model":"a","input":"hi","input":[]}'),
    ("prompt-input-text-after", RESPONSES, b'{"model":"a","input":[{"role":"user","content":"hi"}],"input":""}'),
    ("prompt-input-null-after", RESPONSES, b'{"model":"a","input":[{"role":"user","content":"hi"}],"input":null}'),
    ("prompt-messages-of-null", NATIVE, b'{"model":"a","messages":[null]}'),
    ("prompt-messages-null-after", NATIVE, b'{"model":"a","messages":[{}],"messages":null}'),
    ("thinking", CHAT, b'{"model":"a","messages":[{}],"reasoning_effort":"high"}'),
    ("thinking-object", CHAT, b'{"model":"a","messages":[{}],"reasoning":{"effort":"high"}}'),
    ("thinking-none-after", CHAT, b'{"model":"a","messages":[{}],"Reasoning_effort":"high","reasoning_effort":"none"}'),
    (
        "thinking-none-in-object",
        CHAT,
        b'{"model":"a","messages":[{}],"reasoning":{"effort":"none"},"reasoning_effort":"high"}',
    ),
    ("thinking-empty-object", CHAT, b'{"model":"a","messages":[{}],"reasoning":{},"reasoning_effort":"high"}'),
    ("thinking-null-object", CHAT, b'{"model":"a","messages":[{}],"reasoning":null,"reasoning_effort":"high"}'),
    ("thinking-object-gone", CHAT, b'{"model":"a","Reasoning":{"effort":"high"},"reasoning":null,"reasoning":{}}'),
    ("thinking-null-after", NATIVE, b'{"model":"a","messages":[{}],"THINK":true,"think":null}'),
    ("thinking-false-after", NATIVE, b'{"model":"a","messages":[{}],"THINK":"high","think":false}'),
    ("search", MESSAGES, b'{"model":"a","tools":[{"type":"web_search_20250305","name":"web_search"}]}'),
    ("search-blank", MESSAGES, b'{"model":"a","tools":[{"type":" \\u00a0web_search"}]}'),
    ("search-folded", MESSAGES, b'{"model":"a","TOOLS":[{"TYPE":"web_search"}]}'),
    ("search-escaped", MESSAGES, b'{"model":"a","tools":[{"type":"web\\u005fsearch"}]}'),
    ("search-upper", MESSAGES, b'{"model":"a","tools":[{"type":"WEB_SEARCH"}]}'),
    ("search-kept", MESSAGES, b'{"model":"a","tools":[{"type":"web_search"}],"tools":[{"name":"f"}]}'),
    ("search-kept-null", MESSAGES, b'{"model":"a","tools":[{"type":"web_search"}],"tools":[null]}'),
    ("search-kept-escaped", MESSAGES, b'{"model":"a","\\u0074ools":[{"type":"web_search"}],"tools":[{"name":"f"}]}'),
    ("search-kept-upper", MESSAGES, b'{"model":"a","TOOLS":[{"type":"web_search"}],"TOOLS":[{"name":"f"}]}'),
    ("search-kept-long-s", MESSAGES, '{"model":"a","tool\u017f":[{"type":"web_search"}],"tool\u017f":[{}]}'.encode()),
    ("search-gone", MESSAGES, b'{"model":"a","tools":[{"type":"web_search"}],"tools":[]}'),
    ("search-type-null", MESSAGES, b'{"model":"a","tools":[{"type":"web_search","type":null}]}'),
    ("search-type-last", MESSAGES, b'{"model":"a","tools":[{"type":"web_search","type":"custom"}]}'),
    ("search-name-only", MESSAGES, b'{"model":"a","tools":[{"type":"custom","name":"web_search"}]}'),
    ("search-in-text", MESSAGES, b'{"model":"a","messages":[{"role":"user","content":"web_search"}]}'),
    ("search-responses", RESPONSES, b'{"model":"a","input":"hi","tools":[{"type":"web_search"}]}'),
    ("search-responses-preview", RESPONSES, b'{"model":"a","tools":[{"type":"web_search_preview"}]}'),
    ("search-responses-blank", RESPONSES, b'{"model":"a","tools":[{"type":" web_search"}]}'),
    (
        "search-responses-nested",
        RESPONSES,
        b'{"model":"a","tools":[{"type":"namespace","tools":[{"type":"web_search"}]}]}',
    ),
    ("search-responses-kept", RESPONSES, b'{"model":"a","tools":[{"type":"web_search"}],"tools":[{}]}'),
    ("search-chat", CHAT, b'{"model":"a","tools":[{"type":"web_search"}]}'),
    ("options", NATIVE, b'{"model":"a","options":{"num_ctx":8,"temperature":0}}'),
    ("options-kept", NATIVE, b'{"model":"a","options":{"num_ctx":8},"options":{"temperature":0}}'),
    ("options-kept-escaped", NATIVE, b'{"model":"a","\\u006fptions":{"num_ctx":8},"options":{"temperature":0}}'),
    ("options-kept-folded", NATIVE, b'{"model":"a","OPTIONS":{"num_ctx":8},"options":{"temperature":0}}'),
    ("options-upper-twice", NATIVE, b'{"model":"a","OPTIONS":{"num_ctx":8},"OPTIONS":{"temperature":0}}'),
    ("options-long-s-twice", NATIVE, '{"model":"a","option\u017f":{"num_ctx":8},"option\u017f":{}}'.encode()),
    ("options-null-after", NATIVE, b'{"model":"a","options":{"num_ctx":8},"options":null}'),
    ("options-upper-name", NATIVE, b'{"model":"a","options":{"NUM_CTX":8}}'),
    ("options-null-value", NATIVE, b'{"model":"a","options":{"num_ctx":null}}'),
    ("options-of-v1", CHAT, b'{"model":"a","options":{"num_ctx":8},"keep_alive":0}'),
    ("keep-alive-0", NATIVE, b'{"model":"a","keep_alive":0}'),
    ("keep-alive-text", NATIVE, b'{"model":"a","keep_alive":"-1m"}'),
    ("keep-alive-null", NATIVE, b'{"model":"a","keep_alive":null}'),
    ("keep-alive-kelvin", NATIVE, '{"model":"a","\u212aeep_alive":0}'.encode()),
    ("keep-alive-then-null", NATIVE, b'{"model":"a","keep_alive":0,"keep_alive":null}'),
    ("keep-alive-huge", NATIVE, b'{"model":"a","keep_alive":1e999}'),
    ("keep-alive-escaped", NATIVE, b'{"model":"a","\\u006beep_alive":0}'),
    ("keep-alive-object", NATIVE, b'{"model":"a","keep_alive":{}}'),
    ("options-huge", NATIVE, b'{"model":"a","options":{"num_ctx":1e999}}'),
    ("options-array", NATIVE, b'{"model":"a","options":[{"num_ctx":8}]}'),
    ("options-escaped-name", NATIVE, b'{"model":"a","options":{"num\\u005fctx":8}}'),
    ("options-twice-inside", NATIVE, b'{"model":"a","options":{"num_ctx":8,"num_ctx":null}}'),
    ("keep-alive-true", NATIVE, b'{"model":"a","keep_alive":true}'),
    ("generate", GENERATE, b'{"model":"a","prompt":"hi"}'),
    ("generate-load", GENERATE, b'{"model":"a"}'),
    ("generate-name", GENERATE, b'{"name":"a"}'),
    ("show", SHOW, b'{"model":"a"}'),
    ("show-name", SHOW, b'{"name":"a"}'),
    ("show-both", SHOW, b'{"name":"x:cloud","model":"a"}'),
    ("show-model-empty", SHOW, b'{"model":"","name":"a"}'),
    ("show-model-blank", SHOW, b'{"model":" ","name":"a"}'),
    ("show-name-folded", SHOW, b'{"NAME":"x:cloud","name":"a"}'),
    ("show-model-null", SHOW, b'{"model":null,"name":"x:cloud"}'),
    ("show-model-then-empty", SHOW, b'{"model":"a","name":"x:cloud","model":""}'),
    ("show-name-escaped", SHOW, b'{"\\u006eame":"x:cloud"}'),
    ("show-name-null", SHOW, b'{"name":"a","name":null}'),
]

_FORM_TYPE = "multipart/form-data; boundary=abc"
_MODEL = b'--abc\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n'
_FILE = (
    b'--abc\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b"RIFF\r\n--ab\r\n\0\r\n"
)
_END = b"--abc--\r\n"


def _part(head: bytes, content: bytes = b"b") -> bytes:
    return b"--abc\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


_FORMS: list[tuple[str, str, str, bytes]] = [
    ("plain", _FORM_TYPE, "", _MODEL + _FILE + _END),
    ("model-last", _FORM_TYPE, "", _FILE + _MODEL + _END),
    ("quoted-boundary", 'multipart/form-data; boundary="abc"', "", _MODEL + _FILE + _END),
    ("no-boundary", "multipart/form-data", "", _MODEL + _END),
    ("json-type", "application/json", "", b'{"model":"a"}'),
    ("mixed", "multipart/mixed; boundary=abc", "", _MODEL + _END),
    ("twice", _FORM_TYPE, "", _MODEL + _part(b'Content-Disposition: form-data; name="model"') + _END),
    ("query", _FORM_TYPE, "model=b", _MODEL + _END),
    ("query-escaped", _FORM_TYPE, "a=1&m%6fdel=b", _MODEL + _END),
    ("query-semicolon", _FORM_TYPE, "a=1;model=b", _MODEL + _END),
    ("query-other", _FORM_TYPE, "language=en", _MODEL + _END),
    ("preamble", _FORM_TYPE, "", b"x\r\n" + _MODEL + _END),
    ("line-feeds", _FORM_TYPE, "", (_MODEL + _END).replace(b"\r\n", b"\n")),
    ("upper-name", _FORM_TYPE, "", _part(b'Content-Disposition: form-data; name="MODEL"') + _END),
    ("upper-field", _FORM_TYPE, "", _part(b'CONTENT-DISPOSITION: Form-Data; NAME="model"') + _END),
    ("as-file", _FORM_TYPE, "", _part(b'Content-Disposition: form-data; name="model"; filename="x"') + _MODEL + _END),
    ("no-quotes", _FORM_TYPE, "", _part(b"Content-Disposition: form-data; name=model") + _MODEL + _END),
    ("escaped-name", _FORM_TYPE, "", _part(b'Content-Disposition: form-data; name="mo\\del"') + _MODEL + _END),
    ("extended-name", _FORM_TYPE, "", _part(b"Content-Disposition: form-data; name*=utf-8''model") + _MODEL + _END),
    ("folded-head", _FORM_TYPE, "", _part(b'Content-Disposition: form-data;\r\n name="model"') + _MODEL + _END),
    (
        "two-dispositions",
        _FORM_TYPE,
        "",
        _part(b'Content-Disposition: form-data; name="model"\r\n' * 2 + b"A: b") + _END,
    ),
    (
        "quoted-printable",
        _FORM_TYPE,
        "",
        _part(b'Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: quoted-printable', b"=61")
        + _END,
    ),
    ("padded-boundary", _FORM_TYPE, "", _MODEL.replace(b"--abc\r", b"--abc \t\r") + _END),
    ("longer-boundary", _FORM_TYPE, "", _MODEL + b"--abcd\r\n" + _END),
    ("no-end", _FORM_TYPE, "", _MODEL + _FILE),
    ("cut-end", _FORM_TYPE, "", _MODEL + b"--abc-"),
    ("end-without-line", _FORM_TYPE, "", _MODEL + b"--abc--"),
    ("after-end", _FORM_TYPE, "", _MODEL + _END + _part(b'Content-Disposition: form-data; name="model"') + _END),
    ("no-model", _FORM_TYPE, "", _FILE + _END),
    ("empty-model", _FORM_TYPE, "", _MODEL.replace(b"\r\na\r\n", b"\r\n\r\n") + _END),
    ("lines-in-model", _FORM_TYPE, "", _MODEL.replace(b"\r\na\r\n", b"\r\na\r\nb\r\n") + _END),
    ("empty", _FORM_TYPE, "", b""),
    ("only-end", _FORM_TYPE, "", _END),
]

_NAMES = [
    *(
        "a",
        "A",
        "a:b",
        "A:B",
        " a ",
        "\u00a0a\u3000",
        "\x1ca",
        "a\u200b",
        "",
        " ",
        "a:",
        ":b",
        ":",
        "/",
        "a/",
        "/a",
        "a//b",
    ),
    *(
        "library/a",
        "LIBRARY/a:latest",
        "u/a",
        "u/a:t",
        "registry.ollama.ai/library/a",
        "registry.ollama.ai/a",
        "hf.co/a",
    ),
    *(
        "hf.co/u/a",
        "HF.co/U/A:Q4",
        "https://hf.co/u/a",
        "ftp://h/u/a",
        "://h/u/a",
        "http:///u/a",
        "https://a",
        "https://u/a",
    ),
    *(
        "localhost:5000/u/a",
        "h:5000/u/a:t",
        "h/u/a/b",
        "a/b/c/d/e",
        "a@sha256:abc",
        "a:b@c",
        "a.b-c_d",
        "_a",
        "-a",
        ".a",
    ),
    *(
        "a:-b",
        "a:.b",
        "a:b:c",
        "a b",
        "a\nb",
        "\u00e9",
        "a:\u00e9",
        "x" * 80,
        "x" * 81,
        "a:" + "t" * 80,
        "a:" + "t" * 81,
    ),
    *(
        "u.v/a",
        "u:v/a",
        "u" * 81 + "/a",
        "h" * 350 + "/u/a",
        "h" * 351 + "/u/a",
        "../a",
        "..",
        "a/..",
        "C:\\a",
        "%61",
        "a%3Ab",
    ),
    *("a:cloud", "A:CLOUD", "a:Cloud", " a:cloud ", "a: cloud", "a :cloud", "a:cloud:", "a:20b-cloud", "a:20b-CLOUD"),
    *("a:20b:cloud", "a:-cloud", "a:cloud-cloud", "a:cloudy", "my-cloud", "my-cloud-model", "a:x-cloud-y", ":cloud"),
    *(
        "a:local",
        "a:LOCAL",
        "a:8b:local",
        "a:cloud:local",
        "a:local:cloud",
        "a:cloud:cloud",
        "a:x-cloud:cloud",
        "local",
    ),
    *("cloud", "cloud:cloud", "h:5000/me/a-cloud", "h:cloud/me/a", "u/a:cloud", "hf.co/u/a:cloud", "hf.co/u/a:q-cloud"),
    *(
        "a:c\u0142oud",
        "a:\u212aloud",
        "a:clou\u0501",
        "a:\u2026-cloud",
        "a\uff1acloud",
        "library/a:cloud",
        "a:latest-cloud",
    ),
]

_WINDOW = zstandard.ZstdCompressionParameters.from_level


def _packed(data: bytes, window: int = 20) -> bytes:
    packer = zstandard.ZstdCompressor(compression_params=_WINDOW(3, window_log=window)).compressobj()
    return packer.compress(data) + packer.flush()


_ZSTD: list[tuple[str, bytes]] = [
    ("plain", _packed(b'{"model":"a"}')),
    ("with-size", zstandard.compress(b'{"model":"a"}')),
    ("two-frames", _packed(b'{"model":') + _packed(b'"a"}')),
    ("skippable", b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + _packed(b'{"model":"a"}')),
    ("garbage-after", _packed(b'{"model":"a"}') + b"x"),
    ("nul-after", _packed(b'{"model":"a"}') + b"\0"),
    ("cut", _packed(b'{"model":"a"}')[:-3]),
    ("skippable-only", b"\x50\x2a\x4d\x18\x04\0\0\0abcd"),
    ("skippable-between", _packed(b'{"model":') + b"\x5f\x2a\x4d\x18\x01\0\0\0x" + _packed(b'"a"}')),
    ("skippable-cut", _packed(b'{"model":"a"}') + b"\x50\x2a\x4d\x18\x04\0\0\0ab"),
    ("empty-frame", _packed(b"")),
    ("empty-frames", _packed(b"") * 50 + _packed(b'{"model":"a"}')),
    ("second-cut", _packed(b'{"model":"a"}') + _packed(b'{"model":"x:cloud"}')[:-3]),
    ("two-values", _packed(b'{"model":"a"}') + _packed(b'{"model":"x:cloud"}')),
    ("checksum", zstandard.ZstdCompressor(write_checksum=True).compress(b'{"model":"a"}')),
    ("checksum-wrong", zstandard.ZstdCompressor(write_checksum=True).compress(b'{"model":"a"}')[:-1] + b"\0"),
    ("packed-twice", _packed(_packed(b'{"model":"a"}'))),
    ("older-format", b"\x27\xb5\x2f\xfd" + _packed(b'{"model":"a"}')[4:]),
    ("dictionary", b"\x28\xb5\x2f\xfd\x21\x07\x0d\x69\0\0" + b'{"model":"a"}'),
    ("size-too-small", b"\x28\xb5\x2f\xfd\x20\x05\x69\0\0" + b'{"model":"a"}'),
    ("size-too-large", b"\x28\xb5\x2f\xfd\x20\x0f\x69\0\0" + b'{"model":"a"}'),
    ("empty", b""),
    ("plain-json", b'{"model":"a"}'),
    ("gzip", gzip.compress(b'{"model":"a"}', mtime=0)),
    ("window-8-mib", _packed(b"a" * 100_000, 23)),
    ("window-16-mib", _packed(b"a" * 100_000, 24)),
    ("20-mib", _packed(b" " * (20 << 20))),
    ("over-20-mib", _packed(b" " * ((20 << 20) + 1))),
    ("single-segment-16-mib", zstandard.compress(b" " * (16 << 20))),
]

_KEYS = [
    *(
        '"model"',
        '"model"',
        '"MODEL"',
        '"Model"',
        '"\\u006dodel"',
        '"mod\\u0045l"',
        '"mo\\u0064el"',
        '"name"',
        '"Name"',
    ),
    *(
        '"stream"',
        '"\u017ftream"',
        '"STREAM"',
        '"tools"',
        '"Tools"',
        '"\\u0074ools"',
        '"type"',
        '"TYPE"',
        '"\\u0074ype"',
    ),
    *('"options"', '"OPTIONS"', '"\\u006fptions"', '"num_ctx"', '"num_gpu"', '"NUM_CTX"', '"temperature"'),
    *('"keep_alive"', '"\u212aeep_alive"', '"messages"', '"content"', '"images"', '"prompt"', '"input"', '"think"'),
    *('"x"', '""', '"\\ud800"', '"mod\\"el"', '"\xff"', '"thinking"', '"reasoning"', '"effort"', '"instructions"'),
]
_SCALARS = [
    *(
        '"a"',
        '"a"',
        '"b"',
        '"x:cloud"',
        '""',
        '" a "',
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1.5e3",
        "1e999",
        "01",
        "NaN",
    ),
    *('"web_search"', '"web_search_20250305"', '"web\\u005fsearch"', '" web_search"', '"function"', '"custom"', '"5m"'),
    *('"\\ud83d\\ude00"', '"\\udc00"', '"\\x"', '"\x01"', '"\\\\"', '"\\""', '"a\xff"', '"image"', '"high"', '"none"'),
]
_GAPS = st.sampled_from(["", "", "", " ", "\n", "\t \r"])


def _object(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    member = st.tuples(st.sampled_from(_KEYS), _GAPS, values).map(lambda parts: f"{parts[0]}{parts[1]}:{parts[2]}")
    return st.tuples(_GAPS, st.lists(member, max_size=5)).map(lambda parts: "{" + parts[0] + ",".join(parts[1]) + "}")


def _array(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values, max_size=3).map(lambda inner: "[" + ", ".join(inner) + "]")


_VALUES = st.recursive(st.sampled_from(_SCALARS), lambda inner: _object(inner) | _array(inner), max_leaves=8)
_AFTER = st.sampled_from([*[""] * 10, " ", "\n\n", " x", "{}", ',"model":"b"', "\0", "}"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Make a body: mostly an object with fields that matter, sometimes broken at one place."""
    text = draw(_object(_VALUES))
    if draw(st.booleans()):
        begin, end = ('"model":"a",', "") if draw(st.booleans()) else ("", ',"model":"a"')
        text = text if text.strip("{} \t\r\n") == "" else "{" + begin + text[1:-1] + end + "}"
    text += draw(_AFTER)
    body = text.encode("utf-8").replace(b"\xc3\xbf", b"\xff")
    if draw(st.integers(0, 9)) == 0 and body:
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.binary(max_size=2)) + body[at + draw(st.integers(0, 2)) :]
    return body


PATHS = st.sampled_from(sorted(SHAPES))


def made_up(count: int) -> Iterator[Case]:
    """Return bodies that hypothesis makes up, always the same."""
    found: list[tuple[str, bytes]] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(PATHS, bodies())
    def collect(path: str, body: bytes) -> None:
        found.append((path, body))

    collect()
    for number, (path, body) in enumerate(dict.fromkeys(found)):
        yield {"id": f"made-up-{number}", "kind": "json", "path": path, "body": body}


def recorded() -> Iterator[Case]:
    """Return the JSON bodies of the recorded exchanges."""
    for trace in sorted(_TRACES.glob("*.request")):
        head, _, body = trace.read_bytes().partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        words = line.split(b" ")
        path = words[1].partition(b"?")[0].decode("latin-1") if len(words) == 3 else ""
        coded = any(field.lower().startswith((b"content-encoding", b"transfer-encoding")) for field in fields)
        if words[0] == b"POST" and path in SHAPES and body and not coded:
            yield {"id": f"trace-{trace.stem}", "kind": "json", "path": path, "body": body}


def without_reloads(body: bytes) -> bytes:
    """Return what goes on of a native request: without what loads, reloads, unloads or pins a model."""
    left = Cutter(body).run(len(body))
    assert left is not None, "no step takes less than a byte"
    return left


def left_of_native() -> Iterator[Case]:
    """Return what goes on of native requests without what would change a model for everyone."""
    for name, path, body in _JSON:
        asked = read(path, body) if path in NATIVE_PATHS else None
        if asked is not None and asked.reloads and asked.naming is not Naming.UNREADABLE:
            yield {"id": f"{LEFT_OF}{name}", "kind": "json", "path": path, "body": without_reloads(body)}


def corpus(count: int) -> Iterator[Case]:
    """Return all cases, `count` of them made up."""
    for name, path, body in _JSON:
        yield {"id": name, "kind": "json", "path": path, "body": body}
    yield from left_of_native()
    yield from recorded()
    for name, content_type, query, body in _FORMS:
        yield {"id": f"form-{name}", "kind": "form", "content_type": content_type, "query": query, "body": body}
    for name in dict.fromkeys(_NAMES):
        yield {"id": f"name-{name[:20]!r}", "kind": "name", "name": name}
    for name, body in _ZSTD:
        yield {"id": f"zstd-{name}", "kind": "zstd", "body": body}
    yield from made_up(count)
