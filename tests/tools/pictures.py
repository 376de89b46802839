"""`make pictures`: run the commands for real, and write what a terminal shows to docs/img/*.svg.

All run next to one `demo --keep` and show the simulated Ollama. Ports, process numbers and dates become examples, so
that a new run changes little. Long output is cut, and `…` marks each cut.
"""

from __future__ import annotations

import fcntl
import http.client
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "docs" / "img"
WIDTH = 100
PROGRAM = (str(Path(sys.executable).with_name("remote-ollama-proxy")),)

# rich's own format loads its font from the network. A picture must not.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code", "ui-monospace, Menlo, Consolas"
)
# What differs from run to run, and what stands for it.
_EXAMPLES = (
    (r"python -m proxy\b", "remote-ollama-proxy"),  # as an install prints it
    (r"(?:process|pid) \d+", lambda found: f"{found[0].partition(' ')[0]} 4711"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d", "2026-11-23T09:41"),
    (r"(?<![\d-])\d\d-\d\d \d\d:\d\d(:\d\d)", r"11-23 09:41\1"),
    (r"Date: .+ GMT", "Date: Mon, 23 Nov 2026 09:41:38 GMT"),
    (r"x-request-id: \w+", "x-request-id: 5d1c9a0e77000001"),
)
_END = tuple("123456789")
"""What the line with the sum of `verify` may begin with."""
_FRAME = b"\x1b[H"
"""What a program that fills the screen sends before each picture: the cursor goes home."""
_WAITING = {"tiny": "5d1c9a0e77000001", "tiny:latest": "5d1c9a0e77000002", "thinker": "5d1c9a0e77000003"}
_DEVICES = {"openai": "laptop", "anthropic": "macbook", "native": "desktop"}


class Demo:
    """A tour that goes on serving: what it printed, and where its two processes listen."""

    def __init__(self, output: str) -> None:
        self.story = output.partition("\n\nBoth keep")[0]
        self.ollama, self.proxy = re.findall(r"http://127\.0\.0\.1:(\d+)  process", output)[:2]
        self.log = Path(re.findall(r"tail -f (\S+)", output)[0])

    def example(self, text: str) -> str:
        """Return a text with examples instead of what differs between runs."""
        text = text.replace(f":{self.proxy}", ":11500").replace(f":{self.ollama}", ":11434")
        text = text.replace(f"--port {self.proxy}", "--port 11500")
        for pattern, example in _EXAMPLES:
            text = re.sub(pattern, example, text)
        return text


@contextmanager
def demo(environ: dict[str, str]) -> Iterator[Demo]:
    """Run a tour, and keep its processes until the block ends."""
    process = subprocess.Popen([*PROGRAM, "demo", "--keep"], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "tail -f" in line:
                break
        yield Demo("".join(lines))
    finally:
        process.terminate()
        process.wait()


def output(environ: dict[str, str], *words: str, frames: int = 0) -> str:
    """Return what a command prints on a terminal of WIDTH columns, colours included.

    Of one that fills the screen and ends at `q`, return the last of so many `frames`.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    process = subprocess.Popen([*PROGRAM, *words], cwd=ROOT, env=environ, stdin=its, stdout=its, stderr=its)
    os.close(its)
    read = b""
    with suppress(OSError):  # Linux reports the end of a terminal as an error
        while part := os.read(ours, 65536):
            read += part
            if frames and read.count(_FRAME) > frames:  # so the last of them is complete
                os.write(ours, b"q")
    os.close(ours)
    process.wait()
    shown = read.split(_FRAME)[frames] if frames else read
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    return "\n".join(line.rpartition("\r")[2].rstrip() for line in lines)  # what was written over is gone


@contextmanager
def waiting(environ: dict[str, str], upstream: str) -> Iterator[str]:
    """Have a proxy with one request that streams, and two that wait, until the block ends; give its port."""
    port = str(free_port())
    place = ("--listen", "127.0.0.1", "--port", port, "--upstream", upstream)
    process = subprocess.Popen([*PROGRAM, *place, "--parallel", "1"], cwd=ROOT, env=environ, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert any(b"listening" in line for line in process.stderr)
    clients = [http.client.HTTPConnection("127.0.0.1", int(port)) for _ in _WAITING]
    try:
        for client, (model, identity) in zip(clients, _WAITING.items(), strict=True):
            body = {"model": model, "messages": [{"role": "user", "content": "@@tokens=5000@@"}], "stream": True}
            body["max_tokens"] = 5000
            client.request("POST", "/v1/chat/completions", json.dumps(body), {"X-Request-Id": identity})
            time.sleep(1)  # the order of their arrival is the order of the picture
        yield port
    finally:
        for client in clients:
            client.close()
        process.terminate()
        process.communicate()


def draw(name: str, command: str, text: str) -> None:
    """Write a terminal that shows a command and its output."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {command}", "bold"))
    console.print(Text.from_ansi(text.rstrip("\n")), no_wrap=True, overflow="ellipsis")
    svg = console.export_svg(title="remote-ollama-proxy", theme=MONOKAI, code_format=_FORMAT, unique_id=name)
    (IMAGES / f"{name}.svg").write_text(svg)


def excerpt(text: str, *wanted: str) -> str:
    """Return the paragraphs whose first line begins with one of `wanted`; `…` stands for the others."""
    kept: list[str] = []
    for paragraph in re.split(r"\n\n+", text.strip("\n")):
        plain = re.sub(r"\x1b\[[\d;]*m", "", paragraph)
        if plain.startswith(wanted):
            kept.append(paragraph)
        elif not kept or kept[-1] != "…":
            kept.append("…")
    return "\n\n".join(kept)


def one_of_each(lines: str) -> str:
    """Return the first line of each kind in an access log: by its reason, or by its surface, answer and end."""
    kinds: dict[tuple[Any, ...], str] = {}
    for line in lines.splitlines():
        found = json.loads(line)
        kind = tuple(found.get(key) for key in ("surface", "stream", "ended", "status")), "tokens_in" in found
        if found.get("path"):
            kinds.setdefault((found["reason"],) if "reason" in found else kind, line)
    return "\n".join(kinds.values())


def with_devices(lines: str) -> str:
    """Return an access log in which requests come from named devices, as they would in a tailnet."""
    made = []
    for line in map(json.loads, lines.splitlines()):
        device = _DEVICES.get(line.get("surface"), "phone")
        made.append(json.dumps({**line, "device": device, "user": "alice@example.com"}))
    return "\n".join(made) + "\n"


def main() -> int:
    """Write all pictures; return the exit code."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        environ = {"PATH": os.environ["PATH"], "HOME": home, "COLUMNS": str(WIDTH), "TZ": "UTC", "LANG": "C.UTF-8"}
        with demo(environ) as tour:
            log = Path(home) / "access.log"
            log.write_text(with_devices(one_of_each(tour.log.read_text())))
            at = ("--listen", "127.0.0.1", "--port", tour.proxy, "--upstream", f"http://127.0.0.1:{tour.ollama}")
            place = (*at, "--access-log", str(tour.log))
            shown = {
                "demo": excerpt(tour.story, "remote-ollama-proxy", "3. ", "6. ", "9. ", "11 of"),
                "explain": output(environ, "explain", "POST", "/api/pull"),
                "logs": output(environ, "logs", "--no-follow", "--access-log", str(log)),
                "status": output(environ, "status", *place),
                "verify": excerpt(output(environ, "verify", *place), "OpenAI API", "Anthropic API", *_END),
            }
            commands = {"explain": "explain POST /api/pull", "logs": "logs --no-follow"}
            for name, text in shown.items():
                draw(name, f"remote-ollama-proxy {commands.get(name, name)}", tour.example(text))
            with waiting(environ, f"http://127.0.0.1:{tour.ollama}") as port:
                picture = output(environ, "top", "--port", port, frames=4)
            for device in ("laptop", "desktop", "macbook"):  # names as they would be in a tailnet
                picture = picture.replace("127.0.0.1", f"{device:<9}", 1)
            draw("top", "remote-ollama-proxy top", picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
