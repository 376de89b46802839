"""The same proxy in plain aiohttp: `web.Application` and `ClientSession`, on uvloop, with an access log.

python -m bench.peers.plain_aiohttp PORT UPSTREAM-PORT ACCESS-LOG
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import aiohttp
import uvloop
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_ROUTES = (
    *(
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model}"),
        ("POST", "/v1/responses"),
    ),
    *(("POST", "/v1/messages"), ("GET", "/api/version"), ("GET", "/api/tags"), ("POST", "/api/show")),
)
_HOP_BY_HOP = frozenset(
    ("connection", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)


_CLIENT = web.AppKey("client", aiohttp.ClientSession)


def application(upstream: str) -> web.Application:
    """Return the proxy in front of `upstream`."""

    async def session(app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as client:
            app[_CLIENT] = client
            yield

    async def handle(request: web.Request) -> web.StreamResponse:
        fields = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        content = request.content if request.can_read_body else None
        async with request.app[_CLIENT].request(
            request.method, upstream + request.raw_path, headers=fields, data=content
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app = web.Application()
    app.cleanup_ctx.append(session)
    for method, path in _ROUTES:
        app.router.add_route(method, path, handle)
    return app


def main() -> None:
    """Serve."""
    port, upstream, log = sys.argv[1:]
    logging.basicConfig(filename=log, level=logging.INFO)
    web.run_app(
        application(f"http://127.0.0.1:{upstream}"),
        host="127.0.0.1",
        port=int(port),
        backlog=4096,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
