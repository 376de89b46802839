"""The proxy with one of its features switched off, to measure the feature's cost. No setting does that.

python -m bench.without nothing|audit|reading|room|whois

Loopback is no device of a tailnet, so this plays a Tailscale that knows it. `whois` leaves that out.
"""

from __future__ import annotations

import sys
from typing import Any

from proxy.command_line import cli
from proxy.exchange import streams
from proxy.exchange.message import model_scan, upload
from proxy.logs import audit
from proxy.policy.routes import Route
from proxy.tailnet import device, tailscale, whois

FEATURES = {
    "audit": "the access log",
    "reading": "model, tokens and events read in passing",
    "room": "the body read before it is sent, and the place to wait",
    "whois": "who is asking",
}


def replace(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute that exists with `value`."""
    getattr(owner, name)
    setattr(owner, name, value)


async def _who(*_: object) -> device.Who:
    return device.Who("laptop", "me@example.com")


def _only_terminator(self: streams.Events, data: bytes) -> None:
    """Look for the end only, because otherwise the answer would be logged as cut."""
    if b"[DONE]" in data or b"message_stop" in data:
        self.terminated = True


def _nothing(*_: object) -> None:
    return None


def switch_off(feature: str) -> None:
    """Play Tailscale, and remove `feature`."""
    replace(whois, "is_device", lambda _: True)
    replace(tailscale.Tailscale, "who", _who)
    if feature == "audit":
        replace(audit.AuditLog, "write", _nothing)
    elif feature == "reading":
        replace(streams.Events, "feed", _only_terminator)
        replace(streams.Answer, "feed", _nothing)
        replace(streams.Answer, "end", _nothing)
        replace(model_scan.ModelScan, "feed", _nothing)
        replace(upload, "model_in", _nothing)
    elif feature == "room":
        replace(Route, "needs_model", False)
    elif feature == "whois":
        replace(whois, "is_device", lambda _: False)
    elif feature != "nothing":
        raise SystemExit(f"error: no such feature: {feature}\nhint: one of {', '.join(('nothing', *FEATURES))}")


if __name__ == "__main__":
    switch_off(sys.argv[1])
    sys.exit(cli.main([]))
