"""A Tailscale that exists only as answers: one state, given by a fake LocalAPI and by the fake `tailscale` next to it.

The state is the file `tailscale.json` in a folder, so that several processes and the test see the same. Everything
here runs on the standard library alone. Documents are recorded ones of tailscaled 1.102.5 and 1.98.10, in
`tests/tailscale_answers`, with names and addresses put in; status codes and texts are those of the same releases.
One thing is not as there: tailscaled takes 0.36 s to say that it doesn't know a peer, if the question has a port.
"""

from __future__ import annotations

import base64
import json
import socketserver
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    import os

ANSWERS = Path(__file__).parent.parent / "tailscale_answers"

NEW = {
    "version": "1.102.5",  # or "1.98.10"
    "state": "Running",
    "ips": ["100.101.102.103", "fd7a:115c:a1e0::1901:6667"],
    "tun": True,
    "dns": "mac.tail1234.ts.net.",
    "magic_dns": True,
    "user": "alice@example.com",
    "key_expiry": None,  # of this machine: "2026-11-30T19:04:04Z"
    "expired": False,  # whether its key has expired, which makes the state NeedsLogin
    "login": "",  # the page of a browser login that is waited for
    "health": None,  # None: what the state brings with it
    "shields": False,
    "peers": {},  # address -> answer to whois
    "serve": None,  # None: there never was a rule; {}: all were removed
    "cli": "ok",  # "app": the app's binary, which is a CLI only with TAILSCALE_BE_CLI or SHLVL; "dead": no daemon
}

STATUS = {  # the recorded status that a state has
    "Stopped": "status-stopped.txt",
    "NeedsMachineAuth": "status-needs-approval.txt",
    "NeedsLogin": "status-needs-login-authurl.txt",
    "NoState": "status-needs-login-authurl.txt",
}
HEALTH = {  # what Health says in a state, where the recorded status is another's
    "NoState": ["You are logged out. The last login error was: fetch control key: connection refused"],
}


def recorded(name: str, version: str = "1.102.5") -> dict:
    """Return the document of a recorded answer."""
    text = (ANSWERS / version / name).read_text()
    return json.loads(text[text.index("{") :])


class Tailnet:
    """The state, and what is asked of it."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.file = Path(folder) / "tailscale.json"
        self.calls = Path(folder) / "tailscale.calls"

    def read(self) -> dict:
        """Return the state; it begins as `NEW`."""
        return NEW | (json.loads(self.file.read_text()) if self.file.exists() else {})

    def change(self, **values: object) -> None:
        """Change the state, as logging in, stopping or a move to another tailnet would."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.read() | values))
        new.replace(self.file)  # whole, for whoever reads it just now

    def note(self, **call: object) -> None:
        """Remember that the CLI was called."""
        with self.calls.open("a") as calls:
            calls.write(json.dumps(call) + "\n")

    def noted(self) -> list[dict]:
        """Return the calls of the CLI, in their order."""
        return [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []

    def status(self) -> dict:
        """Return a status without peers."""
        now = self.read()
        name = STATUS.get(now["state"], "status-nopeers-running.txt")
        if now["expired"]:
            status = recorded("status-own-key-expired.json", "1.102.5-headscale")
        else:
            status = recorded(name, now["version"] if name == "status-nopeers-running.txt" else "1.102.5")
        itself = status["Self"]
        status |= {"BackendState": now["state"], "TUN": now["tun"], "AuthURL": now["login"]}
        itself |= {"OS": "macOS"}
        if now["health"] is not None or now["state"] in HEALTH:
            status["Health"] = HEALTH.get(now["state"]) if now["health"] is None else now["health"]
        if status["TailscaleIPs"] is not None:  # before the first login nothing of this is known
            status["TailscaleIPs"] = itself["TailscaleIPs"] = now["ips"]
            itself["DNSName"] = now["dns"]
            status["CurrentTailnet"]["MagicDNSEnabled"] = now["magic_dns"]
            for user in (status["User"] or {}).values():
                user["LoginName"] = now["user"]
            if now["key_expiry"]:
                itself["KeyExpiry"] = now["key_expiry"]
        return status

    def prefs(self) -> dict:
        """Return the preferences."""
        now = self.read()
        return recorded("prefs.txt") | {"ShieldsUp": now["shields"], "WantRunning": now["state"] != "Stopped"}

    def whois(self, address: str) -> dict | None:
        """Return who has an address, given with or without a port."""
        peers = self.read()["peers"]
        found = peers.get(host_of(address))
        if found is not None and "Node" in found:
            same = [each for each, answer in peers.items() if answer == found]
            found["Node"]["Addresses"] = [f"{each}/{128 if ':' in each else 32}" for each in same]
        return found

    def status_with_peers(self) -> dict:
        """Return a status with the peers that answers to whois name. tailscaled makes both of the same nodes.

        (Public source: tailscale `ipn/ipnlocal/local.go`, populatePeerStatusLocked.)
        """
        status = self.status()
        template = next(iter(recorded("status-peers-running.txt")["Peer"].values()))
        peers = {}
        for number, address in enumerate(self.read()["peers"], 2):
            who = self.whois(address)
            if who is None or "Node" not in who:
                continue
            node, key = who["Node"], f"nodekey:{who['Node']['Addresses'][0].encode().hex():0>64}"
            if key in peers:  # by its other address
                continue
            info = node.get("Hostinfo") or {}
            peers[key] = {
                **template,
                "ID": node["StableID"],
                "PublicKey": key,
                "HostName": info.get("Hostname", ""),
            } | {
                "DNSName": node["Name"],
                "UserID": number,
                "TailscaleIPs": [each.partition("/")[0] for each in node["Addresses"]],
                "AllowedIPs": node["Addresses"],
                **{name: node[name] for name in ("Tags",) if node.get(name)},
                **({"ShareeNode": True} if info.get("ShareeNode") else {}),
            }
            status["User"] = {**(status["User"] or {}), str(number): who["UserProfile"] | {"ID": number}}
        return status | {"Peer": peers or None}


def host_of(address: str) -> str | None:
    """Return the address in a question to whois; None if tailscaled can't read it.

    It reads it with Go's netip.ParseAddr or netip.ParseAddrPort (public source: tailscale `ipn/localapi/localapi.go`,
    serveWhoIsWithBackend), which take brackets only round IPv6, and need a port after them.
    """
    host, _, port = address.rpartition(":")
    in_brackets = host.startswith("[") and host.endswith("]")
    for text, digits in ((address, "0"), (host[1:-1] if in_brackets else host, port)):
        try:
            found = ip_address(text)
        except ValueError:
            continue
        right = text == address or (found.version == 6) == in_brackets
        return str(found) if right and digits.isdecimal() and int(digits) < 2**16 else None
    return None


def person(name: str, login: str) -> dict:
    """Return an answer to whois: the device of a person."""
    answer = recorded("whois-user.txt")
    answer["Node"] |= {"Name": f"{name}.tail1234.ts.net.", "ComputedName": name, "ComputedNameWithHost": name}
    answer["UserProfile"] |= {"LoginName": login, "DisplayName": login.partition("@")[0]}
    answer["CapMap"] = None
    return answer


def tagged(name: str, *tags: str) -> dict:
    """Return an answer to whois: a device that belongs to nobody but its tags."""
    answer = person(name, "tagged-devices")
    answer["Node"]["Tags"] = list(tags)
    return answer


def sharee(host: str, login: str, *tags: str) -> dict:
    """Return an answer to whois: a device of another tailnet, with whose user this machine is shared.

    Its tailnet isn't exposed, so it has no name but the host name that it reports itself (public sources: tailscale
    `tailcfg/tailcfg.go`, Hostinfo.ShareeNode and Node.InitDisplayNames; an answer's Name in tailscale#4880).
    """
    answer = person(host, login)
    answer["Node"] |= {"Name": ""} | ({"Tags": list(tags)} if tags else {})
    answer["Node"]["Hostinfo"] |= {"Hostname": host, "ShareeNode": True}
    return answer


def shared_in(name: str, login: str) -> dict:
    """Return an answer to whois: a device of another tailnet that its owner shares with a user of this one.

    It has its whole name (public source: tailscale `tailcfg/tailcfg.go`, Node.Sharer and Node.ComputedName).
    """
    answer = person(name, login)
    full = f"{name}.tail99.ts.net"
    answer["Node"] |= {"Name": f"{full}.", "ComputedName": full, "ComputedNameWithHost": full, "Sharer": 7}
    return answer


BUFFERED = 2048
"""Bytes of an answer up to which Go gives its length. A longer one to HTTP/1.0 ends with the connection.

(Public source: Go `net/http/server.go`, bufferBeforeChunkingSize.)
"""

_POLICY = "default-src 'none'; frame-ancestors 'none'" + "".join(
    f"; script-src{kind} 'none'" for kind in ("", "-elem", "-attr")
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        served: _Server = self.server  # type: ignore[assignment]
        served.requests.append(self.path)
        if self.headers["Origin"] or self.headers["Referer"] or self.headers["Host"] != "local-tailscaled.sock":
            self.say(403, "invalid localapi request\n")
        elif served.password and self.headers["Authorization"] is None:
            self.say(401, "auth required\n")
        elif served.password and self.headers["Authorization"] != _basic(served.password):
            self.say(403, "bad password\n")
        else:
            self.answer(urlsplit(self.path), served.tailnet)

    def answer(self, url, tailnet: Tailnet) -> None:
        asked = parse_qs(url.query)
        if url.path == "/localapi/v0/status":
            alone = asked.get("peers") == ["false"]
            status = tailnet.status() if alone else tailnet.status_with_peers()
            self.say(200, json.dumps(status, indent="\t") + "\n")
        elif url.path == "/localapi/v0/prefs":
            self.say(200, json.dumps(tailnet.prefs(), indent="\t") + "\n")
        elif url.path == "/localapi/v0/serve-config":
            self.say(200, json.dumps(tailnet.read()["serve"], separators=(",", ":")), Etag="0" * 64)
        elif url.path != "/localapi/v0/whois":
            self.say(404, "404 page not found\n")
        elif "addr" not in asked:
            self.say(400, "missing 'addr' parameter\n")
        elif host_of(asked["addr"][0]) is None:
            self.say(400, "invalid 'addr' parameter\n")
        elif (who := tailnet.whois(asked["addr"][0])) is None:
            self.say(404, "no match for IP:port\n")
        else:
            self.say(200, json.dumps(who, indent="\t"))

    def say(self, status: int, text: str, **more: str) -> None:
        head = {
            "Content-Security-Policy": _POLICY,
            "Content-Type": "application/json" if status == 200 else "text/plain; charset=utf-8",
            "Tailscale-Cap": "142",
            "Tailscale-Version": "1.102.5-t1234567-g89abcde",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        if len(text.encode()) <= BUFFERED:
            head["Content-Length"] = str(len(text.encode()))
        self.send_response(status)
        for name, value in {**head, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


def _basic(password: str) -> str:
    return f"Basic {base64.b64encode(f':{password}'.encode()).decode()}"


class _Server:
    daemon_threads = True
    tailnet: Tailnet
    password: str
    requests: list[str]  # request targets, in their order


class _Unix(_Server, socketserver.ThreadingUnixStreamServer):
    pass


class _Tcp(_Server, socketserver.ThreadingTCPServer):
    pass


@contextmanager
def tailscaled(folder: str | os.PathLike[str], socket: str | os.PathLike[str]):
    """Serve the LocalAPI of `folder`'s state on the Unix socket `socket`, as tailscaled does."""
    with _Unix(str(socket), _Handler) as server:
        yield from _serve(server, folder, "")
    Path(socket).unlink()


@contextmanager
def app(folder: str | os.PathLike[str], library: str | os.PathLike[str] | None, password: str = "1b2c3d4e5f"):
    """Serve it on loopback with a password, like the apps for macOS. The standalone app writes the password to
    `library`.
    """
    with _Tcp(("127.0.0.1", 0), _Handler) as server:
        if library is not None:
            port = server.server_address[1]
            Path(library).mkdir(exist_ok=True)
            Path(library, "ipnport").unlink(missing_ok=True)
            Path(library, "ipnport").symlink_to(str(port))
            Path(library, f"sameuserproof-{port}").write_text(f"{password}\n")
        yield from _serve(server, folder, password)


def _serve(server, folder, password):
    server.tailnet, server.password, server.requests = Tailnet(folder), password, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
