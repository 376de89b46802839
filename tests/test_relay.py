"""One exchange through the whole gateway: what goes up, what comes down, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.wire import CUT, LAST_CHUNK, chunk, ok, stream_head, until

if TYPE_CHECKING:
    from tests.wire import Proxy, Upstream, Wire


async def test_small_answer(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An allowed request reaches Ollama with a Host of its own, and the answer comes back whole."""
    upstream.answers(ok(b'{"version":"1"}'))
    await wire.request("GET", "/api/version")
    answer = await wire.answer()
    assert (answer.status, answer.content, answer.whole) == (200, b'{"version":"1"}', True)
    assert b"\r\nHost: 127.0.0.1:%d\r\n" % upstream.port in upstream.requests[0]
    (line,) = await gateway.lines()
    assert line["ended"] == "complete"


async def test_cut_upstream_is_not_a_clean_end(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """When the upstream dies inside a stream, the client is told why and sees no clean end."""
    upstream.answers(stream_head(), chunk(b'data: {"model":"m"}\n\n'), CUT)
    await wire.request("POST", "/v1/chat/completions", b"{}")
    answer = await wire.answer()
    assert not answer.whole
    assert answer.content.startswith(b'data: {"model":"m"}\n\ndata: {"error":{"message":"Ollama broke off')
    (line,) = await gateway.lines()
    assert (line["ended"], line["reason"], line["model"]) == ("upstream/content", "upstream_closed", "m")


async def test_keep_alive(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """One connection on either side serves one exchange after the other."""
    upstream.answers_in_turn((ok(b"1"),), (stream_head(), chunk(b"data: [DONE]\n\n"), LAST_CHUNK), (ok(b"3"),))
    contents = []
    for method, target, content in (
        ("GET", "/api/tags", None),
        ("POST", "/v1/chat/completions", b"{}"),
        ("GET", "/v1/models", None),
    ):
        await wire.request(method, target, content)
        contents.append((await wire.answer()).content)
    assert contents == [b"1", b"data: [DONE]\n\n", b"3"]
    assert len(upstream.peers) == 1


async def test_content_in_a_read_of_its_own_begins_no_head(gateway: Proxy, upstream: Upstream) -> None:
    """Content that comes after its head is not taken for the beginning of the next request."""
    upstream.answers(ok())
    client = await gateway.connect()
    await client.send(b"POST /api/show HTTP/1.1\r\nHost: mac\r\nContent-Length: 2\r\n\r\n")
    await upstream_saw_head(upstream)
    await client.send(b"{}")
    await client.answer()
    client.close()
    await until(lambda: not gateway.clients.connections)
    assert [line["ended"] for line in gateway.audit] == ["complete"]


async def upstream_saw_head(upstream: Upstream) -> None:
    """Wait until the request head has reached the upstream."""
    await until(lambda: upstream.peers and upstream.peers[-1].octets)
