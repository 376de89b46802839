"""The tour's callers with the real SDKs: `openai`, `anthropic` and `ollama`. Importing it needs all three."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import anthropic
import ollama
import openai

from proxy.manage.demo.callers import KEY, MAX_TOKENS, PATIENCE, CallError, Models, Said

if TYPE_CHECKING:
    from collections.abc import Iterator


class SdkCallers:
    """Each call by the SDK that a user of it would have."""

    description = ", ".join(f"{name} {version(name)}" for name in ("openai", "anthropic", "ollama")) + ", raw HTTP"

    def __init__(self, base: str) -> None:
        # An HTTP_PROXY in the environment must not come between; and each call is one request.
        direct = {"http://": None}
        self._openai = openai.OpenAI(
            base_url=f"{base}/v1",
            api_key=KEY,
            timeout=PATIENCE,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(mounts=direct),
        )
        self._anthropic = anthropic.Anthropic(
            base_url=base,
            auth_token=KEY,
            timeout=PATIENCE,
            max_retries=0,
            http_client=anthropic.DefaultHttpxClient(mounts=direct),
        )
        self._ollama = ollama.Client(base, timeout=PATIENCE, trust_env=False)

    def models(self) -> Models:
        """List the models by GET /v1/models and GET /api/tags."""
        with _failures():
            native = [str(model.model) for model in self._ollama.list().models]
            return Models([model.id for model in self._openai.models.list()], native)

    def chat(self, model: str, prompt: str) -> Iterator[str]:
        """Give each piece of a streamed chat."""
        with (
            _failures(),
            self._openai.chat.completions.create(
                model=model, messages=[{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS, stream=True
            ) as stream,
        ):
            for chunk in stream:
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    yield piece

    def message(self, model: str, prompt: str) -> Said:
        """Let the SDK gather a stream into its message."""
        with (
            _failures(),
            self._anthropic.messages.stream(
                model=model, messages=[{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS
            ) as stream,
        ):
            blocks = stream.get_final_message().content
        thinking = "".join(block.thinking for block in blocks if block.type == "thinking")
        return Said(thinking, "".join(block.text for block in blocks if block.type == "text"))

    def response(self, model: str, prompt: str) -> str:
        """Return the text of all that was put out."""
        with _failures():
            return self._openai.responses.create(model=model, input=prompt).output_text

    def pull(self, model: str) -> None:
        """Ask for a model."""
        with _failures():
            self._ollama.pull(model)


@contextmanager
def _failures() -> Iterator[None]:
    """Turn each SDK's errors into CallError, with the message that its user reads."""
    try:
        yield
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        raise CallError(error.status_code, error.message) from error
    except (openai.APIError, anthropic.APIError) as error:
        raise CallError(0, error.message) from error
    except ollama.ResponseError as error:
        raise CallError(error.status_code, error.error) from error
