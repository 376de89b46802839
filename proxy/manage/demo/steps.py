"""The steps of the tour: the questions that `verify` asks, and four scenes that only a tour can play.

A scene is a question too. It shows what it sees while it asks.
"""

from __future__ import annotations

import stat
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from proxy.manage.demo.stage import AUDIT_PATIENCE, Stage, Step
from proxy.manage.verify import access_log
from proxy.manage.verify.asking.events import events
from proxy.manage.verify.asking.session import Question, Session, expect, seen
from proxy.manage.verify.asking.silence import NoAnswer
from proxy.manage.verify.questions.anthropic import ANTHROPIC_QUESTIONS
from proxy.manage.verify.questions.connection import CONNECTION_QUESTIONS
from proxy.manage.verify.questions.gaps import GAPS_QUESTIONS
from proxy.manage.verify.questions.guards import GUARDS_QUESTIONS
from proxy.manage.verify.questions.openai import HELLO, OPENAI_QUESTIONS, chat
from proxy.manage.verify.questions.table import BLOCKED_QUESTIONS, DETOUR_QUESTIONS, served_questions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.manage.verify.asking.asking import Answer, Asker, Piece

QUEUED, SERVED = 0.3, 30.0
"""Seconds that a second client is seen to wait, and within which it must be served once the first has hung up."""

_CHAT = "/v1/chat/completions"
_SECRETS = ("@@", "Count", "sound see many", "Say hello", "Ada", "Paris", "unused", "beta=true")
"""What the tour's requests and answers hold and the log must not: credentials, prompts, an answer, a query."""


def steps(stage: Stage) -> tuple[Step, ...]:
    """Return the steps, to be played on `stage`."""
    served = served_questions(stage.session.promised)
    apis = (*OPENAI_QUESTIONS, *GAPS_QUESTIONS)

    def scene(title: str, why: str, play: Callable[[Stage, Session], str]) -> Step:
        return Step(title, why, (Question("", "", partial(play, stage)),))

    return (
        Step("The proxy answers", "Ollama is behind it, and has models.", CONNECTION_QUESTIONS, "from the proxy"),
        Step("OpenAI's clients get what they expect", "They rely on the form of answers and errors.", apis, "chat"),
        scene("A streamed chat arrives token by token", "The proxy passes each token on at once.", streamed_chat),
        Step("Anthropic's clients, too", "Claude Code needs events in order.", ANTHROPIC_QUESTIONS, "thinking"),
        Step("Listed requests reach Ollama", "This is the whole allowlist.", served, "GET /api/version"),
        Step("All others are blocked", "Nobody can pull or delete models.", BLOCKED_QUESTIONS, "POST /api/pull"),
        Step("Strangers are refused", "A web page must not use your models.", GUARDS_QUESTIONS, "foreign Origin"),
        Step("There is no way round", "Paths are compared as sent.", DETOUR_QUESTIONS, "spellings of a path"),
        scene("A client hangs up, and the generation stops", "Ollama serves one client at a time.", hang_up),
        scene("Ollama dies in the middle of a stream", "A broken answer must not look complete.", ollama_dies),
        scene("The access log", "It shows who asked for what, and nothing that was said.", logged),
    )


def _stream(asker: Asker, prompt: str, heard: Callable[[Piece], object], model: str = "tiny") -> Answer:
    """Ask for a streamed chat."""
    content = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 500, "stream": True}
    return asker.ask("POST", _CHAT, content, {"Authorization": "Bearer unused"}, heard=heard)


def _tokens(pieces: Iterable[Piece]) -> list[tuple[str, float]]:
    """Return each token of a stream, and the moment when it came."""
    found = [(seen(event.json, "choices", 0, "delta", "content"), event.moment) for event in events(pieces)]
    return [(text, moment) for text, moment in found if text]


def streamed_chat(stage: Stage, session: Session) -> str:
    """Show each token when it comes. Whether any are held back is judged by `token gaps`, which looks three times."""
    count = 10
    asked = f"Count for me. @@tokens={count} tps=10@@"
    stage.say(f"  asked: {asked}   (what stands in @@ steers the simulated model)")
    begun = time.monotonic()

    def heard(piece: Piece) -> None:
        for text, moment in _tokens([piece]):
            stage.say(f"  {moment - begun:5.2f} s  {text.strip()}")

    moments = [moment for _, moment in _tokens(_stream(session.asker, asked, heard).pieces)]
    expect(len(moments) == count, f"{len(moments)} tokens instead of {count}")
    return f"{count} tokens in {len({*moments})} reads, over {moments[-1] - moments[0]:.2f} s"


def hang_up(stage: Stage, session: Session) -> str:
    """Leave in the middle of a stream. The next client, who asks Ollama itself, is served."""
    served = threading.Event()

    def second() -> None:
        content = {"model": "toolcaller", "messages": HELLO, "max_tokens": 1}
        with suppress(NoAnswer):
            if stage.direct.ask("POST", _CHAT, content, loads=True).status == 200:
                served.set()

    waiting = threading.Thread(target=second, daemon=True)

    def heard(piece: Piece) -> bool:
        for text, _ in _tokens([piece]):
            stage.say(f"  first client, through the proxy: {text.strip()} ... (100 s of speech)")
        waiting.start()
        expect(not served.wait(QUEUED), "Ollama answered a second client at once, so this shows nothing")
        stage.say(f"  second client, directly: waits its turn ({QUEUED} s and more)")
        return True

    _stream(session.asker, "Go on. @@tokens=400 tps=4@@", heard, "toolcaller")
    stage.say("  the first client hangs up")
    begun = time.monotonic()
    expect(served.wait(SERVED), f"Ollama still hadn't answered anyone {SERVED:g} s after the client hung up")
    waited = time.monotonic() - begun
    waiting.join()
    return f"Ollama stopped: the next client was served {waited:.2f} s after the hang-up"


def ollama_dies(stage: Stage, session: Session) -> str:
    """Kill Ollama. A broken stream says so, a missing Ollama is reported, and its return needs no restart."""
    heard: list[Any] = []

    def kill(piece: Piece) -> None:
        tokens = _tokens([piece])
        heard.extend(tokens)
        if tokens and len(heard) == 3:
            stage.say("  token 3 of 200: Ollama's process is killed")
            stage.kill_ollama()

    try:
        broken = _stream(session.asker, "Go on. @@tokens=200 tps=20@@", kill)
        errors = [seen(event.json, "error", "message") for event in events(broken.pieces)]
        said = next((error for error in errors if error), "")
        expect("Ollama stopped" in said, f"after {len(heard)} of 200 tokens the client reads {said!r}")
        stage.say(f"  the client reads: {said}")
        missing = session.asker.ask("POST", _CHAT, {"model": "tiny", "messages": HELLO})
    finally:
        stage.start_ollama()
    stage.say(f"  the next client reads: {missing.status} {missing.message}")
    expect(missing.status == 502, f"while Ollama is away the answer is {missing.status} instead of 502")
    expect("Ollama is not running" in missing.message, "the message does not say that Ollama is not running")
    stage.say(f"  Ollama is started again: {chat(session)}")
    return "an error in the stream, a 502 while it is away, and the next answer after its return"


def logged(stage: Stage, session: Session) -> str:
    """Check the log: private, one line for each request, and no prompt, answer or credential in it."""
    ids = [each.id for each in session.asker.asked if each.known]
    for finding in access_log.access_log(str(stage.log), ids, AUDIT_PATIENCE):
        expect(finding.outcome == "pass", finding.detail)
    mode = stat.S_IMODE(stage.log.stat().st_mode)
    expect(mode == 0o600, f"its mode is {mode:04o}")
    text = stage.log.read_text()
    for secret in _SECRETS:
        expect(secret not in text, f"it holds {secret!r}")
    lines = text.splitlines()
    shown = next((line for line in lines if '"stream":true' in line), "")
    stage.say(f"  one line in full:\n  {shown}")
    return f"{len(lines)} lines, mode 0600, no prompt, answer, query or credential in them"
