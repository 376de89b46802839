"""The questions asked through `tailscale serve`: https, rewritten requests, Ollama's port that is the proxy's."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys

import pytest

from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.manage.verify.asking.asking import Asker
from proxy.manage.verify.asking.session import REWRITES, NoAnswer, Session
from proxy.manage.verify.asking.silence import silent, unconnected, unsecured
from proxy.manage.verify.client_script import client_script
from proxy.manage.verify.command import promised
from proxy.manage.verify.questions import connection, reach, way
from proxy.manage.verify.questions.script import put_all, questions_of_apis, questions_of_proxy
from proxy.settings.settings import Settings
from proxy.simulated_ollama import SimulatedOllama
from tests.support.middlebox import Between
from tests.support.raw_http import Proxy
from tests.support.tailscale_serve import certificate, serving

PROMISED = promised(Settings())
UNASKABLE = {"forms of a target", "content that is too large", "framing"}

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Return a file with a key and a certificate for localhost."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trusted(given, monkeypatch):
    """Make this machine trust the authority, through OpenSSL's variable."""
    monkeypatch.setenv("SSL_CERT_FILE", str(given))


@pytest.fixture
async def proxy():
    """Return the gateway before a simulated Ollama, known as localhost."""
    ollama = SimulatedOllama(tokens_per_second=300.0)
    await ollama.start()
    started = Proxy(ollama.port, allowed_hosts=("localhost",))
    await started.start()
    room = started.gateway.room = Room(Ollama(started.pool, started.gateway.target), Rules())
    yield started
    await started.stop()
    await room.judge.close()
    await room.loads.close()
    await ollama.close()


def asked_by(port, *, secure):
    return Session(Asker("localhost", port, away=True, secure=secure), PROMISED)


async def put(session, *questions):
    """Return what came of questions, by their names, asked in another thread."""
    results = await asyncio.to_thread(lambda: [result for result, _ in put_all(session, questions)])
    return {f"{result.group}: {result.name}": result for result in results}


@pytest.mark.parametrize("secure", [True, False], ids=["https", "http"])
async def test_everything_through_serve(secure, proxy, given, trusted):
    """Through serve nothing fails: what it rewrites is skipped with that reason, all else is asked."""
    with serving(proxy.port, given if secure else None) as port:
        made = asked_by(port, secure=secure)
        found = await put(
            made,
            *connection.CONNECTION_QUESTIONS,
            *way.WAY_QUESTIONS,
            *questions_of_apis(),
            *questions_of_proxy(PROMISED),
        )
    assert {name: each.detail for name, each in found.items() if each.outcome in ("fail", "warn")} == {}
    assert {name.partition(": ")[2] for name, each in found.items() if each.detail == REWRITES} == {
        *UNASKABLE,
        "the way there",
    }
    assert found["Connection: an answer"].detail == f"{made.asker.url} answers (200)"
    assert found["Proxy: foreign Host"].outcome == ("pass" if secure else "skip")
    assert found["Proxy: spellings of a path"].outcome == "pass"


async def test_the_one_file_through_serve(proxy, given, tmp_path):
    """The one file asks an https address, and its exit code is 0: what can't be asked there is no failure."""
    path = tmp_path / "check.py"
    with serving(proxy.port, given) as port:
        path.write_text(client_script(PROMISED, f"https://localhost:{port}"))
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-I", "-S", path, "--json", "--skip-model-tests"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SSL_CERT_FILE": str(given)},
        )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert {name for name, each in found.items() if each["detail"] == REWRITES} == {*UNASKABLE, "the way there"}


async def test_straight_way(proxy):
    """Asked straight, requests arrive unchanged, and nothing is left out."""
    made = asked_by(proxy.port, secure=False)
    made.connected = True
    found = await put(made, *way.WAY_QUESTIONS, *questions_of_proxy(PROMISED)[-5:])
    assert found["Connection: the way there"].detail == "requests arrive unchanged"
    assert (made.rewritten, found["Proxy: framing"].outcome) == (False, "pass")


async def test_a_leak_is_not_taken_for_serve(proxy):
    """A proxy that lets a malformed head through to Ollama, which is Go too, is not excused: framing fails."""

    async def go(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n")
        writer.write(b"Connection: close\r\n\r\n400 Bad Request")
        writer.close()

    async with (
        await asyncio.start_server(go, "127.0.0.1", 0) as ollama,
        Between(
            proxy.port, beyond=ollama.sockets[0].getsockname()[1], leaks=lambda head: b"Length: +5" in head
        ) as leaking,
    ):
        made = asked_by(leaking.port, secure=False)
        made.connected = True
        await put(made, *way.WAY_QUESTIONS)
    assert made.rewritten is False


# --- TLS --------------------------------------------------------------------------------------------------------------


async def test_untrusted_certificate(proxy, given):
    """A certificate that this machine doesn't trust is named as that, with the reason, and nothing is asked."""
    with serving(proxy.port, given) as port, pytest.raises(NoAnswer) as found:
        await asyncio.to_thread(Asker("localhost", port, secure=True).ask, "GET", "/api/version")
    assert found.value.detail.startswith(f"the certificate at localhost:{port} is not trusted here: self")
    assert "MAC.TAILNET.ts.net" in found.value.hint
    assert proxy.audit == []


async def test_certificate_of_another_name(proxy, given, trusted):
    """A certificate for another name than the one that was asked is no certificate for this one."""
    with serving(proxy.port, given) as port, pytest.raises(NoAnswer, match=r"is not trusted here: .*127\.0\.0\.1"):
        await asyncio.to_thread(Asker("127.0.0.1", port, secure=True).raw, "GET / HTTP/1.1")


async def test_https_to_the_plain_port(proxy):
    """Where no TLS is spoken, the sentence says so, and which scheme to write."""
    with pytest.raises(NoAnswer) as found:
        await asyncio.to_thread(Asker("localhost", proxy.port, secure=True).ask, "GET", "/api/version")
    assert found.value.detail == f"localhost:{proxy.port} doesn't speak https: it answers without TLS"
    assert found.value.hint.startswith("use http://,")


@pytest.mark.parametrize(
    ("error", "detail", "hint"),
    [
        pytest.param(TimeoutError(), "TLS didn't begin within 60 s", "try again in a minute", id="slow"),
        pytest.param(ConnectionResetError(104, "reset"), "TLS with mac:1 failed: reset", "rop status", id="reset"),
        pytest.param(ssl.SSLEOFError(8, "EOF"), "TLS with mac:1 failed", "connect curl", id="closed"),
    ],
)
def test_no_tls(error, detail, hint):
    """A handshake that takes too long and one that breaks off are distinguished, each with a hint."""
    found = unsecured(error, "mac:1", "rop", 60.0, away=True)
    assert detail in found.detail
    assert hint in found.hint


def test_urls():
    """The usual port is left out of an https address, as clients do; another one is not."""
    assert Asker("mac.t.ts.net", 443, secure=True).url == "https://mac.t.ts.net"
    assert Asker("mac.t.ts.net", 8443, secure=True).url == "https://mac.t.ts.net:8443"
    assert Asker("fd7a::1", 443).url == "http://[fd7a::1]:443"


# --- Ollama's port ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "outcome", "detail"),
    [
        pytest.param(("localhost",), "pass", "is the proxy itself: it refuses a pull", id="proxy"),
        pytest.param((), "pass", "is the proxy itself", id="proxy_by_another_name"),
        pytest.param(None, "fail", "accepts connections from here, past the proxy", id="ollama"),
        pytest.param("silent", "fail", "accepts connections from here, past the proxy", id="something_else"),
    ],
)
async def test_ollamas_port_behind_serve(hosts, outcome, detail, monkeypatch):
    """Next to an https address, Ollama's usual port may be the proxy's own: its refusal shows that it is."""
    monkeypatch.setattr(reach, "_is_here", lambda _: False)
    ollama = SimulatedOllama()
    await ollama.start()
    proxy = Proxy(ollama.port, allowed_hosts=hosts if isinstance(hosts, tuple) else ())
    await proxy.start()
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port = {None: ollama.port, "silent": closing.getsockname()[1]}.get(hosts, proxy.port)
        monkeypatch.setattr(reach, "OLLAMA_PORT", port)
        monkeypatch.setattr("proxy.manage.verify.asking.asking.QUICK", 0.3 if hosts == "silent" else 20.0)
        made = asked_by(443, secure=True)
        made.connected = True
        try:
            found = await put(made, *reach.REACH_QUESTIONS)
        finally:
            await proxy.stop()
            await ollama.close()
    result = found["Network: Ollama's own port"]
    assert (result.outcome, detail in result.detail) == (outcome, True), result


# --- hints ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(unconnected(socket.gaierror(-2, "unknown"), "mac", "mac:1", "rop", away=True), id="name"),
        pytest.param(unconnected(TimeoutError(), "mac", "mac:1", "rop", away=True), id="firewall"),
        pytest.param(unconnected(OSError(113, "No route"), "mac", "mac:1", "rop", away=True), id="no_way"),
        pytest.param(silent(ConnectionResetError(), "`GET /`", "rop", 1, away=True, loads=False), id="closed"),
    ],
)
def test_hints_without_the_command(found):
    """A Mac may lack the `tailscale` command: each hint that names it names the app's menu in the same sentence."""
    sentences = [each for each in found.hint.split("; ") if "tailscale " in each]
    assert sentences
    assert all("the menu of the Tailscale app" in each for each in sentences)
