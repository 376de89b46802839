"""When a context counts as full, from the numbers alone and in the line of a request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import orjson
import pytest

from proxy.exchange.waiting.context import exceeds, is_full, text_in
from tests.exchange.waiting.asking import PATHS, ask, body
from tests.support.ollama_recordings import TRACES, recording
from tests.support.raw_http import until

if TYPE_CHECKING:
    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Proxy

WINDOW = 2048  # that of the models in the recordings, and of the simulated Ollama's


@pytest.mark.parametrize(
    ("tokens_in", "tokens_out", "text", "full"),
    [
        (2000, 47, 100, False),
        (2000, 48, 100, True),
        (2048, 0, 100, True),
        (2048, None, None, True),
        (2047, None, None, False),
        (10, 5, 9830, False),
        (10, 5, 9831, True),
        (10, 5, None, False),
        (None, 5, 100_000, False),
        (None, None, 100_000, False),
    ],
    ids=[
        *("one_token_left", "prompt_and_answer", "prompt_alone", "prompt_of_an_unread_body", "one_left_of_it"),
        *("text_a_fifth_longer_but_a_byte", "text_a_fifth_longer", "unread", "uncounted_prompt", "no_counts"),
    ],
)
def test_is_full(tokens_in: int | None, tokens_out: int | None, text: int | None, full: bool) -> None:
    """A context is full if prompt and answer fill it, or if the text is a fifth longer and the prompt still fits."""
    assert is_full(WINDOW, tokens_in, tokens_out, text) is full


@pytest.mark.parametrize(("text", "too_much"), [(4799, False), (4800, True)])
def test_exceeds(text: int, too_much: bool) -> None:
    """Text exceeds a window from a fifth more than four bytes for each token on."""
    assert exceeds(text, 1000) is too_much


def test_an_unknown_window_is_never_full() -> None:
    """Without the window that /api/ps lists (since Ollama 0.11) nothing is said."""
    assert not is_full(None, 10**6, 10**6, 10**6)


def test_a_prompt_that_ollama_cut() -> None:
    """The recorded answer to a prompt of 25,000 bytes, of which Ollama 0.32.15 kept one token, shows it."""
    request = (TRACES / "chat-prompt-too-long.request").read_bytes()
    usage = orjson.loads(recording("chat-prompt-too-long").content)["usage"]
    text = text_in(request.partition(b"\r\n\r\n")[2])
    assert usage["prompt_tokens"] == 1
    assert is_full(WINDOW, usage["prompt_tokens"], usage["completion_tokens"], text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'"%b"' % (b"A" * 1023), 1025),
        (b'"%b"' % (b"A" * 1024), 2),
        (b'"data:image/png;base64,%b"' % (b"A" * 5000), 2),
        (b'"%b"' % (b"A " * 1000), 2002),
        (b'"%b"' % ("語" * 1000).encode(), 3002),
        (b'"%b"' % (b"\\u8a9e" * 1000), 3002),
        (b"", 0),
    ],
    ids=["long_word", "base64", "data_uri", "words", "japanese", "japanese_in_ascii", "nothing"],
)
def test_text_in(content: bytes, text: int) -> None:
    """Long texts without a blank are images, and are left out; other scripts are text, however they are written."""
    assert text_in(content) == text


def chat(size: int, **more: object) -> bytes:
    """Return a chat with a prompt of so many bytes, which the simulated Ollama counts as a few tokens."""
    return body(messages=[{"role": "user", "content": "a " + "x" * size}], stream=False, **more)


@pytest.mark.parametrize(("size", "full"), [(9000, None), (10_000, True)], ids=["fits", "cut"])
@pytest.mark.parametrize("path", PATHS)
async def test_the_line_says_so(house: Proxy, path: str, size: int, full: bool | None) -> None:
    """The line of a request whose prompt was cut has `context_full`, and no other line does."""
    wire = await ask(house, path, chat(size))
    assert (await wire.answer()).status == 200
    (line,) = await house.lines()
    assert line.get("context_full") is full
    assert house.gateway.room.snapshot().counters.get("context_full") == (1 if full else None)


async def test_tokens_that_fill_the_window(house: Proxy) -> None:
    """A prompt of as many tokens as the window has fills it, however short its text is."""
    words = "a " * WINDOW
    wire = await ask(house, PATHS[0], body(messages=[{"role": "user", "content": words}], stream=False))
    assert (await wire.answer()).status == 200
    (line,) = await house.lines()
    assert line["context_full"] is True


async def test_a_body_too_large_to_read(house: Proxy) -> None:
    """Of a body that isn't read, the counts show a full context; its length alone shows nothing."""
    await (await ask(house, PATHS[0], chat(1))).answer()  # after it, the window is known
    for word in ("a ", "x"):
        content = orjson.dumps(
            {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": word * (600_000 // len(word))}]}
        )
        await (await ask(house, PATHS[0], content)).answer()
    lines = await house.lines(3)
    assert [line.get("context_full") for line in lines] == [None, True, None]


async def test_escaped_characters_are_no_longer(house: Proxy) -> None:
    """A prompt in another script isn't too long because its client writes it in ASCII."""
    content = json.dumps({"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "語 " * 1500}]})
    assert exceeds(len(content), WINDOW)
    await (await ask(house, "/api/chat", content.encode())).answer()
    (line,) = await house.lines()
    assert "context_full" not in line


async def test_an_image_is_no_text(house: Proxy, ollama: SimulatedOllama) -> None:
    """An image of many bytes doesn't make a short prompt too long."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 20_000}}
    content = [{"type": "text", "text": "What is it?"}, image]
    wire = await ask(house, PATHS[0], body(messages=[{"role": "user", "content": content}], stream=False))
    await wire.answer()
    (line,) = await house.lines()
    assert "context_full" not in line
    await until(lambda: not house.gateway.room.snapshot().exchanges)
    assert ollama.scheduler.loads == 1
