"""PLACE."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def main(flags: Mapping[str, str], args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    del flags, args
    return 1
