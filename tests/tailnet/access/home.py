"""A home whose Mac serves by access rules: a laptop with a login, a tagged robot, and a child's iPad."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.simulated_ollama.models import DEFAULT_MODELS
from tests.support.mac.fake_launchd import until
from tests.tailnet.served import Served

if TYPE_CHECKING:
    from tests.tailnet.machines import Machine, Tailnet

USER = "user-{}@fake-control.example.net"
"""The control server's name for the one who logged in with the device of that number."""

DEVICES = ("laptop", "robot", "kids-ipad")

ALL = {model.name for model in DEFAULT_MODELS}
ASKED = ("tiny:latest", "plain:latest", "someone/tiny:v1")
MODELS = {"laptop": ALL, "robot": {"plain:latest", "someone/tiny:v1"}, "kids-ipad": {"tiny:latest"}}
"""What each device may use by the rules."""

SAY = "@@ttft=0 tps=0 tokens=2@@"
MESSAGES = [{"role": "user", "content": SAY}]
CHAT = "/v1/chat/completions"
SURFACES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/responses": {"input": SAY},
    "/api/show": {},
}
OPENED: dict[str, dict[str, Any]] = {
    "/api/chat": {"messages": MESSAGES, "stream": False},
    "/api/generate": {"prompt": SAY, "stream": False},
    "/api/embed": {"input": SAY},
    "/api/embeddings": {"prompt": SAY},
    "/v1/completions": {"prompt": SAY},
    "/v1/embeddings": {"input": SAY},
}
"""Opt-in routes, which are open for the robot only."""

ALSO = ["GET /api/ps", *(f"POST {path}" for path in OPENED), "POST /v1/audio/transcriptions"]

RULES = f"""
[[access]]
who = ["kids-ipad"]
models = ["TINY"]

[[access]]
who = ["tag:robot"]
models = ["plain", "someone/*"]
also = {json.dumps(ALSO)}

[[access]]
who = ["{USER.format(2)}"]
models = ["*"]
"""


def may(device: str, model: str, path: str) -> bool:
    """Return whether a device may ask `path` about a model."""
    return model in MODELS[device] and (path not in OPENED or device == "robot")


class Home(NamedTuple):
    """A tailnet whose machine serves by the rules above."""

    mac: Served
    devices: dict[str, Machine]  # and "mac", the machine itself

    def ask(self, device: str, method: str, path: str, content: object = None) -> tuple[int, bytes]:
        """Return status and content of the answer to a request of a device."""
        answer = self.devices[device].request(method, self.mac.machine.ipv4, path, content)
        return answer.status, answer.read()

    def status(self, device: str, model: str = "plain", path: str = CHAT) -> int:
        """Return the status of the answer to a device that asks for a model."""
        return self.ask(device, "POST", path, {"model": model, **(SURFACES | OPENED)[path]})[0]

    def reload(self, settings: str, event: str = "reloaded") -> None:
        """Let the proxy read other settings, and wait until it reports so."""
        before = len(self.mac.said(event))
        self.mac.settings.write_text(settings)
        self.mac.program.signal(signal.SIGHUP)
        until(lambda: len(self.mac.said(event)) > before)


def open_home(tailnet: Tailnet, settings: str = RULES) -> Home:
    """Let a machine serve by the rules, and three devices join its tailnet."""
    mac = Served(tailnet.join("mac"))
    laptop, robot = tailnet.join("laptop"), tailnet.join("robot", "--advertise-tags=tag:robot")
    mac.settings.write_text(settings)
    mac.serve()
    return Home(mac, {"laptop": laptop, "robot": robot, "kids-ipad": tailnet.join("kids-ipad"), "mac": mac.machine})
