"""Access rules: each device sees and uses only its models, and loses at once what a change takes away."""

from __future__ import annotations

import http.client
import json
import signal
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from proxy.simulated_ollama.models import DEFAULT_MODELS
from proxy.tailnet.whois import RULES_LIFETIME
from tests.support.mac.fake_launchd import until
from tests.support.patience import PATIENCE
from tests.tailnet.machines import Tailnet
from tests.tailnet.served import PORT, Served, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.tailnet.machines import Machine

USER = "user-{}@fake-control.example.net"
"""The control server's name for the one who logged in with the device of that number."""

ALL = {model.name for model in DEFAULT_MODELS}
MODELS = {"laptop": ALL, "robot": {"plain:latest", "someone/tiny:v1"}, "kids-ipad": {"tiny:latest"}}
"""What each device may use by the rules."""

RULES = f"""
[[access]]
who = ["kids-ipad"]
models = ["TINY"]

[[access]]
who = ["tag:robot"]
models = ["plain", "someone/*"]
also = ["POST /api/chat"]

[[access]]
who = ["{USER.format(2)}"]
models = ["*"]
"""

MESSAGES = [{"role": "user", "content": "@@ttft=0 tps=0 tokens=2@@"}]
CHAT = {"model": "plain", "messages": MESSAGES}
SURFACES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/responses": {"input": MESSAGES[0]["content"]},
    "/api/show": {},
    "/api/chat": {"messages": MESSAGES, "stream": False},  # opened for the robot only
}
GRANT = {"example.com/cap/ollama": [{"models": ["tiny"]}, {"models": ["plain"]}]}

# Prints for each SDK the models that it lists, and how its chat with each of two models ended.
SDKS = """
import json, sys
import anthropic, ollama, openai
url, found = sys.argv[1], {}
clients = openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0), anthropic.Anthropic(
    base_url=url, api_key="x", max_retries=0), ollama.Client(url)
found["openai"] = [sorted(model.id for model in clients[0].models.list())]
found["ollama"] = [sorted(model.model for model in clients[2].list().models)]
found["anthropic"] = [None]
def said(ask):
    try:
        ask()
    except (openai.APIStatusError, anthropic.APIStatusError, ollama.ResponseError) as error:
        return error.status_code
    return 200
messages = [{"role": "user", "content": "@@ttft=0 tps=0 tokens=2@@"}]
for model in ("tiny", "plain"):
    found["openai"].append(said(lambda: clients[0].chat.completions.create(model=model, messages=messages)))
    found["anthropic"].append(said(lambda: clients[1].messages.create(model=model, messages=messages, max_tokens=9)))
    found["ollama"].append(said(lambda: clients[2].show(model)))
print(json.dumps(found))
"""


class Home(NamedTuple):
    """A tailnet whose machine serves by the rules above."""

    mac: Served
    devices: dict[str, Machine]

    def ask(self, device: str, method: str, path: str, content: object = None) -> tuple[int, bytes]:
        """Return status and content of the answer to a request of a device."""
        answer = self.devices[device].request(method, self.mac.machine.ipv4, path, content)
        return answer.status, answer.read()


def open_home(tailnet: Tailnet, settings: str = RULES) -> Home:
    """Let a machine serve by the rules, and three devices join its tailnet."""
    mac = Served(tailnet.join("mac"))
    laptop, robot = tailnet.join("laptop"), tailnet.join("robot", "--advertise-tags=tag:robot")
    mac.settings.write_text(settings)
    mac.serve()
    return Home(mac, {"laptop": laptop, "robot": robot, "kids-ipad": tailnet.join("kids-ipad"), "mac": mac.machine})


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Give a home that no test changes."""
    with ExitStack() as undo:
        yield open_home(Tailnet(tmp_path_factory.mktemp("home"), undo))


@pytest.fixture
def home(tailnet: Tailnet) -> Home:
    """Give a home of its own to a test."""
    return open_home(tailnet)


# --- what each device may use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", MODELS)
@pytest.mark.parametrize("surface", SURFACES)
def test_surface(shared_home: Home, device: str, surface: str) -> None:
    """Over every surface a device gets answers of its models, and is refused the others."""
    opened = surface != "/api/chat" or device == "robot"
    for model in ("tiny:latest", "plain:latest", "someone/tiny:v1"):
        status, content = shared_home.ask(device, "POST", surface, {"model": model, **SURFACES[surface]})
        assert status == (200 if opened and model in MODELS[device] else 403), content


@pytest.mark.parametrize("device", MODELS)
@pytest.mark.parametrize(("path", "key", "name"), [("/v1/models", "data", "id"), ("/api/tags", "models", "name")])
def test_list(shared_home: Home, device: str, path: str, key: str, name: str) -> None:
    """A device sees its models in lists, and no others."""
    status, content = shared_home.ask(device, "GET", path)
    assert status == 200
    assert {entry[name] for entry in json.loads(content)[key]} == MODELS[device]


@pytest.mark.parametrize("device", MODELS)
@pytest.mark.parametrize("model", ["tiny", "tiny%3Alatest", "plain"])
def test_one_model(shared_home: Home, device: str, model: str) -> None:
    """A device is shown one of its models, and refused any other."""
    status, _ = shared_home.ask(device, "GET", f"/v1/models/{model}")
    assert status == (200 if f"{model.partition('%')[0]}:latest" in MODELS[device] else 403)


@pytest.mark.parametrize("device", MODELS)
def test_sdks(shared_home: Home, device: str) -> None:
    """The SDKs of OpenAI, Anthropic and Ollama list and use a device's models, and report a refusal as 403."""
    address = f"http://{shared_home.mac.machine.ipv4}:{PORT}"
    found = json.loads(shared_home.devices[device].must(sys.executable, "-c", SDKS, address))
    chats = [200 if model in MODELS[device] else 403 for model in ("tiny:latest", "plain:latest")]
    listed = sorted(MODELS[device])
    assert found == {"openai": [listed, *chats], "anthropic": [None, *chats], "ollama": [listed, *chats]}


def test_device_that_no_rule_names(shared_home: Home) -> None:
    """The Mac itself is judged like any device: no rule names it, so it is refused, with its name and what to do."""
    status, content = shared_home.ask("mac", "GET", "/v1/models")
    assert (status, b"`access`" in content) == (403, True)
    assert shared_home.mac.line(device="mac")["reason"] == "asker_not_allowed"


# --- what changes -----------------------------------------------------------------------------------------------------


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
    for rules, events, status in (
        (RULES.replace('"TINY"', '"TINY", "plain"'), "reloaded", 200),
        (RULES.replace("who", "whom", 1), "reload_refused", 200),
        (RULES, "reloaded", 403),
    ):
        before = len(home.mac.said(events))
        home.mac.settings.write_text(rules)
        home.mac.program.signal(signal.SIGHUP)
        until(lambda before=before, events=events: len(home.mac.said(events)) > before)
        assert home.ask("kids-ipad", "POST", "/v1/chat/completions", CHAT)[0] == status


def test_restarted_tailscaled(home: Home, tailnet: Tailnet) -> None:
    """While tailscaled restarts nobody gets more than a rule allows, and afterwards each device gets its own again."""
    seen: set[tuple[str, int]] = set()

    def tries(*devices: str) -> None:
        for device in devices:
            with suppress(OSError, http.client.HTTPException):  # no packet gets through without tailscaled
                seen.add((device, home.ask(device, "POST", "/v1/chat/completions", CHAT)[0]))

    tries("kids-ipad", "mac")
    home.mac.machine.tailscaled.kill()
    ends = time.monotonic() + RULES_LIFETIME + 2
    while time.monotonic() < ends:
        tries("mac")
    tailnet.start_tailscaled(home.mac.machine)
    until(lambda: tries("kids-ipad", "mac", "laptop") or ("laptop", 200) in seen)
    assert {status for device, status in seen if device != "laptop"} <= {403, 503}


def test_silent_tailscaled(home: Home) -> None:
    """With a Tailscale that doesn't answer, what a name allows ends after ten seconds, and returns with its answer."""
    home.mac.settings.write_text(RULES + f'[[access]]\nwho = ["{USER.format(1)}"]\nmodels = ["*"]\n')
    home.mac.program.signal(signal.SIGHUP)
    until(lambda: home.ask("mac", "GET", "/v1/models")[0] == 200)
    home.mac.machine.tailscaled.signal(signal.SIGSTOP)
    until(lambda: home.ask("mac", "GET", "/v1/models")[0] == 503)
    assert home.mac.said("peers_not_identified")
    home.mac.machine.tailscaled.signal(signal.SIGCONT)
    until(lambda: home.ask("mac", "GET", "/v1/models")[0] == 200)


# --- grants -----------------------------------------------------------------------------------------------------------


def test_grant(make_tailnet: Callable[..., Tailnet]) -> None:
    """The values of a grant are added up for a device that no rule names, and widen no rule."""
    settings = f'capability = "{next(iter(GRANT))}"\n\n{RULES.replace(USER.format(2), USER.format(99))}'
    home = open_home(make_tailnet(f"-grant={json.dumps(GRANT)}"), settings)
    for device, allowed in (
        ("laptop", {"tiny:latest", "plain:latest"}),
        ("kids-ipad", MODELS["kids-ipad"]),
        ("robot", MODELS["robot"]),
    ):
        for model in ("tiny:latest", "plain:latest", "someone/tiny:v1"):
            status, _ = home.ask(device, "POST", "/api/show", {"model": model})
            assert status == (200 if model in allowed else 403), (device, model)
