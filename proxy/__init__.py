"""A gateway that lets chosen requests, and no others, through to an Ollama on loopback."""

from pathlib import Path

__version__ = "0.1.0"

NAME = "remote-ollama-proxy"
"""What the installed command, its folders, its agents and its entry in Via are called."""

PROGRAM = "python -m proxy" if Path(__file__).parents[1].joinpath("pyproject.toml").exists() else NAME
"""What the owner types to get this program: in a checkout, which has no command on the PATH, or where it is installed.

The service under launchd says so too, though it was started as `python -m proxy`; hints are full of it.
"""
