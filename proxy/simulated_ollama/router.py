"""Which handler a request reaches: Go's ServeMux, then gin's router, then Ollama's Origin and Host checks.

ServeMux cleans the path as sent (`//`, `/./`, `/../`) by redirecting; gin then matches the percent-decoded path. So
`/%61pi/delete` and `/api%2Fdelete` reach the delete handler, which is why a proxy must compare paths as sent.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

from proxy.simulated_ollama import embeddings, manage, metadata
from proxy.simulated_ollama.go.head import Head
from proxy.simulated_ollama.go.http import Connection, Reply
from proxy.simulated_ollama.inference import Host, infer

Version = tuple[int, ...]

# In the order in which Ollama registers its first route of each, which is the order in Allow.
_METHODS = ("HEAD", "GET", "POST", "DELETE")
_WRONG_METHOD_SINCE: Version = (0, 7, 0)

_NETWORKS = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]
_ORIGIN = re.compile(
    r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:.*)?|(app|file|tauri|vscode-webview|vscode-file)://.*"
)
_CORS_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    "X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    "X-Stainless-Runtime-Version,X-Stainless-Timeout"
)


Handler = Callable[[Host, Head, Reply, Connection], Awaitable[None]]


class Row(NamedTuple):
    """One route; a final `*` stands for one segment."""

    method: str
    path: str
    handler: Handler
    since: Version = (0,)


ROWS = (
    Row("HEAD", "/", metadata.tell_root),
    Row("GET", "/", metadata.tell_root),
    Row("HEAD", "/api/version", metadata.tell_version),
    Row("GET", "/api/version", metadata.tell_version),
    Row("GET", "/api/status", metadata.tell_status, (0, 16, 2)),
    Row("POST", "/api/pull", manage.pull),
    Row("POST", "/api/push", manage.push),
    Row("HEAD", "/api/tags", metadata.tell_tags),
    Row("GET", "/api/tags", metadata.tell_tags),
    Row("POST", "/api/show", metadata.tell_show),
    Row("DELETE", "/api/delete", manage.delete),
    Row("POST", "/api/me", manage.me, (0, 12, 0)),
    Row("POST", "/api/signout", manage.signout, (0, 12, 1)),
    Row("DELETE", "/api/user/keys/*", manage.signout, (0, 12, 0)),
    Row("POST", "/api/create", manage.create),
    Row("POST", "/api/blobs/*", manage.blob_put),
    Row("HEAD", "/api/blobs/*", manage.blob_head),
    Row("POST", "/api/copy", manage.copy),
    Row("POST", "/api/experimental/web_search", manage.me, (0, 18, 0)),
    Row("POST", "/api/experimental/web_fetch", manage.me, (0, 18, 0)),
    Row("GET", "/api/experimental/model-recommendations", manage.recommendations, (0, 22, 1)),
    Row("GET", "/api/ps", metadata.tell_ps),
    Row("POST", "/api/generate", partial(infer, "generate")),
    Row("POST", "/api/chat", partial(infer, "api_chat")),
    Row("POST", "/api/embed", embeddings.embed),
    Row("POST", "/api/embeddings", embeddings.embeddings),
    Row("POST", "/v1/chat/completions", partial(infer, "chat")),
    Row("POST", "/v1/completions", partial(infer, "completions")),
    Row("POST", "/v1/embeddings", embeddings.v1_embeddings),
    Row("GET", "/v1/models", metadata.tell_models),
    Row("GET", "/v1/models/*", metadata.tell_model),
    Row("POST", "/v1/responses", partial(infer, "responses"), (0, 13, 3)),
    Row("POST", "/v1/messages", partial(infer, "messages"), (0, 14, 0)),
)


async def route(head: Head, reply: Reply, version: Version, *, check_host: bool) -> Handler | None:
    """Return the handler for a request, or answer it here and return None. `check_host` is off on open addresses."""
    if head.get("expect") and not head.has_token("expect", "100-continue"):
        await _close(reply, 417)
        return None
    if head.target == "*":
        if head.method == "OPTIONS":
            reply.set("Content-Length", "0")
            await reply.whole(200)
        else:
            await _close(reply, 400)
        return None
    if head.method == "CONNECT" and not head.escaped_path:
        reply.set("X-Content-Type-Options", "nosniff")
        await reply.whole(404, b"404 page not found\n", "text/plain; charset=utf-8")
        return None
    clean = _cleaned(head.escaped_path)
    if clean != head.escaped_path and head.method != "CONNECT":
        await _redirect(head, reply, 307, clean)
        return None
    return await _gin(head, reply, [row for row in ROWS if row.since <= version], version, check_host=check_host)


async def _gin(head: Head, reply: Reply, rows: list[Row], version: Version, *, check_host: bool) -> Handler | None:
    path = head.path
    here = {row.method: row for row in rows if _matches(row.path, path)}
    if head.method not in here and path.endswith("/"):
        shorter = [row for row in rows if row.method == head.method and _matches(row.path, path[:-1])]
        if shorter:
            await _redirect(head, reply, 301 if head.method == "GET" else 307, path[:-1])
            return None
    wrong_method = bool(here) and head.method not in here and version >= _WRONG_METHOD_SINCE
    if wrong_method:
        reply.set("Allow", ", ".join(method for method in _METHODS if method in here))
    if await _origin_answered(head, reply) or (check_host and await _host_answered(head, reply)):
        return None
    if head.method in here:
        return here[head.method].handler
    text = (405, b"405 method not allowed") if wrong_method else (404, b"404 page not found")
    await reply.whole(*text, "text/plain")
    return None


def _matches(pattern: str, path: str) -> bool:
    if not pattern.endswith("*"):
        return pattern == path
    stem, _, segment = path.rpartition("/")
    return stem == pattern[:-2] and bool(segment)


def _cleaned(path: str) -> str:
    """ServeMux's cleanPath: rooted, no empty or dot segments, a final slash kept."""
    clean = "/" + posixpath.normpath("/" + path).lstrip("/")
    return clean + "/" if path.endswith("/") and clean != "/" else clean


async def _redirect(head: Head, reply: Reply, status: int, path: str) -> None:
    location = quote(path, safe="/$&+,:;=@~", errors="surrogateescape")
    location += "" if head.query is None else f"?{head.query}"
    reply.set("Location", location)
    if head.method not in ("GET", "HEAD"):
        await reply.whole(status)
        return
    phrase = {301: "Moved Permanently", 307: "Temporary Redirect"}[status]
    body = f'<a href="{location}">{phrase}</a>.\n\n' if head.method == "GET" else ""
    await reply.whole(status, body.encode("latin-1", "replace"), "text/html; charset=utf-8")


async def _close(reply: Reply, status: int) -> None:
    reply.closes = True
    reply.set("Connection", "close")
    await reply.whole(status)


async def _origin_answered(head: Head, reply: Reply) -> bool:
    """Answer a foreign Origin with 403 and a preflight with 204 (gin-contrib/cors); else set the CORS fields."""
    origin = head.get("origin")
    if not origin or origin in (f"http://{head.host}", f"https://{head.host}"):
        return False
    if not _ORIGIN.fullmatch(origin):
        await reply.whole(403)
        return True
    reply.set("Access-Control-Allow-Origin", origin)
    reply.fields.append(("Vary", "Origin"))
    if head.method != "OPTIONS":
        return False
    reply.set("Access-Control-Allow-Headers", _CORS_HEADERS)
    reply.set("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS")
    reply.set("Access-Control-Max-Age", "43200")
    reply.fields += [("Vary", "Access-Control-Request-Method"), ("Vary", "Access-Control-Request-Headers")]
    await reply.whole(204)
    return True


async def _host_answered(head: Head, reply: Reply) -> bool:
    """Answer a Host that isn't this machine with 403, and OPTIONS on an allowed name with 204."""
    host = head.host
    if host.count(":") == 1:
        host = host.partition(":")[0]
    elif host.startswith("[") and "]:" in host:
        host = host[1:].partition("]:")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower()
        allowed = name in ("", "localhost", socket.gethostname().lower())
        if allowed or name.endswith((".localhost", ".local", ".internal")):
            if head.method == "OPTIONS":
                await reply.whole(204)
                return True
            return False
    else:
        if address.is_loopback or address.is_unspecified or any(address in network for network in _NETWORKS):
            return False
    await reply.whole(403)
    return True
