"""Explain what the proxy would do with a request: which rule decides, what reaches Ollama, what the client gets.

Nothing is sent. The verdict, the forwarded head and our own answers come from the modules that serve real requests.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING

from proxy.exchange.client.requests import RequestParser
from proxy.exchange.message.forwarding import request_head
from proxy.policy import refusals
from proxy.policy.gate import allowed_origin, decide, judge_host
from proxy.policy.heads import Preflight, RequestHead
from proxy.policy.refusals import Refusal
from proxy.policy.replies import cors_fields, preflight_reply, reply, surface_of
from proxy.policy.routes import Surface
from proxy.serving.listener import policy_of, target_of
from proxy.settings.addresses import in_tailnet
from proxy.settings.settings import load
from proxy.tailnet.tailscale import Tailscale
from proxy.terminal.result import Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.policy.routes import Route
    from proxy.settings.settings import Loaded, Settings
    from proxy.terminal.printer import Printer

_CONTENT = "{}"
_EXAMPLE_ID = "7d1f0c93ab00002a"  # each request has its own


@dataclass(frozen=True, slots=True)
class Explanation:
    """A request and its fate; heads and answers as text, line by line."""

    request: str
    verdict: str  # "served", "refused", "redirected" or "answered"
    rule: str
    forwarded: str | None  # the head as Ollama gets it; None: not a byte reaches it
    answer: str


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Print what happens to the request in `args`. A refusal is not a failure of the command."""
    loaded = load(flags, os.environ)
    name = own_name(loaded.settings, args.host)
    found = explain(loaded, args.method, args.target, args.host, args.origin, args.header, name)
    parts = {
        "request": found.request,
        f"{found.verdict} by this rule": found.rule,
        "reaches Ollama": found.forwarded or "nothing",
        "the client gets": found.answer,
    }
    for title, text in parts.items():
        out.say(title, "bold")
        for line in text.split("\n"):
            out.say(f"  {line}".rstrip())
        out.say()
    return Result(data=found)


def explain(
    loaded: Loaded,
    method: str,
    target: str,
    host: str | None,
    origin: str | None,
    headers: Iterable[str] = (),
    own_name: str | None = None,
) -> Explanation:
    """Return what happens to a typical request; `host` defaults to localhost, no `origin` means no browser.

    `headers` are further field lines, "NAME: VALUE": `Upgrade: websocket`, `Content-Encoding: gzip` and the like.
    `own_name` is this machine's name in its tailnet.
    """
    settings = loaded.settings
    policy = policy_of(settings, own_name)
    wanted = next(iter(policy.rows(target.partition("?")[0]) or ["POST"]))
    fields = _fields(method, host or f"localhost:{settings.port}", origin, wanted)
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), *headers]
    request = "\n".join(lines)
    head = _parse("\r\n".join([*lines, "", _CONTENT if method == "POST" else ""]), settings.max_head)
    if isinstance(head, Refusal):
        return Explanation(request, "refused", f"{head.reason}: {head.message}", None, _reply(head, None, None, None))
    accepted_origin = allowed_origin(head, policy)
    verdict = decide(head, policy)
    if isinstance(verdict, Refusal):
        because = f"{verdict.reason}: {verdict.message}"
        answer = _reply(verdict, surface_of(head.path), accepted_origin, head)
        return Explanation(request, verdict.verdict, because, None, answer)
    if isinstance(verdict, Preflight):
        rule = "a preflight of an allowed Origin is answered for any path; the request that follows is judged by itself"
        octets = preflight_reply(
            verdict, origin=accepted_origin or b"", request_id=_EXAMPLE_ID, keep_alive=True, date=_now()
        )
        return Explanation(request, "answered", rule, None, _text(octets))
    rule = f"`{verdict.name}` is on the allowlist"
    if verdict.opt_in:
        rule += f", opened by allow ({loaded.sources['allow']})"
    place = target_of(settings)
    sent = _text(request_head(head, place.authority, forward_credentials=place.forward_credentials))
    return Explanation(request, "served", rule, sent, _passed_on(verdict, accepted_origin))


def own_name(settings: Settings, host: str | None) -> str | None:
    """Return this machine's name in its tailnet, if that decides whether `host` is allowed. Asks Tailscale."""
    if host is None or not in_tailnet(settings.listen) or judge_host(host.encode(), policy_of(settings)) is None:
        return None
    return asyncio.run(Tailscale().look()).name


def _fields(method: str, host: str, origin: str | None, wanted: str) -> list[tuple[str, str]]:
    """Return the fields that SDKs and browsers send: an ignored key, a body with POST, and `wanted` in a preflight."""
    fields = [("Host", host), ("Accept-Encoding", "gzip"), ("Authorization", "Bearer example")]
    if origin is not None:
        fields.append(("Origin", origin))
        if method == "OPTIONS":
            fields += [("Access-Control-Request-Method", wanted)]
            fields += [("Access-Control-Request-Headers", "authorization,content-type")]
    if method == "POST":
        fields += [("Content-Type", "application/json"), ("Content-Length", str(len(_CONTENT)))]
    return fields


def _parse(request: str, max_head: int) -> RequestHead | Refusal:
    """Return the head as a connection would pass it to the gate, or the parser's objection."""
    loop = asyncio.new_event_loop()  # the parser wants one, and leaves it alone
    try:
        parser = RequestParser(loop, max_head)
        parser.feed(request.encode("utf-8", "surrogateescape"))
    finally:
        loop.close()
    if not parser.queue:
        return parser.fault or refusals.MALFORMED
    found, _ = parser.take()
    return found.head


def _passed_on(route: Route, origin: bytes | None) -> str:
    """Return what is known about Ollama's response: the fields that are added to it."""
    own = f"x-request-id: {_EXAMPLE_ID}\n"
    if route.surface is Surface.ANTHROPIC:
        own += f"request-id: {_EXAMPLE_ID}\n"
    return f"Ollama's own response, unchanged, with\n{own}{_text(cors_fields(origin)) if origin else ''}".rstrip("\n")


def _reply(refusal: Refusal, surface: Surface | None, origin: bytes | None, head: RequestHead | None) -> str:
    octets = reply(
        refusal,
        surface=surface,
        request_id=_EXAMPLE_ID,
        keep_alive=head is not None and not refusal.closes,
        origin=origin,
        date=_now(),
        head_only=head is not None and head.method == "HEAD",
    )
    return _text(octets)


def _now() -> bytes:
    return formatdate(usegmt=True).encode()


def _text(octets: bytes) -> str:
    """Return bytes of HTTP as lines of text."""
    return octets.decode("utf-8", "surrogateescape").replace("\r\n", "\n").rstrip("\n")
