"""Read the facts of a JSON response that was kept whole, without making objects of the rest of it."""

from __future__ import annotations

import msgspec


class _Counts(msgspec.Struct, gc=False):
    """Counts of tokens, as the three surfaces name them."""

    prompt_tokens: int | None = None
    input_tokens: int | None = None
    prompt_eval_count: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    eval_count: int | None = None


class _Answer(_Counts, gc=False):
    model: str | None = None
    usage: _Counts | None = None  # without it, the counts stand in the answer itself


_decode = msgspec.json.Decoder(_Answer).decode


def facts_in(answer: bytes) -> tuple[str | None, int | None, int | None] | None:
    """Return the model and the counts of tokens, in and out; None if `answer` isn't as Ollama writes it."""
    try:
        found = _decode(answer)
    except (msgspec.DecodeError, RecursionError):
        return None
    counts = found.usage or found
    tokens_in, tokens_out = counts.prompt_tokens, counts.completion_tokens
    if tokens_in is None:
        tokens_in = counts.prompt_eval_count if counts.input_tokens is None else counts.input_tokens
    if tokens_out is None:
        tokens_out = counts.eval_count if counts.output_tokens is None else counts.output_tokens
    return found.model or None, tokens_in, tokens_out
