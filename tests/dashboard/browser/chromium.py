"""Where a Chromium is on this machine. Nothing is downloaded."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """Return the path of the first that is there; None: there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)
