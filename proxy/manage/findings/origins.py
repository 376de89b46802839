"""What there is to find in `allowed_origins`: entries that are no mistake, but open much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.policy.origins import NULL_WARNING, allows_null
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.settings.settings import Settings


def null_origin(settings: Settings) -> Iterator[Finding]:
    """Warn where `null` is allowed."""
    if allows_null(settings.allowed_origins):
        hint = 'take "null" out of `allowed_origins`, unless an app needs it'
        yield Finding("allowed_origins", Outcome.WARN, NULL_WARNING, hint)
