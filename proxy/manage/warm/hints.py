"""What helps when Ollama doesn't pull or load a model, by the words of its error. Pure.

The words are those of Ollama's source and of what its users report; where none is known, its log knows more.
"""

from __future__ import annotations

import re

from proxy import PROGRAM

_AGAIN = f"{PROGRAM} warm NAME: it doesn't download again what is here already"
_TOO_LARGE = "ollama ps shows what else is loaded; a smaller model, or less OLLAMA_CONTEXT_LENGTH, needs less"

_PULL = (
    (r"file does not exist", "look the name up at https://ollama.com/library; `ollama list` has what is here"),
    (r"unauthorized|access denied|\b40[13]\b", "it is private, or doesn't exist: https://ollama.com/library"),
    (r"newer version|\b412\b", f"brew upgrade ollama && {PROGRAM} restart ollama"),
    (r"no space left|disk quota|not enough space", "df -h ~; `ollama rm` removes a model that isn't needed"),
    (r"no such host|dial tcp|i/o timeout|tls|network is|lookup ", "curl -I https://registry.ollama.ai"),
    (r"digest mismatch|max retries|stalled|unexpected eof|ended|broke|reset", _AGAIN),
    (r"mlx", "name another variant of the model: this one is for Ollama with MLX"),
)
_LOAD = (
    (r"memory|insufficient|cudamalloc|resource limitations", _TOO_LARGE),
    (r"timed out waiting", f"more OLLAMA_LOAD_TIMEOUT under [ollama_env] in config.toml, then {PROGRAM} install"),
    (r"server busy", f"{PROGRAM} warm NAME, once other loads have finished"),
    (r"not found", f"{PROGRAM} warm NAME, which pulls it again"),
    (r"unable to load model|unsupported|unknown model architecture", "ollama rm NAME && ollama pull NAME"),
)


def for_pull(error: str, name: str, log: str) -> str:
    """Return what helps when a model wasn't pulled; `log` is the command that shows Ollama's log."""
    return _first(_PULL, error, log).replace("NAME", name)


def for_load(error: str, name: str, log: str) -> str:
    """Return what helps when a model wasn't loaded."""
    return _first(_LOAD, error, log).replace("NAME", name)


def _first(table: tuple[tuple[str, str], ...], error: str, otherwise: str) -> str:
    return next((hint for words, hint in table if re.search(words, error, re.IGNORECASE)), otherwise)
