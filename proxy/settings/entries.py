"""The lists whose entries the gate understands: rows of the allowlist, hosts and origins."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from proxy.policy import gate, origins
from proxy.settings.kinds import Texts, each


def _rows(entries: tuple[str, ...]) -> tuple[str, ...]:
    gate.open_rows(entries)
    return entries


Allow = Annotated[Texts, AfterValidator(_rows), Field(title="names of opt-in rows, as in `POST /api/chat`")]
Hosts = Annotated[Texts, each(gate.host_fault), Field(title="host names")]
Origins = Annotated[
    Texts, each(origins.origin_pattern_fault), Field(title="`scheme://host[:port]`, `scheme://*` or `null`")
]
