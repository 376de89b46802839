"""The files of the page and their types."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "page"

INDEX = "index.html"

_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


class PageFile(NamedTuple):
    """One file."""

    content: bytes
    content_type: str


def page_files(folder: Path = FOLDER) -> dict[str, PageFile]:
    """Return all files by their paths below the folder. A file of another type, such as a licence, isn't served."""
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix in _TYPES and path.is_file())
    return {str(path.relative_to(folder)): PageFile(path.read_bytes(), _TYPES[path.suffix]) for path in paths}
