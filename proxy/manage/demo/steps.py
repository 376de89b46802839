"""The steps of the tour: each drives the proxy from outside and reports what it saw, or why that is a failure.

A step believes neither the proxy nor its log alone: what must not reach Ollama is looked for in Ollama, and a
generation has stopped when Ollama serves the next caller.
"""

from __future__ import annotations

import json
import socket
import stat
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from proxy.manage.demo.callers import KEY, PATIENCE, CallError, ask, to_the_end
from proxy.manage.demo.stage import Stage, Step, UnmetError, expect, expect_audit, expect_refused
from proxy.manage.verify.questions.table import TRICKS

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds that a second caller is seen to wait, and within which it must be served once the first has hung up.
_QUEUED, _SERVED = 0.3, 5.0

# Bytes that Claude Code sends before its user has typed much, mostly instructions and schemas of tools.
_CODING_REQUEST = 76_000
_BETAS = ",".join(f"a-feature-of-some-length-2026-01-{day:02}" for day in range(1, 29))

_BYSTANDER = "plain:latest"
"""The model that the tricks try to delete."""

_SAID_16 = "Are of may sound see many said we one that 日本 water could these time when"


# --- what works -------------------------------------------------------------------------------------------------------


def models(stage: Stage) -> str:
    """Both surfaces list the same models."""
    listed = stage.callers.models()
    stage.say(f"  {', '.join(listed.openai)}")
    expect(_BYSTANDER in listed.openai, f"{_BYSTANDER} is missing")
    expect(listed.openai == listed.native, f"/api/tags lists {listed.native}")
    for line in stage.audited(2):
        expect_audit(line, verdict="allowed", status=200, ended="complete")
    return f"{len(listed.openai)} models, the same by /v1/models and /api/tags"


def streamed_chat(stage: Stage) -> str:
    """Each token is there when Ollama has said it. A caller that a busy machine keeps waiting may get some together."""
    count, pace = 16, 10
    asked = f"Count for me. @@tokens={count} tps={pace}@@"
    stage.say(f"  asked: {asked}   (what stands in @@ steers the simulated model)")
    begun = time.monotonic()
    pieces, moments = [], []
    for piece in stage.callers.chat("tiny", asked):
        pieces.append(piece)
        moments.append(time.monotonic() - begun)
        stage.say(f"  {moments[-1]:5.2f} s  {piece.strip()}")
    expect("".join(pieces) == _SAID_16, f"the answer was {''.join(pieces)!r}")
    expect(len(pieces) == count, f"{len(pieces)} pieces instead of {count}")
    spread, spoken = moments[-1] - moments[0], (count - 1) / pace
    expect(spread > spoken / 4, f"held back: {spoken:.1f} s of speech came within {spread:.2f} s")
    expect_audit(stage.audited(1)[0], status=200, ended="complete", model="tiny", stream=True)
    return f"{count} tokens, one by one over {spread:.2f} s"


def message(stage: Stage) -> str:
    """A thinking model's message arrives whole, thought and answer apart."""
    said = stage.callers.message("thinker", "What is it? @@script=think@@")
    stage.say(f"  thought: {said.thinking}")
    stage.say(f"  said:    {said.text}")
    expect(said == ("let me think about it", "The answer is forty-two."), f"it said {said}")
    expect_audit(stage.audited(1)[0], status=200, ended="complete", surface="anthropic", tokens_out=12)
    return "thought and answer, each as the model gave it"


def response(stage: Stage) -> str:
    """A response that isn't streamed arrives whole."""
    text = stage.callers.response("tiny", "Answer in JSON. @@script=json@@")
    stage.say(f"  said: {text}")
    expect(text == '{"answer": 42}', f"it said {text!r}")
    expect_audit(stage.audited(1)[0], status=200, ended="complete", route="POST /v1/responses", tokens_out=4)
    return "the text as the model gave it"


def coding_client(stage: Stage) -> str:
    """What Claude Code does first: a probe that may be refused, then a large request with a query and long fields."""
    place = urlsplit(stage.proxy).netloc
    probe = to_the_end(stage.proxy, f"HEAD / HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n")
    head, _, content = probe.partition(b"\r\n\r\n")
    stage.say(f"  HEAD /: {head.decode('latin-1').splitlines()[0]}")
    expect(head.startswith(b"HTTP/1.1 403 "), "HEAD / is not refused with 403")
    expect(content == b"", f"HEAD / was answered with {len(content)} bytes of content")
    asked = {"model": "tiny", "max_tokens": 100, "stream": True, "system": "Be brief. ", "messages": []}
    asked["messages"] = [{"role": "user", "content": "Hello. @@tokens=5 tps=0@@"}]
    asked["system"] = "Be brief. " * (1 + (_CODING_REQUEST - len(json.dumps(asked))) // 10)
    fields = {"Content-Type": "application/json", "anthropic-version": "2023-06-01", "anthropic-beta": _BETAS}
    size = len(json.dumps(asked))
    stage.say(f"  POST /v1/messages?beta=true: {size} bytes, anthropic-beta of {len(_BETAS)}")
    answer = ask(stage.proxy, "POST", "/v1/messages?beta=true", asked, fields)
    expect(answer.status == 200, f"answered with {answer.status}: {answer.message()}")
    events = [line[7:] for line in answer.content.decode().splitlines() if line.startswith("event: ")]
    expect(events[0] == "message_start" and events[-1] == "message_stop", f"the events are {events}")
    expect(events.count("content_block_delta") == 5, f"the events are {events}")
    refused, served = stage.audited(2)
    expect_audit(refused, verdict="refused", reason="path_not_served", status=403)
    expect_audit(served, status=200, ended="complete", path="/v1/messages", bytes_in=size)
    return f"the probe is refused without content, {size // 1000} KB are answered"


# --- what is refused --------------------------------------------------------------------------------------------------


def blocked_pull(stage: Stage) -> str:
    """Nobody can make the server download a model; the error says what to do instead."""
    try:
        stage.callers.pull("tiny")
    except CallError as error:
        stage.say(f"  the caller reads: {error}")
        expect(error.status == 403, f"failed with {error.status} instead of 403")
        expect("run `ollama pull` on the server" in str(error), "the message does not say what to do")
    else:
        raise UnmetError("the pull was let through")
    expect_audit(stage.audited(1)[0], verdict="refused", reason="path_not_served", status=403)
    return "403, and the message says what to do"


def wrong_method(stage: Stage) -> str:
    """A path of the table is served with its own method only, also where Ollama would take another one."""
    for method, target, served in (("GET", "/v1/chat/completions", "POST"), ("POST", "/api/tags", "GET")):
        answer = ask(stage.proxy, method, target)
        stage.say(f"  {method} {target}: {answer.status}, Allow: {answer.fields.get('allow')}")
        expect_refused(answer, 405, f"this path accepts {served}")
        expect(answer.fields.get("allow") == served, f"Allow is {answer.fields.get('allow')}")
    probe = ask(stage.proxy, "HEAD", "/api/tags")  # Ollama answers it; nobody opened it here
    stage.say(f"  HEAD /api/tags: {probe.status}, Allow: {probe.fields.get('allow')}")
    expect(probe.status == 405, f"HEAD /api/tags answered with {probe.status} instead of 405")
    for line in stage.audited(3):
        expect_audit(line, verdict="refused", reason="method_not_served", status=405)
    return "three times 405, with Allow"


def path_tricks(stage: Stage) -> str:
    """No spelling of a path reaches what the table doesn't list: the model that was to be deleted is still there."""
    for target in TRICKS:
        answer = ask(stage.proxy, "DELETE", target, {"model": _BYSTANDER})
        stage.say(f"  DELETE {target}: {answer.status}")
        kept = _BYSTANDER in ask(stage.ollama, "GET", "/api/tags").content.decode()
        expect(kept, f"DELETE {target} reached Ollama, and {_BYSTANDER} is gone")
        expect_refused(answer, 403, "compared as sent")
    for line in stage.audited(len(TRICKS)):
        expect_audit(line, verdict="refused", reason="target_not_plain", status=403)
    return f"{len(TRICKS)} spellings refused, and {_BYSTANDER} is still there"


# --- what goes wrong --------------------------------------------------------------------------------------------------


def hang_up(stage: Stage) -> str:
    """A caller that leaves frees Ollama, which answers one at a time: the next one, who asks it directly, is served."""
    with closing(_generator(stage.callers.chat("toolcaller", "Go on. @@tokens=400 tps=4@@"))) as pieces:
        stage.say(f"  first caller, through the proxy: {next(pieces).strip()} ... (100 s of speech)")
        with _Second(stage.ollama, "toolcaller") as second:
            waits = not second.answered(_QUEUED)
            expect(waits, "Ollama answered a second caller at once, so this shows nothing")
            stage.say(f"  second caller, directly: waits its turn ({_QUEUED} s and more)")
            pieces.close()
            begun = time.monotonic()
            stage.say("  the first caller hangs up")
            expect(second.answered(_SERVED), f"Ollama still speaks to nobody {_SERVED:g} s after the caller hung up")
            waited = time.monotonic() - begun
    stage.say(f"  second caller: answered {waited:.2f} s later")
    expect_audit(stage.audited(1)[0], status=200, ended="downstream/content", model="toolcaller")
    return f"Ollama stopped: the next caller was served {waited:.2f} s after the hang-up"


def _generator(pieces: Iterator[str]) -> Any:
    """`Callers.chat` promises an iterator that can be closed."""
    return pieces


class _Second:
    """A request to `base` of which is only asked whether an answer has begun."""

    def __init__(self, base: str, model: str) -> None:
        place = urlsplit(base)
        turn = {"role": "user", "content": "Me too. @@tokens=1 tps=0@@"}
        content = json.dumps({"model": model, "messages": [turn]})
        self._sock = socket.create_connection((str(place.hostname), place.port), PATIENCE)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        self._sock.sendall((head + content).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sock.close()

    def answered(self, seconds: float) -> bool:
        """Return whether the answer, a good one, begins within `seconds`."""
        self._sock.settimeout(seconds)
        try:
            return self._sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        except TimeoutError:
            return False


def ollama_dies(stage: Stage) -> str:
    """A broken response never looks complete, a missing Ollama is reported, and its return needs no restart."""
    heard = 0
    try:
        for piece in stage.callers.chat("tiny", "Go on. @@tokens=200 tps=20@@"):
            heard += 1
            if heard == 3:
                stage.say(f"  ... {piece.strip()} (token {heard} of 200): Ollama's process is killed")
                stage.kill_ollama()
    except CallError as error:
        stage.say(f"  the caller reads: {error}")
        expect("Ollama stopped" in str(error), f"the caller did not learn what happened, but: {error}")
    else:
        raise UnmetError(f"the stream ended after {heard} of 200 tokens as if that were all")
    finally:
        missing = _missing(stage)
        stage.start_ollama()
    stage.say(f"  the next caller reads: {missing}")
    expect(missing.status == 502, f"while Ollama is away the answer is {missing.status} instead of 502")
    expect("Ollama is not running" in str(missing), "the message does not say that Ollama is not running")
    text = "".join(stage.callers.chat("tiny", "Again. @@tokens=3 tps=0@@"))
    stage.say(f"  Ollama is started again, and says: {text}")
    expect(text == "Are of may", f"it said {text!r}")
    broken, away, well = stage.audited(3)
    expect_audit(broken, status=200, ended="upstream/content")
    expect_audit(away, status=502, reason="upstream_unreachable")
    expect_audit(well, status=200, ended="complete")
    return "an error in the stream, a 502 while it is away, and all is well after its return"


def _missing(stage: Stage) -> CallError:
    """Return what a caller reads while Ollama is away."""
    try:
        for _ in stage.callers.chat("tiny", "Hello?"):
            pass
    except CallError as error:
        return error
    return CallError(200, "nothing at all")


def access_log(stage: Stage) -> str:
    """The log is private, has a line for each request, and neither prompts, answers nor credentials."""
    stage.catch_up()
    mode = stat.S_IMODE(stage.log.stat().st_mode)
    expect(mode == 0o600, f"its mode is {mode:04o}")
    text = stage.log.read_text()
    expect(text.count("\n") == len(stage.lines), "lines came that nobody caused")
    for secret in (KEY, "@@", "Count for me", "sound see many", "forty-two", "beta=true", "a-feature-of"):
        expect(secret not in text, f"it holds {secret!r}")
    stage.say("  one line in full:")
    stage.say(f"  {text.splitlines()[2]}")
    return f"{len(stage.lines)} lines, mode 0600, no prompt, answer, query or credential in them"


STEPS = (
    Step("The models", models),
    Step("A streamed chat arrives token by token", streamed_chat),
    Step("A Claude-style message, with its thinking", message),
    Step("A responses call", response),
    Step("A coding client: HEAD /, then 76 KB to /v1/messages?beta=true", coding_client),
    Step("A blocked POST /api/pull", blocked_pull),
    Step("Wrong methods", wrong_method),
    Step("Encoded and crooked paths", path_tricks),
    Step("A client hangs up, and the generation stops", hang_up),
    Step("Ollama dies in the middle of a stream", ollama_dies),
    Step("The access log", access_log),
)
