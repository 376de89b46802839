"""The table of what is let through, compared with the promise that the documentation makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.policy import routes
from proxy.policy.routes import OPT_IN, ROUTES, Dialect, Surface

DEFAULT = {
    "POST /v1/chat/completions",
    "GET /v1/models",
    "GET /v1/models/*",
    "POST /v1/responses",
    "POST /v1/messages",
    "GET /api/version",
    "GET /api/tags",
    "POST /api/show",
}
OPENABLE = {
    "GET /",
    "HEAD /",
    "HEAD /api/version",
    "HEAD /api/tags",
    "GET /api/ps",
    "GET /api/status",
    "POST /api/chat",
    "POST /api/generate",
    "POST /api/embed",
    "POST /api/embeddings",
    "POST /v1/embeddings",
    "POST /v1/completions",
    "POST /v1/audio/transcriptions",
}


def test_default_rows_are_exactly_the_promised_ones():
    """Without any setting, eight rows are served and no other."""
    assert {row.name for row in ROUTES if not row.opt_in} == DEFAULT


def test_opt_in_rows_are_exactly_the_promised_ones():
    """`allow` can open thirteen rows and no other."""
    assert set(OPT_IN) == OPENABLE
    assert all(OPT_IN[row.name] is row for row in ROUTES if row.opt_in)


@pytest.mark.parametrize(
    "word",
    ["pull", "push", "create", "copy", "delete", "blobs", "api/me", "signout", "keys", "experimental", "debug"],
)
def test_management_has_no_row(word):
    """No row, opened or not, manages models, the owner's account or fetches from outside."""
    assert not [row.name for row in ROUTES if word in row.path]


@pytest.mark.parametrize("row", ROUTES, ids=lambda row: row.name)
def test_row_is_well_formed(row):
    """A path is plain, a star is a last segment by itself, and the surface is that of the path."""
    assert row.path.startswith("/")
    assert row.path.isascii()
    assert not set(row.path) & set("%?#;\\ ")
    assert "*" not in row.path.removesuffix("/*")
    expected = Surface.ANTHROPIC if row.path == "/v1/messages" else Surface.OPENAI
    assert row.surface is (expected if row.path.startswith("/v1/") else Surface.NATIVE)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", Dialect.CHAT),
        ("/v1/completions", Dialect.CHAT),
        ("/v1/responses", Dialect.RESPONSES),
        ("/v1/messages", Dialect.MESSAGES),
        ("/api/chat", Dialect.NDJSON),
        ("/api/generate", Dialect.NDJSON),
    ],
)
def test_streaming_rows_say_how_their_stream_ends(path, dialect):
    """Each row that may stream names the dialect of its events."""
    assert [row.dialect for row in ROUTES if row.path == path] == [dialect]


def test_other_rows_do_not_stream():
    """Six rows stream; the rest has no dialect."""
    assert len([row for row in ROUTES if row.dialect is not None]) == 6


def test_a_row_listed_twice_stops_the_program():
    """A method and path that the table has twice is an error at import, before anything is served."""
    source = Path(routes.__file__).read_text("utf-8")
    row = '    Route("GET", "/v1/models", Surface.OPENAI),\n'
    assert source.count(row) == 1
    doubled = compile(source.replace(row, row.rstrip("\n") + row.lstrip()), routes.__file__, "exec")
    with pytest.raises(RuntimeError, match="twice"):
        exec(doubled, {"__name__": routes.__name__})
