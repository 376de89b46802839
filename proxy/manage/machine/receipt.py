"""The notes of an install for the next one and for the uninstall: which files here are ours.

A plist doesn't show who wrote it, and one that the owner wrote must never be taken for ours.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

if TYPE_CHECKING:
    from proxy.manage.machine.machine import Machine


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is installed. All fields have their value of an empty machine by default."""

    version: str = ""
    ollama: bool = False  # the plist of com.ollama is ours
    ollama_env: tuple[str, ...] = ()  # names that `ollama_env` added to it
    haproxy: bool = False  # com.haproxy was taken over, its plist is in the backup

    @classmethod
    def of(cls, machine: Machine) -> Receipt:
        """Return the notes of the last install; if they can't be read, empty notes."""
        try:
            return TypeAdapter(cls).validate_json(machine.receipt.read_bytes())
        except (OSError, ValueError):
            return cls()

    def content(self) -> bytes:
        """Return the file that says this."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"
