"""What `tailscale serve` is to a client: TLS, and a reverse proxy that reads each request and writes its own.

Public source: Go 1.26 `net/http/server.go` (`conn.serve`, `readRequest`), `net/http/transfer.go` (`fixLength`,
`parseTransferEncoding`), `net/textproto/reader.go` (`readContinuedLineSlice`), `net/http/httputil/reverseproxy.go`
(`hopHeaders`), and Tailscale `ipn/ipnlocal/serve.go` (`getServeHandler`). A Go program with the same handler gave the
same answers.
"""

from __future__ import annotations

import http.client
import re
import socketserver
import ssl
import subprocess
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REFUSED = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
HOP_BY_HOP = ("Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Refusal(Exception):  # noqa: N818 - an answer
    """What Go's server answers by itself."""


def certificate(folder: Path, name: str = "localhost") -> Path:
    """Return a file with a key and a certificate for `name`, which is its own authority."""
    config, made = folder / "openssl.cnf", folder / "both.pem"
    config.write_text(f"[req]\ndistinguished_name=dn\nx509_extensions=v3\n[dn]\n[v3]\nsubjectAltName=DNS:{name}\n")
    key, given = folder / "key.pem", folder / "given.pem"
    words = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name}".split()
    subprocess.run([*words, "-config", config, "-keyout", key, "-out", given], check=True, capture_output=True)
    made.write_text(key.read_text() + given.read_text())
    return made


@contextmanager
def serving(port: int, given: Path | None = None, name: str = "localhost") -> Iterator[int]:
    """Serve the proxy at `port`, by https with the certificate that is `given`, else by http; yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if given else None
    if context and given:
        context.load_cert_chain(given)

    class Handler(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            """Agree on TLS."""
            if context:
                self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def handle(self) -> None:
            """Answer one request, and close."""
            try:
                _exchange(self, port, name, secure=context is not None)
            except Refusal as refusal:
                status, _, text = str(refusal).partition("|")
                self.wfile.write(f"HTTP/1.1 {status}{REFUSED}{text or status}".encode())

        def finish(self) -> None:
            """End TLS as Go does."""
            with suppress(OSError, ValueError):
                super().finish()
                self.request.close()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing of a client that left, or that didn't trust the certificate."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _exchange(client: Any, port: int, name: str, *, secure: bool) -> None:
    method, target, fields = _read_head(client.rfile)
    content = _content(client.rfile, fields)
    if absolute := re.match(r"https?://([^/]*)", target):
        fields["Host"], target = [absolute[1]], target[absolute.end() :] or "/"
    if (method, target) == ("OPTIONS", "*"):
        raise Refusal("200 OK|")
    host = fields["Host"][0].partition(":")[0]
    if not target.startswith("/") or (not secure and host != name):
        raise Refusal("404 Not Found|404 page not found\n")
    back = http.client.HTTPConnection("127.0.0.1", port)
    back.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for key, values in fields.items():
        for value in values if key not in HOP_BY_HOP else ():
            back.putheader(key, value)
    back.putheader("X-Forwarded-For", "100.64.0.7")
    back.endheaders(content)
    answer = back.getresponse()
    kept = sorted((each.title(), value) for each, value in answer.getheaders() if each.title() not in HOP_BY_HOP)
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{key}: {value}" for key, value in kept)]
    client.wfile.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
    while data := answer.read1(65536):
        client.wfile.write(data)
    back.close()


def _read_head(reader: Any) -> tuple[str, str, dict[str, list[str]]]:
    """Return method, target and fields; a bare line feed ends a line, and a line that is folded is unfolded."""
    method, target, _ = reader.readline().decode("latin-1").split()
    lines: list[str] = []
    while line := reader.readline().decode("latin-1").rstrip("\r\n"):
        if line[0] in " \t" and lines:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    fields: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.partition(":")
        if not _TOKEN.fullmatch(key):
            raise Refusal("400 Bad Request: invalid header name")
        fields.setdefault(key.title(), []).append(value.strip())
    if len(fields.get("Host", [])) != 1:
        raise Refusal("400 Bad Request")
    return method, target, fields


def _content(reader: Any, fields: dict[str, list[str]]) -> bytes | None:
    """Return the content, of which Go's client sends the head only with its beginning; a chunked one has no length."""
    lengths = fields.get("Content-Length", [])
    if coded := fields.get("Transfer-Encoding"):
        if coded != ["chunked"]:
            raise Refusal("501 Not Implemented|Unsupported transfer encoding")
        fields.pop("Content-Length", None)
        while (size := int(reader.readline(), 16)) > 0:
            reader.read(size + 2)
        return None
    if len(set(lengths)) > 1 or not all(each.isdigit() for each in lengths):
        raise Refusal("400 Bad Request")
    content: bytes = reader.read(int(lengths[0])) if lengths else b""
    return content or None
