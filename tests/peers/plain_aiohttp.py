"""The allowlist as a person would write it with aiohttp: an Application, a route for each row, a ClientSession."""

from __future__ import annotations

import sys

from aiohttp import ClientSession, web

HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "host"}
ROWS = [
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("GET", "/api/version"),
    ("GET", "/api/tags"),
    ("POST", "/api/show"),
]


def application(upstream: str) -> web.Application:
    """Return the proxy."""

    async def forward(request: web.Request) -> web.StreamResponse:
        fields = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        content = request.content if request.body_exists else None
        async with request.app["session"].request(
            request.method, upstream + request.path_qs, headers=fields, data=content
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    async def session(app: web.Application):
        async with ClientSession(auto_decompress=False) as app["session"]:
            yield

    app = web.Application(client_max_size=64 * 1024)
    app.cleanup_ctx.append(session)
    for method, path in ROWS:
        if method == "GET":
            app.router.add_get(path, forward, allow_head=False)
        else:
            app.router.add_post(path, forward)
    return app


if __name__ == "__main__":
    web.run_app(application(f"http://127.0.0.1:{sys.argv[2]}"), host="127.0.0.1", port=int(sys.argv[1]), print=None)
