"""Explain what the proxy would do with a request: which rule decides, what reaches Ollama, what the client gets.

Nothing is sent. The verdict, the forwarded head and our own answers come from the modules that serve real requests.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import TYPE_CHECKING

from proxy.exchange.client.requests import RequestParser
from proxy.exchange.message.forwarding import request_head
from proxy.manage.asker import find_asker
from proxy.policy import refusals
from proxy.policy.access import Rule
from proxy.policy.gate import allowed_origin, decide, judge_host
from proxy.policy.heads import Preflight, RequestHead
from proxy.policy.models import judge_name, named_in
from proxy.policy.native import PATHS as NATIVE_PATHS
from proxy.policy.refusals import Refusal
from proxy.policy.replies import cors_fields, preflight_reply, reply, surface_of
from proxy.policy.routes import Route, Surface
from proxy.reading.native import NativeOptions
from proxy.serving.listener import access_of, policy_of, target_of
from proxy.settings.addresses import in_tailnet
from proxy.settings.settings import load
from proxy.tailnet.tailscale import Tailscale
from proxy.terminal.result import Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.policy.access import Access
    from proxy.policy.gate import Policy
    from proxy.policy.identity import Asker
    from proxy.settings.settings import Loaded, Settings
    from proxy.terminal.printer import Printer

_CONTENT = "{}"
_NATIVE = {
    NativeOptions.DROP: "`keep_alive` and load-time `options` are cut out of it (`native_options`)",
    NativeOptions.REFUSE: "with `keep_alive` or load-time `options` it is refused (`native_options`)",
    NativeOptions.PASS: "it may unload, pin or reload a model for everyone (`native_options`)",
}
_EXAMPLE_ID = "7d1f0c93ab00002a"  # each request has its own


@dataclass(frozen=True, slots=True)
class Explanation:
    """A request and its fate; heads and answers as text, line by line."""

    request: str
    verdict: str  # "served", "refused", "redirected" or "answered"
    rule: str
    forwarded: str | None  # the head as Ollama gets it; None: not a byte reaches it
    answer: str
    asker: str | None = None  # who asks, and which access rule counts; None: that isn't judged


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Print what happens to the request in `args`. A refusal is not a failure of the command."""
    loaded = load(flags, os.environ)
    name = own_name(loaded.settings, args.host)
    asker, note = None, ""
    if args.device is not None:
        asker, note = asyncio.run(find_asker(args.device, Tailscale(), loaded.settings.capability))
    found = explain(
        loaded, args.method, args.target, args.host, args.origin, args.header, name, asker=asker, model=args.model
    )
    parts = {
        "request": found.request,
        **({"who asks": f"{found.asker}{f' ({note})' if note else ''}"} if found.asker else {}),
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
    *,
    asker: Asker | None = None,
    model: str | None = None,
) -> Explanation:
    """Return what happens to a typical request; `host` defaults to localhost, no `origin` means no browser.

    `headers` are further field lines, "NAME: VALUE": `Upgrade: websocket`, `Content-Encoding: gzip` and the like.
    `own_name` is this machine's name in its tailnet. With an `asker` the access rules are judged too, and with a
    `model` whether its rule allows it.
    """
    settings = loaded.settings
    base = policy_of(settings, own_name)
    access = access_of(settings, base)
    ruled = None if asker is None else asker.standing.refusal or access.rule_of(asker)
    policy = ruled.policy if isinstance(ruled, Rule) else access.policy
    found = _explain(loaded, policy, ruled, (method, target), (host, origin, tuple(headers)), model)
    return replace(found, asker=_who_asks(access, asker, ruled))


def _who_asks(access: Access, asker: Asker | None, ruled: Rule | Refusal | None) -> str | None:
    """Return who asks and which rule counts, in words."""
    if asker is None:
        return "anyone; with --from DEVICE, the access rules are judged too" if access else None
    if ruled is None:
        return f"{asker}: there are no access rules"
    return f"{asker}: {f'{ruled.title} counts' if isinstance(ruled, Rule) else 'no rule counts'}"


def _explain(
    loaded: Loaded,
    policy: Policy,
    ruled: Rule | Refusal | None,
    asked: tuple[str, str],
    by: tuple[str | None, str | None, tuple[str, ...]],
    model: str | None,
) -> Explanation:
    """Return the explanation by a `policy`; `asked` are method and target, `by` are Host, Origin and further fields."""
    settings, (method, target), (host, origin, headers) = loaded.settings, asked, by
    wanted = next(iter(policy.rows(target.partition("?")[0]) or ["POST"]))
    fields = _fields(method, host or f"localhost:{settings.port}", origin, wanted)
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), *headers]
    request = "\n".join(lines)
    head = _parse("\r\n".join([*lines, "", _CONTENT if method == "POST" else ""]), settings.max_head)
    if isinstance(head, Refusal):
        return Explanation(request, "refused", f"{head.reason}: {head.message}", None, _reply(head, None, None, None))
    accepted_origin = allowed_origin(head, policy)
    verdict = decide(head, policy, ruled if isinstance(ruled, Refusal) else None)
    rule = ruled if isinstance(ruled, Rule) else None
    if isinstance(verdict, Route):
        model = _named(verdict, head, model)
        verdict = (judge_name(model, rule, settings.local_only) if model is not None else None) or verdict
    if isinstance(verdict, Refusal):
        because = f"{verdict.reason}: {verdict.message}"
        answer = _reply(verdict, surface_of(head.path), accepted_origin, head)
        return Explanation(request, verdict.verdict, because, None, answer)
    if isinstance(verdict, Preflight):
        because = (
            "a preflight of an allowed Origin is answered for any path; the request that follows is judged by itself"
        )
        octets = preflight_reply(
            verdict, origin=accepted_origin or b"", request_id=_EXAMPLE_ID, keep_alive=True, date=_now()
        )
        return Explanation(request, "answered", because, None, _text(octets))
    because = f"`{verdict.name}` is on the allowlist"
    if verdict.opt_in:
        by_rule = rule is not None and verdict.name in rule.also
        because += f", opened by {f'`also` of {rule.title}' if rule and by_rule else _allowed(loaded)}"
    if model is not None:
        because += f"; {rule.title if rule else 'no rule'} {'allows' if rule else 'restricts'} the model {model}"
    if verdict.path in NATIVE_PATHS:
        because += f"; {_NATIVE[settings.native_options]}"
    place = target_of(settings)
    sent = _text(request_head(head, place.authority, forward_credentials=place.forward_credentials))
    return Explanation(request, "served", because, sent, _passed_on(verdict, accepted_origin))


def _named(route: Route, head: RequestHead, model: str | None) -> str | None:
    """Return the model that a request names: in its path, or else `model`, in its body; None if the row takes none."""
    if route.path.endswith("*"):
        return named_in(head.path)
    return model if route.names_model else None


def _allowed(loaded: Loaded) -> str:
    return f"allow ({loaded.sources['allow']})"


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
