"""docs/anthropic-compatibility.md: what it says of Ollama was recorded so, and its examples are real ones."""

from __future__ import annotations

import json
import re

import pytest

from proxy.policy.refusals import Reason, path_not_served
from proxy.policy.replies import STREAM_FAILURES, error_event
from proxy.policy.routes import Dialect
from proxy.simulated_ollama import SimulatedOllama
from tests.docs.test_docs import PAGES, blocks, marked, section, table
from tests.support.ollama_recordings import NAMES, TRACES, recording
from tests.support.raw_http import Proxy

PAGE = PAGES["docs/anthropic-compatibility.md"]
_RECORDING = re.compile(r"(?:messages|chat|scn)-[\w-]+")


def answer(name):
    """Return the status and the JSON of a recorded answer."""
    found = recording(name)
    return found.status, json.loads(found.content)


def events(name):
    """Return the events of a recorded stream."""
    found = re.findall(r"event: (\w+)\ndata: (.+)\n\n", recording(name).content.decode())
    assert all(event == json.loads(data)["type"] for event, data in found)
    return [json.loads(data) for _, data in found]


def test_recordings_exist():
    """Every recording that the page names is there."""
    named = {text for text in marked(PAGE) if _RECORDING.fullmatch(text)}
    assert len(named) > 20
    assert named <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("messages-no-model", 400, "model is required"),
        ("messages-no-max-tokens", 400, "max_tokens is required and must be positive"),
        ("messages-empty-messages", 400, "messages is required"),
        ("messages-tools-unsupported", 400, "does not support tools"),
        ("messages-bad-json", 400, "unexpected EOF"),
        ("messages-unknown-model", 404, "model 'nope' not found"),
        ("scn-load-fails-messages", 500, "llama-server process has terminated"),
        ("scn-queue-full-2-thinker-v1_messages", 503, "server busy"),
    ],
)
def test_errors(name, status, message):
    """An error has the status, the type and the form of the page's table, and a request_id of its own."""
    types = {row[0]: marked(row[1]) for row in table(section(PAGE, "## Errors"))}
    code, reported = answer(name)
    assert code == status
    assert message in reported["error"]["message"]
    assert [reported["error"]["type"]] == types[str(status)]
    assert re.fullmatch(r"req_[0-9a-f]{24}", reported["request_id"])


def test_cloud_error():
    """A cloud model's error has the native form."""
    assert answer("messages-cloud-name") == (403, {"error": "ollama cloud is disabled: remote model is unavailable"})


def test_compressed_content():
    """Content compressed with gzip is refused, with zstd taken."""
    assert b"Content-Encoding: gzip" in (TRACES / "chat-gzip-body.request").read_bytes()
    assert answer("chat-gzip-body")[0] == 400
    assert answer("chat-zstd-body")[0] == 200


def test_requests_as_told():
    """What was sent for the recordings is what the page says was ignored or used."""
    streamed = (TRACES / "messages-stream.request").read_bytes()
    assert streamed.startswith(b"POST /v1/messages?beta=true ")
    assert all(name in streamed for name in (b"\nx-api-key: ", b"\nanthropic-version: ", b"\nanthropic-beta: "))
    assert b'"budget_tokens": 10' in (TRACES / "messages-think-unsupported.request").read_bytes()
    assert answer("messages-think-unsupported")[1]["content"][0]["type"] == "text"
    assert b'"stop_sequences"' in (TRACES / "messages-stop-sequence.request").read_bytes()


def test_answers():
    """Blocks, endings and counts are those of the page."""
    _, stopped = answer("messages-stop-sequence")
    assert (stopped["stop_reason"], "stop_sequence" in stopped) == ("end_turn", False)
    _, every = answer("messages-nonstream-jinja-think-text-tool")
    assert [block["type"] for block in every["content"]] == ["thinking", "text", "tool_use"]
    assert "signature" not in every["content"][0]
    assert answer("scn-standin-empty-messages-nonstream")[1]["content"] is None
    status, repeated = answer("scn-standin-repeat-messages-nonstream")
    assert (status, "stop_reason" in repeated, repeated["usage"]["output_tokens"]) == (200, False, 0)
    reasons = [answer(f"messages-nonstream{kind}")[1]["stop_reason"] for kind in ("-toolcall", "", "-thinking")]
    assert reasons == ["tool_use", "max_tokens", "end_turn"]
    assert answer("messages-nonstream")[1]["usage"].keys() == {"input_tokens", "output_tokens"}


def test_streams():
    """Events come in the page's order; estimates, thoughts and tool calls are as it says."""
    start, *_, end, stop = events("messages-stream-toolcall")
    assert "stop_reason" not in start["message"]
    assert start["message"]["usage"]["input_tokens"] != end["usage"]["input_tokens"]
    assert stop == {"type": "message_stop"}
    kinds = [event["type"].rpartition("_")[2] for event in events("messages-stream-toolcall")]
    assert kinds == ["start", "start", "delta", "stop", "delta", "stop"]
    deltas = {event["delta"].get("type") for event in events("messages-stream-thinking") if "delta" in event}
    assert deltas == {"thinking_delta", "text_delta", None}
    empty = [event["type"] for event in events("scn-standin-empty-messages-stream")]
    assert empty == ["message_start", "message_delta", "message_stop"]
    every = [event["type"] for name in NAMES if re.search(r"messages-.*stream", name) for event in events(name)]
    assert not {"ping", "error"} & set(every)


@pytest.mark.parametrize("name", ["scn-runner-dies-messages-stream", "scn-standin-cut-messages-stream"])
def test_unfinished_streams(name):
    """A stream whose model failed ends cleanly, with status 200 and without its last event."""
    found = recording(name)
    assert (found.status, found.whole) == (200, True)
    assert events(name)[-1]["type"] == "content_block_delta"


def test_examples_are_recordings():
    """The answer, the stream and the error on the page are byte for byte recorded ones."""
    whole, error = blocks(PAGE, "json")
    assert whole == recording("messages-nonstream").content.decode()
    assert error == recording("messages-unknown-model").content.decode()
    (stream,) = [body for body in blocks(PAGE, "") if body.startswith("event: message_start")]
    first, last = stream.split("…\n\n")
    content = recording("messages-stream").content.decode()
    assert content.startswith(first)
    assert content.rstrip("\n").endswith(last.rstrip("\n"))


def test_examples_are_the_programs():
    """The refusal and the error event on the page are what the program says."""
    refused = path_not_served("POST", "/v1/messages/count_tokens").message
    assert f"  {refused}\n" in PAGE
    event = error_event(Dialect.MESSAGES, STREAM_FAILURES[Reason.MISSING_TERMINATOR]).decode()
    assert f"```\n{event.rstrip()}\n```" in PAGE


SAID = [{"role": "user", "content": "Hi @@tokens=3 ttft=0 tps=0@@"}]


def block(**fields):
    """Return messages with a block next to the text."""
    return [{"role": "user", "content": [{"type": "text", "text": SAID[0]["content"]}, fields]}]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param({"tool_choice": {"type": "any"}, "metadata": {"user_id": "x"}}, 200, id="ignored_fields"),
        pytest.param({"MODEL": "tiny", "no_such_field": 1}, 200, id="any_case"),
        pytest.param({"messages": block(type="document", source={"type": "base64"})}, 200, id="document"),
        pytest.param(
            {"messages": block(type="image", source={"type": "url", "url": "http://x/"})}, 400, id="image_url"
        ),
        pytest.param({"max_tokens": 0}, 400, id="max_tokens"),
    ],
)
async def test_through_the_proxy(fields, status):
    """What the page says becomes of a request does so before the simulated Ollama, through the proxy."""
    async with SimulatedOllama() as ollama:
        proxy = Proxy(ollama.port)
        await proxy.start()
        wire = await proxy.connect()
        asked = {"model": "tiny", "max_tokens": 20, "messages": SAID} | fields
        await wire.request("POST", "/v1/messages?beta=true", json.dumps(asked).encode())
        reported = await wire.answer()
        assert reported.status == status
        assert reported.fields["request-id"] == proxy.audit[0]["id"]
        if "messages" in fields and status == 400:
            assert json.loads(reported.content)["error"]["message"] in PAGE
        await proxy.stop()
