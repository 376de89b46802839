"""The catalogue: the text that a refused person gets, and what an SDK makes of the status."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy import advice, models, refusals
from proxy.policy.access import Rule
from proxy.policy.advice import QUOTE_LIMIT
from proxy.policy.gate import Policy
from proxy.policy.models import Cloud
from proxy.policy.native import judge_native
from proxy.policy.refusals import Reason, Refusal
from proxy.policy.replies import STREAM_FAILURES
from proxy.policy.routes import OPT_IN, ROUTES
from proxy.reading.asked import Asked, Naming
from proxy.reading.native import NativeOptions

CONSTANTS = [value for module in (refusals, models) for value in vars(module).values() if isinstance(value, Refusal)]
MADE = [
    refusals.host_not_allowed(b"evil.com"),
    refusals.origin_not_allowed(b"https://evil.com"),
    refusals.path_not_served("POST", "/api/pull"),
    refusals.slashes("GET", "//api/tags", "/api/tags", ""),
    refusals.target_not_plain("GET", "//"),
    refusals.method_not_served("GET", "/api/show", ["POST"]),
    refusals.row_not_for_asker("POST", "/api/chat", []),
    refusals.row_not_for_asker("HEAD", "/api/tags", ["GET"]),
    refusals.identity_needed("100.64.0.7"),
    refusals.asker_not_allowed("kids-ipad (alice@example.com)"),
    refusals.content_coding_unknown(b"gzip", (b"zstd", b"identity")),
    refusals.content_too_large(64 << 20),
    refusals.head_too_large(65536),
    refusals.head_timeout(10.0),
    refusals.content_timeout(60.0),
    refusals.overloaded("max_connections"),
    *(
        judge_native("/api/chat", Asked(Naming.NAMED, "a", prompt=prompt, keep_alive=0), setting, held=held)
        for prompt, setting, held in (
            (False, NativeOptions.DROP, True),
            (True, NativeOptions.DROP, False),
            (True, NativeOptions.REFUSE, True),
        )
    ),
    judge_native("/api/chat", Asked(Naming.UNREADABLE, why="it ends early"), NativeOptions.DROP, held=True),
    *(
        models.judge_model(Asked(naming, why="why"), None, local_only=True)
        for naming in (Naming.AMBIGUOUS, Naming.UNREADABLE)
    ),
    models.judge_name("llama3", Rule(1, (), (), (), None, Policy.of(max_body=1)), local_only=True),
    models.cloud_model("x:cloud"),
    models.remote_model("far"),
    models.place_unknown("far"),
    *map(models.judge_search, (Cloud.ON, Cloud.NO_SWITCH, Cloud.UNKNOWN)),
]
CATALOGUE = [*CONSTANTS, *MADE]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/api/pull", "run `ollama pull` on the server"),
        ("/api/push", "run `ollama push` on the server"),
        ("/api/create", "run `ollama create` on the server"),
        ("/api/copy", "run `ollama cp` on the server"),
        ("/api/delete", "run `ollama rm` on the server"),
        ("/api/blobs/sha256:0", "run `ollama create` on the server"),
        ("/api/me", "run `ollama signin` on the server"),
        ("/api/signout", "run `ollama signout` on the server"),
        ("/api/user/keys/1", "run `ollama signout` on the server"),
        ("/v1/v1/chat/completions", "your base URL already ends in /v1: remove it there, so that"),
        ("/v1/v1/v1/messages", "so that the path becomes `/v1/messages`"),
        ("/v1/v1/api/tags", "so that the path becomes `/api/tags`"),
        ("/v1/api/tags", "`/api` is not below it: remove it there"),
        ("/v1/api/chat", '; after that, the owner can open it on the server with `allow = ["POST /api/chat"]`'),
        ("/v1/api/pull", "; after that, run `ollama pull` on the server"),
        ("/chat/completions", "your base URL lacks /v1: add it there, so that the path becomes `/v1/chat/comp"),
        ("/responses", "`/v1/responses`"),
        ("/messages", "`/v1/messages`"),
        ("/models", "`/v1/models`"),
        ("/models/qwen3:8b", "`/v1/models/qwen3:8b`"),
        ("/api/chat", '`allow = ["POST /api/chat"]`, or choose the client\'s OpenAI provider, which uses /v1'),
        ("/api/generate", '`allow = ["POST /api/generate"]`, or choose'),
        ("/api/embed", 'the owner can open it on the server with `allow = ["POST /api/embed"]`'),
        ("/", '`allow = ["GET /"]` or `allow = ["HEAD /"]`'),
        ("/v1/messages/count_tokens", "Ollama has no such path either"),
        ("/v1/models/user/m", "use `GET /v1/models` or `POST /api/show`"),
        ("/v1/models/", "the path ends in `/`: remove it, so that it becomes `/v1/models`"),
        ("//api/chat", "your base URL ends in `/`: remove it there, so that the path becomes `/api/chat`; after"),
        ("/api/chat/", "remove it, so that it becomes `/api/chat`; after that, the owner can open it"),
        ("//api//pull", "so that the path becomes `/api/pull`; after that, run `ollama pull` on the server"),
        ("/v1/responses/compact", "define a provider of your own for Codex, which then shortens conversations"),
        ("/v1/responses/resp_1", "it stores no responses"),
        ("/v1/messages/batches", "Ollama has no such path either"),
        ("/ollama/v1/chat/completions", "remove `/ollama` from your base URL, so that the path becomes `/v1/chat/comp"),
        ("/openai/v1/models", "remove `/openai` from your base URL, so that the path becomes `/v1/models`"),
        ("/openai/v1/models/qwen3:8b", "so that the path becomes `/v1/models/qwen3:8b`"),
        ("/api/v1/chat/completions", "remove `/api` from your base URL, so that the path becomes `/v1/chat/comp"),
        ("/ollama/api/tags", "remove `/ollama` from your base URL, so that the path becomes `/api/tags`"),
        ("/ollama/api/chat", "so that the path becomes `/api/chat`; after that, the owner can open it on"),
        ("/proxy/ollama/api/pull", "remove `/proxy/ollama` from your base URL, so that the path becomes `/api/pull`"),
        ("/anthropic/v1/messages", "remove `/anthropic` from your base URL"),
        ("/api/chat/completions", "replace `/api` with `/v1` in your base URL, so that the path becomes `/v1/"),
        ("/v1beta/openai/chat/completions", "replace `/v1beta/openai` with `/v1` in your base URL"),
        ("/v2/models", "replace `/v2` with `/v1` in your base URL"),
        ("/openai/deployments/gpt/chat/completions", "replace `/openai/deployments/gpt` with `/v1`"),
        ("/v1beta/models/gemini:generateContent", "that is Gemini's API, which Ollama doesn't have"),
        ("/v1/api/v1/models", "remove `/v1/api` from"),
        ("/x/", "`python -m proxy --check`"),
        ("/api", "`python -m proxy --check`"),
        ("/API/Tags/", "write `/api/tags`"),
        ("/API/Tags", "write `/api/tags`"),
        ("/debug/pprof", "`python -m proxy --check`"),
        ("/api/experimental/web_search", "`python -m proxy --check`"),
        ("/v1", "`python -m proxy --check`"),
    ],
)  # fmt: skip
def test_a_wrong_address_gets_the_right_one_back(path, said):
    """The refusal of an unlisted path quotes it with its method, names the rule, and says what to do."""
    refusal = refusals.path_not_served("POST", path)
    assert refusal.message.startswith(f"`POST {path}` is not on this proxy's allowlist; ")
    assert said in refusal.message


@pytest.mark.parametrize(
    ("method", "path", "entry", "other"),
    [
        ("HEAD", "/", "HEAD /", "GET /"),
        ("GET", "/", "GET /", "HEAD /"),
        ("GET", "/api/ps", "GET /api/ps", "HEAD"),
    ],
)
def test_the_row_of_the_method_is_named(method, path, entry, other):
    """Where several rows of a path could be opened, the one that was asked for is named, and no other."""
    message = refusals.path_not_served(method, path).message
    assert f'`allow = ["{entry}"]`' in message
    assert f'["{other}' not in message


def test_what_the_ollama_command_shows():
    """Its first question is HEAD /, whose answer has no content: what its person sees is quoted, to be found."""
    shows = "Error: something went wrong, please see the ollama server logs for details"
    assert shows in refusals.path_not_served("HEAD", "/").message
    assert shows not in refusals.path_not_served("GET", "/").message


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"x" * 500, b"\xff\x00"])
def test_unknown_codings_are_told(coding):
    """A client that compresses reads what Ollama takes instead, and where to switch it off (RFC 9110, 15.5.16)."""
    refusal = refusals.content_coding_unknown(coding, (b"zstd", b"identity"))
    assert (refusal.status, refusal.fields) == (415, ((b"Accept-Encoding", b"zstd, identity"),))
    assert "CLAUDE_CODE_GZIP_REQUEST_BODIES" in refusal.message
    assert refusal.message.isprintable()


def test_advice_to_open_a_row_is_not_given_for_management():
    """No message suggests that a management path could be opened."""
    for path in advice.COMMANDS:
        assert "allow =" not in refusals.path_not_served("POST", path).message


@pytest.mark.parametrize("name", OPT_IN)
def test_advice_to_open_a_row_names_what_allow_takes(name):
    """The entry that a message offers for an opt-in path is one that `allow` accepts."""
    method, path = name.split()
    assert (
        f'`allow = ["{name}"]`'
        in (
            refusals.method_not_served(method, path, ["GET"])
            if any(row.path == path and not row.opt_in for row in ROUTES)
            else refusals.path_not_served(method, path)
        ).message
    )


def test_a_wrong_method_is_not_offered_a_row_that_is_none():
    """Only a method with an opt-in route on the path gets the advice how to open it."""
    assert "allow =" not in refusals.method_not_served("DELETE", "/api/tags", ["GET"]).message


def test_escaped_model_name_is_told_where_to_look():
    """Under /v1/models a name that isn't plain usually holds a slash, which Ollama can't look up there."""
    assert "POST /api/show" in refusals.target_not_plain("GET", "/v1/models/hf.co%2Fu%2Fm").message
    assert "POST /api/show" not in refusals.target_not_plain("GET", "/%61pi/show").message


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (b"https://a.org", "add it to `allowed_origins` on the server if you trust that page or app"),
        (b"http://tauri.localhost", "that page or app"),
        (b"chrome-extension://abc", "add it to `allowed_origins` on the server if you trust that app or extension"),
        (b"moz-extension://1-2", "add `moz-extension://*` to `allowed_origins`"),
        (b"Safari-Web-Extension://1-2", "add `safari-web-extension://*` to `allowed_origins`"),
        (b"null", "open the page from http://localhost"),
        (b"null", "a setting or an update that gives"),
        (b"null", 'and every web page with `allowed_origins = ["null"]`'),
    ],
)
def test_a_page_is_told_how_to_be_allowed(origin, said):
    """A foreign Origin names the entry that would allow it and whatever comes with it; `null` other ways first."""
    message = refusals.origin_not_allowed(origin).message
    assert said in message
    assert f"`{origin.decode()}`" in message


@pytest.mark.parametrize(
    ("path", "clean", "said"),
    [
        (
            "//api/tags",
            "/api/tags",
            "your base URL ends in `/`: remove it there, so that the path becomes `/api/tags`",
        ),
        ("/v1//models/", "/v1/models", "your base URL ends in `/`: remove it there"),
        ("/v1/models/", "/v1/models", "the path ends in `/`: remove it, so that it becomes `/v1/models`"),
    ],
)
def test_a_redirect_says_what_to_mend(path, clean, said):
    """A client that doesn't follow a redirect reads in its body which `/` is too many. The query isn't in it."""
    refusal = refusals.slashes("GET", path, clean, "?key=secret")
    assert refusal.message.startswith(f"`GET {path}` is not on this proxy's allowlist; {said}")
    assert "secret" not in refusal.message


def test_slashes_that_lead_nowhere_are_told_too():
    """A path whose slashes alone are wrong, but that no open row serves, reads the rule, the slash and the rest."""
    message = refusals.target_not_plain("POST", "//api/chat").message
    assert message.startswith(
        "`POST //api/chat` is not on this proxy's allowlist, because paths are compared as sent; "
    )
    assert (
        "your base URL ends in `/`: remove it there, so that the path becomes `/api/chat`; after that, the" in message
    )
    for path in ("//api%2fchat", "//evil.example/", "//v1/models/..", "//api/blobs/../x"):
        assert "base URL" not in refusals.target_not_plain("POST", path).message


@pytest.mark.parametrize("refusal", CATALOGUE, ids=lambda refusal: f"{refusal.reason}-{refusal.status}")
def test_only_a_redirect_is_called_so(refusal):
    """The access log calls what isn't a redirect refused."""
    assert refusal.verdict == ("redirected" if refusal.status == 308 else "refused")


@pytest.mark.parametrize("refusal", CATALOGUE, ids=lambda refusal: f"{refusal.reason}-{refusal.status}")
def test_statuses_ask_for_a_repeat_only_where_it_helps(refusal):
    """SDKs repeat 5xx unasked: each says `x-should-retry: false`, but for those that pass by themselves soon."""
    passing = {
        *(Reason.UPSTREAM_UNREACHABLE, Reason.OVERLOADED, Reason.DRAINING),
        *(Reason.IDENTITY_LATE, Reason.IDENTITY_NEEDED),
    }
    final = (b"x-should-retry", b"false") in refusal.fields
    passes = refusal.reason in passing or refusal is refusals.UPSTREAM_STALE
    assert final is (refusal.status >= 500 and not passes)
    assert refusal.status not in {409, 429}
    assert ((b"retry-after", b"1") in refusal.fields) is (refusal.status == 503 and not final)


@pytest.mark.parametrize("refusal", CATALOGUE, ids=lambda refusal: f"{refusal.reason}-{refusal.status}")
def test_messages_say_what_to_do(refusal):
    """A message is one sentence that names what was refused and then, after a `;` or `:`, what to do; no final stop."""
    assert refusal.message[0].isupper() or refusal.message[0] == "`"
    assert ";" in refusal.message or ":" in refusal.message
    assert not refusal.message.endswith(".")


def test_every_reason_has_its_words():
    """Each code has a refusal or an event, except for a client that takes nothing and a load with Ollama's words."""
    worded = {refusal.reason for refusal in CATALOGUE} | set(STREAM_FAILURES)
    assert set(Reason) - worded == {Reason.STALLED, Reason.LOAD_FAILED}
    assert Reason.MISSING_TERMINATOR in STREAM_FAILURES


@pytest.mark.parametrize(
    ("refusal", "closes"),
    [
        (refusals.FRAMING_AMBIGUOUS, True),
        (refusals.HTTP_2, True),
        (refusals.content_too_large(1), True),
        (refusals.EXPECTATION_UNKNOWN, True),
        (refusals.HELD_UPLOAD, True),
        (refusals.DRAINING, True),
        (refusals.WEBSOCKET, True),
        (refusals.slashes("GET", "//api/tags", "/api/tags", ""), False),
        (refusals.path_not_served("GET", "/x"), False),
        (refusals.LOOP, False),
        (refusals.UPSTREAM_UNREACHABLE, False),
    ],
)
def test_doubtful_or_unread_requests_end_the_connection(refusal, closes):
    """After a refusal for framing, size or time the connection ends; after one of policy it goes on."""
    assert refusal.closes is closes


def test_every_400_closes():
    """What is malformed leaves it open where the next request would begin."""
    assert all(refusal.closes for refusal in CATALOGUE if refusal.status == 400)


@given(st.text(max_size=400), st.text(max_size=400))
def test_client_text_is_cut_and_printable(method, path):
    """However a request is written, what a message repeats of it is short, printable and good JSON."""
    for refusal in (refusals.path_not_served(method, path), refusals.target_not_plain(method, path)):
        assert refusal.message.isprintable()
        assert orjson.loads(orjson.dumps(refusal.message)) == refusal.message
        assert len(refusal.message) < 4 * QUOTE_LIMIT


@given(st.binary(max_size=400))
def test_client_octets_are_cut_and_printable(value):
    """The same holds for the Host and Origin that a message repeats."""
    for refusal in (refusals.host_not_allowed(value), refusals.origin_not_allowed(value)):
        assert refusal.message.isprintable()
        assert len(refusal.message) < 3 * QUOTE_LIMIT


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a" * 120, "a" * 120),
        ("a" * 121, "a" * 119 + "…"),
        ("a\r\nb\x1b[31m", "a��b�[31m"),
        ("\ud800", "�"),
        ("é", "é"),
        ("", ""),
    ],
)
def test_quoting(text, shown):
    """A quote keeps 120 characters and replaces what can't be printed."""
    assert advice.quoted(text) == shown


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("/v1/v1/x", "/x"),
        ("/v1/x", "/x"),
        ("/x/v1/y", "/x/v1/y"),
        ("/v1", "/v1"),
        ("/v1/", "/"),
        ("/v10/x", "/v10/x"),
        ("", ""),
    ],
)
def test_leading_v1_segments_are_cut(path, below):
    """Only whole leading `/v1` segments count as a wrong base URL."""
    assert advice.below_v1(path) == below
