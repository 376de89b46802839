"""Machines with network, mount, host name and process namespaces of their own, and a tailnet that joins some of them.

Nothing of it has a name outside: each machine ends, with all that runs in it, when this process closes its standard
input, or dies.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tests.support.linux import namespaces
from tests.support.linux.kernel_sockets import listened
from tests.support.mac.fake_launchd import until
from tests.support.patience import PATIENCE
from tests.tailnet.build import BUILT

if TYPE_CHECKING:
    from contextlib import ExitStack
    from signal import Signals

ROOT = Path(__file__).parent.parent.parent
SOCKET = "/run/tailscale/tailscaled.sock"
MOVED = "/run/tailscale/moved.sock"
"""Where a test moves it, so that nobody finds it."""

_CONTROL = "192.168.88.1"

# Its own host name, /run, and an /etc where tailscaled may write its resolver's address. It ends with its input.
_FIRST_PROCESS = """
set -e
hostname "$1"
mount -t tmpfs tmpfs /run
mkdir /run/etc /run/work /run/lock
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc
rm -f /etc/resolv.conf
echo 'nameserver 127.0.0.9' > /etc/resolv.conf
printf '127.0.0.1 localhost\\n::1 localhost\\n' > /etc/hosts
ip link set lo up
echo ready
cat > /dev/null
"""


class Program:
    """A program that runs in a machine; what it says goes to a file."""

    def __init__(self, machine: Machine, words: tuple[str, ...], said: Path, environ: dict[str, str]) -> None:
        self.said = said
        with said.open("ab") as output:
            self._entered = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *machine.command(*words, **environ)],  # a stopped one too
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._entered.poll() is not None

    @property
    def pid(self) -> int | None:
        """Its id on the host; None before it has begun, and when it has ended."""
        if self.ended:
            return None
        children = Path(f"/proc/{self._entered.pid}/task/{self._entered.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def signal(self, number: Signals | int) -> None:
        """Send it a signal."""
        os.kill(until(lambda: self.pid), number)

    def kill(self) -> None:
        """End it, however it stands, and what waits for it on the host."""
        with suppress(OSError):
            if (pid := self.pid) is not None:
                os.kill(pid, 9)
        self._entered.kill()
        self._entered.wait(PATIENCE)

    def text(self) -> str:
        """Return what it has said."""
        return self.said.read_text()


class Machine:
    """A machine; `undo` ends it."""

    def __init__(self, name: str, folder: Path, undo: ExitStack) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.ipv4 = self.ipv6 = ""  # in the tailnet
        self.lan = ("", "")  # IPv4 and IPv6 there
        self.tailscaled: Program
        self._programs: list[Program] = []
        self.path = f"{BUILT}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        spaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._first = subprocess.Popen(
            ["unshare", *spaces, "--propagation", "private", "sh", "-c", _FIRST_PROCESS, "sh", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        undo.callback(self.close)
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == b"ready\n", f"{name} did not start"
        (self.pid,) = map(int, Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split())

    def close(self) -> None:
        """End it, with all that runs in it."""
        for program in self._programs:
            program.kill()
        assert self._first.stdin is not None
        self._first.stdin.close()
        self._first.wait(PATIENCE)

    # --- programs -----------------------------------------------------------------------------------------------------

    def command(self, *words: str, **environ: str) -> list[str]:
        """Return the command that runs `words` in it, in the checkout, without our own variables."""
        own = {"PATH": self.path, "HOME": str(self.folder), "LANG": "C.UTF-8", "COLUMNS": "200"} | environ
        assigned = [f"{name}={value}" for name, value in own.items()]
        enter = ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", "-i", "-p", "--"]
        return [*enter, "env", "-i", "-C", str(ROOT), *assigned, *words]

    def run(self, *words: str, timeout: float = 60.0, **environ: str) -> subprocess.CompletedProcess[str]:
        """Return how a program ended in it, and what it said."""
        command = self.command(*words, **environ)
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )

    def must(self, *words: str, timeout: float = 60.0) -> str:
        """Return what a program prints that is to succeed."""
        done = self.run(*words, timeout=timeout)
        assert done.returncode == 0, f"{self.name}: {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *words: str, said: str, **environ: str) -> Program:
        """Start a program in it; what it says goes to a file of that name in the machine's folder."""
        self._programs.append(Program(self, words, self.folder / said, environ))
        return self._programs[-1]

    def proxy(self, *words: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Return how one of our commands ended in it, and its output."""
        return self.run(sys.executable, "-m", "proxy", *words, timeout=timeout)

    # --- network ------------------------------------------------------------------------------------------------------

    def ip(self, *words: str) -> None:
        """Change its network with `ip`; other machines can be named there by their process."""
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "ip", *words], check=True, timeout=PATIENCE)

    def listens(self) -> set[tuple[str, int]]:
        """Return everything that is listened on in it, but tailscaled's own ports."""
        own = {self.ipv4, self.ipv6}
        return {each for each in listened(self.pid) if each[1] < 30000 or each[0] not in own}

    def connect(self, address: str, port: int, timeout: float = 10.0) -> socket.socket:
        """Return a connection that is made in it. A socket stays in its namespace, whatever process uses it."""
        return namespaces.connect(self._entrance, address, port, timeout)

    def request(
        self, method: str, address: str, path: str, content: object = None, port: int = 11434, **fields: str
    ) -> http.client.HTTPResponse:
        """Return the answer to a request that is made in it."""
        return namespaces.request(self._entrance, method, address, port, path, content, **fields)

    @property
    def _entrance(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    # --- Tailscale ----------------------------------------------------------------------------------------------------

    def tailscale(self, *words: str) -> str:
        """Return what Tailscale's CLI prints."""
        return self.must("tailscale", *words)

    def log_in(self, *flags: str, verb: str = "up") -> None:
        """Bring it into the tailnet, or back."""
        self.tailscale(verb, f"--login-server=http://{_CONTROL}:8080", "--timeout=60s", *flags)
        self.learn_addresses()

    def learn_addresses(self) -> None:
        """Ask Tailscale for its addresses, when they may have changed."""
        self.ipv4, self.ipv6 = self.tailscale("ip").split()

    @property
    def socket(self) -> str:
        """The path of tailscaled's socket, from outside of the machine."""
        return f"/proc/{self.pid}/root{SOCKET}"

    def localapi(self, target: str) -> Any:
        """Return what tailscaled answers; None when it knows of nobody."""
        asking = http.client.HTTPConnection("local-tailscaled.sock")
        asking.sock = socket.socket(socket.AF_UNIX)
        asking.sock.settimeout(PATIENCE)
        asking.sock.connect(self.socket)
        asking.request("GET", f"/localapi/v0/{target}")
        answer = asking.getresponse()
        content = answer.read()
        asking.close()
        return json.loads(content) if answer.status == 200 else None


class Tailnet:
    """A LAN of machines, with a control server and a relay; those that `join` are in the tailnet too."""

    def __init__(self, folder: Path, undo: ExitStack, domain: str = "tail1234.ts.net", *flags: str) -> None:
        self.domain = domain
        self._folder = folder
        self._undo = undo
        self._control = Machine("control", folder, undo)
        self._hosts = 1
        self._control.ip("link", "add", "name", "lan0", "type", "bridge")
        self._plug(self._control)
        self._server = self._control.start(
            str(BUILT / "control"), f"-host={_CONTROL}", f"-domain={domain}", *flags, said="said"
        )
        until(lambda: (_CONTROL, 8080) in listened(self._control.pid))

    def _plug(self, machine: Machine) -> None:
        """Give a machine its addresses in the LAN: 192.168.88.N and fd88::N."""
        machine.ip("link", "set", "lan0", "up")
        machine.lan = (f"192.168.88.{self._hosts}", f"fd88::{self._hosts}")
        machine.ip("addr", "add", f"{machine.lan[0]}/24", "dev", "lan0")
        machine.ip("addr", "add", f"{machine.lan[1]}/64", "dev", "lan0", "nodad")
        self._hosts += 1

    def neighbour(self, name: str) -> Machine:
        """Return a new machine in the LAN, which is not in the tailnet."""
        machine = Machine(name, self._folder, self._undo)
        self._control.ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "lan0", "netns", str(machine.pid))
        self._control.ip("link", "set", f"to-{name}", "master", "lan0", "up")
        self._plug(machine)
        return machine

    def join(self, name: str, *up: str, tun: str = "tailscale0", ipv6: bool = True) -> Machine:
        """Return a new machine in the tailnet; `up` are flags of `tailscale up`."""
        machine = self.neighbour(name)
        if not ipv6:
            machine.must("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")  # of the one who opens it
        self.start_tailscaled(machine, tun)
        machine.log_in(*up)
        return machine

    def start_tailscaled(self, machine: Machine, tun: str = "tailscale0") -> None:
        """Start a machine's tailscaled, for the first time or again."""
        words = ("--statedir=/run/state", f"--tun={tun}", "--no-logs-no-support")
        authority = str(self._authority())
        machine.tailscaled = machine.start("tailscaled", *words, said="tailscaled", SSL_CERT_FILE=authority)
        until(lambda: machine.run("tailscale", "debug", "prefs").returncode == 0)

    def lose_control(self) -> None:
        """End the control server."""
        self._server.kill()

    def _authority(self) -> Path:
        """Return the file with the certificate of who signs for https."""
        file = self._folder / "authority.pem"
        if not file.exists():
            file.write_bytes(self.ask("GET", "authority"))
        return file

    def certify(self, machine: Machine) -> Path:
        """Give a machine a certificate for its name; return the file of whose signature clients must trust."""
        name = f"{machine.name}.{self.domain}"
        content = self.ask("GET", "certificate", name=name)
        folder = Path(f"/proc/{machine.pid}/root/run/state/certs")
        folder.mkdir(exist_ok=True)
        for kind in ("crt", "key"):  # each has both, and is searched for its own
            (folder / f"{name}.{kind}").write_bytes(content)
        return self._authority()

    def ask(self, method: str, path: str, **form: object) -> bytes:
        """Return what the control server answers to our request."""
        answer = self._control.request(method, _CONTROL, f"/test/{path}?{urlencode(form)}", port=8080)
        assert answer.status == 200, answer.read()
        return answer.read()

    def change(self, machine: Machine, **values: object) -> None:
        """Change a machine's node: its `name`, `user` (a number), `tag`, or `expires_in_days`.

        With `shared`, it belongs to another tailnet: `in` is shared into this one, `out` may come to what is shared.
        """
        self.ask("POST", "change", host=machine.name, **values)
