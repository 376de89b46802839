"""A device loses at once what a change takes away, and gets what a grant gives it."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy.tailnet.whois import RULES_LIFETIME
from tests.support.mac.fake_launchd import until
from tests.support.patience import PATIENCE
from tests.tailnet.access.home import ASKED, MODELS, RULES, USER, open_home
from tests.tailnet.served import PORT, stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tailnet.access.home import Home
    from tests.tailnet.machines import Tailnet

GRANT = {"example.com/cap/ollama": [{"models": ["tiny"]}, {"models": ["plain"]}]}


def test_lost_tag(home: Home, tailnet: Tailnet) -> None:
    """A device that loses its tag is refused within ten seconds on a connection with steady requests."""
    robot, mac = home.devices["robot"], home.mac.machine
    asking = http.client.HTTPConnection(mac.ipv4, PORT)
    asking.sock = robot.connect(mac.ipv4, PORT, PATIENCE)
    asking.auto_open = 0  # it stays the same connection

    def status() -> int:
        asking.request("POST", "/api/show", json.dumps({"model": "plain"}), {"Content-Type": "application/json"})
        answer = asking.getresponse()
        answer.read()
        return answer.status

    assert [status() for _ in range(3)] == [200] * 3
    running = stream(robot, home.mac)
    tailnet.change(robot, tag="tag:retired")
    until(lambda: mac.localapi(f"whois?addr={robot.ipv4}:1")["Node"]["Tags"] == ["tag:retired"])
    lost = time.monotonic()
    while (now := status()) == 200:
        time.sleep(0.1)
    assert (now, time.monotonic() - lost <= RULES_LIFETIME) == (403, True)
    assert running.read().endswith(b"data: [DONE]\n\n")  # what had begun is not cut


@pytest.mark.parametrize("way", ["in", "out"])
def test_idle_devices_that_changed(home: Home, tailnet: Tailnet, way: str) -> None:
    """A device that has lost its tag, its owner or its place in this tailnet is refused after ten idle seconds."""
    changes = {"robot": {"tag": "tag:retired"}, "kids-ipad": {"shared": way}, "laptop": {"user": 1}}

    def facts(device: str) -> list[Any]:
        node = home.mac.machine.localapi(f"whois?addr={home.devices[device].ipv4}:1")["Node"]
        return [node.get(name) for name in ("Tags", "Name", "User")]

    for device, change in changes.items():
        assert home.ask(device, "GET", "/v1/models")[0] == 200
        before = facts(device)
        tailnet.change(home.devices[device], **change)
        until(lambda device=device, before=before: facts(device) != before)
    time.sleep(RULES_LIFETIME)  # nobody asks meanwhile: a request would renew what is known
    assert {home.ask(device, "GET", "/v1/models")[0] for device in changes} == {403}


def test_reload(home: Home) -> None:
    """New rules count from the next request on, and wrong ones leave the old ones in force."""
    for rules, event, status in (
        (RULES.replace('"TINY"', '"TINY", "plain"'), "reloaded", 200),
        (RULES.replace("who", "whom", 1), "reload_refused", 200),
        (RULES, "reloaded", 403),
    ):
        home.reload(rules, event)
        assert home.status("kids-ipad") == status


def test_grant(make_tailnet: Callable[..., Tailnet]) -> None:
    """The values of a grant are added up for a device that no rule names, and widen no rule."""
    settings = f'capability = "{next(iter(GRANT))}"\n\n{RULES.replace(USER.format(2), USER.format(99))}'
    home = open_home(make_tailnet(f"-grant={json.dumps(GRANT)}"), settings)
    for device, allowed in (MODELS | {"laptop": {"tiny:latest", "plain:latest"}}).items():
        statuses = {model: home.status(device, model, "/api/show") for model in ASKED}
        assert statuses == {model: 200 if model in allowed else 403 for model in ASKED}, device
