"""How Ollama itself reads a path: the judge of what could be reached by another spelling."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote_to_bytes

# v0.33.0-rc2, with `*` for one segment.
OLLAMA = {
    "GET": """
        / /api/version /api/tags /api/ps /api/status /v1/models /v1/models/*
        /api/experimental/model-recommendations
    """,
    "HEAD": "/ /api/version /api/tags /api/blobs/*",
    "POST": """
        /v1/chat/completions /v1/completions /v1/embeddings /v1/responses /v1/messages /v1/audio/transcriptions
        /api/show /api/chat /api/generate /api/embed /api/embeddings /api/pull /api/push /api/create /api/copy
        /api/blobs/* /api/me /api/signout /api/experimental/web_search /api/experimental/web_fetch
    """,
    "DELETE": "/api/delete /api/user/keys/*",
}


def ollama_routes(method: str, target: str) -> set[str]:
    r"""Return the names of all rows that Ollama could take `target` for, at once or after the redirects it sends.

    Go decodes the path up to `?`; gin routes on that and redirects to a path without empty and dot segments, or
    without a final slash, which clients follow. Decoding twice and `\` for `/` stand for less careful upstreams.
    """
    path = target.partition("?")[0]
    readings = {
        path,
        unquote_to_bytes(path).decode("latin-1"),
        unquote_to_bytes(unquote_to_bytes(path)).decode("latin-1"),
    }
    readings |= {reading.replace("\\", "/") for reading in readings}
    readings |= {reading.partition(cut)[0] for reading in readings for cut in "?#;"}
    readings |= {posixpath.normpath("/" + reading.lstrip("/")) for reading in readings}
    readings |= {reading.rstrip("/") or "/" for reading in readings}
    names = set()
    for reading in readings:
        parent, _, last = reading.rpartition("/")
        names |= {
            f"{method} {path}"
            for path in OLLAMA.get(method, "").split()
            if path == reading or (path.endswith("/*") and path[:-2] == parent and last)
        }
    return names
