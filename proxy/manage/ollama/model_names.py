"""Model names as Ollama reads them: what is valid, which are the same, and which lead off this machine.

Pure. Letter case doesn't matter in Ollama's own store, but other registries may heed it, so it is kept in what is
sent.
"""

from __future__ import annotations

import re

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_\-.]{0,79}"
_NAME = re.compile(
    r"(?:(?:https?://)?(?P<host>[A-Za-z0-9_][A-Za-z0-9_\-.:]{0,349})/(?=[^/]+/))?"  # two more parts follow a host
    rf"(?:(?P<owner>[A-Za-z0-9_][A-Za-z0-9_\-]{{0,79}})/)?(?P<model>{_WORD})(?::(?P<tag>{_WORD}))?"
)


class ModelNameError(ValueError):
    """A text that is no model name."""


def full_name(sent: str) -> str:
    """Return a name as it may be sent: trimmed, with its tag. Raises ModelNameError.

    A final `:local` only says that a model of this machine is meant, and is cut. What everyone leaves out, Ollama's own
    registry and its `library`, is left out.
    """
    text = re.sub(r":\s*local$", "", sent.strip(), flags=re.IGNORECASE)
    parts = _NAME.fullmatch(text)
    if parts is None:
        raise ModelNameError(sent)
    host, owner = parts["host"] or "", parts["owner"] or ""
    place = f"{owner}/" if owner.lower() not in {"", "library"} else ""
    if host and host.lower() != "registry.ollama.ai":
        place = f"{host}/{owner}/"
    return f"{place}{parts['model']}:{parts['tag'] or 'latest'}"


def normal_name(sent: str) -> str:
    """Return the form that all spellings of a name share. Raises ModelNameError."""
    return full_name(sent).lower()


def is_cloud(sent: str) -> bool:
    """Whether a name alone sends a request off the machine."""
    _, colon, last = sent.strip().lower().rpartition(":")
    return bool(colon) and (last.strip() == "cloud" or ("/" not in last and last.strip().endswith("-cloud")))
