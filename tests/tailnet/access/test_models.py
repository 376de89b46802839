"""Each device sees and uses only its models, over every surface and with every SDK."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.mac.fake_launchd import until
from tests.tailnet.access.home import ASKED, CHAT, DEVICES, MODELS, OPENED, SAY, SURFACES, may
from tests.tailnet.served import PORT

if TYPE_CHECKING:
    from tests.tailnet.access.home import Home

# Prints for each SDK the models that it lists, and for each call how it ended with each of two models.
SDKS = """
import json, sys
import anthropic, ollama, openai
url, say = sys.argv[1:]
openais = openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0)
anthropics = anthropic.Anthropic(base_url=url, api_key="x", max_retries=0)
ollamas = ollama.Client(url)
said = [{"role": "user", "content": say}]
sound = ("said.wav", b"RIFF" + bytes(40))
calls = {
    "/v1/models/": lambda model: openais.models.retrieve(model),
    "/v1/chat/completions": lambda model: openais.chat.completions.create(model=model, messages=said),
    "/v1/chat/completions stream": lambda model: list(
        openais.chat.completions.create(model=model, messages=said, stream=True)
    ),
    "/v1/responses": lambda model: openais.responses.create(model=model, input=say),
    "/v1/completions": lambda model: openais.completions.create(model=model, prompt=say),
    "/v1/embeddings": lambda model: openais.embeddings.create(model=model, input=say),
    "/v1/audio/transcriptions": lambda model: openais.audio.transcriptions.create(model=model, file=sound),
    "/v1/messages": lambda model: anthropics.messages.create(model=model, messages=said, max_tokens=9),
    "/v1/messages stream": lambda model: list(
        anthropics.messages.create(model=model, messages=said, max_tokens=9, stream=True)
    ),
    "/api/show": lambda model: ollamas.show(model),
    "/api/chat": lambda model: ollamas.chat(model, said),
    "/api/chat stream": lambda model: list(ollamas.chat(model, said, stream=True)),
    "/api/generate": lambda model: ollamas.generate(model, say),
    "/api/embed": lambda model: ollamas.embed(model, say),
    "/api/embeddings": lambda model: ollamas.embeddings(model, say),
}
def status(call, model):
    try:
        call(model)
    except (openai.APIStatusError, anthropic.APIStatusError, ollama.ResponseError) as error:
        return error.status_code
    return 200
found = {name: [status(call, model) for model in ("tiny", "plain")] for name, call in calls.items()}
lists = [model.id for model in openais.models.list()], [model.model for model in ollamas.list().models]
print(json.dumps({"lists": list(map(sorted, lists)), "calls": found}))
"""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("surface", [*SURFACES, *OPENED])
def test_surface(shared_home: Home, device: str, surface: str) -> None:
    """Over every surface a device gets answers of its models, and is refused the others."""
    statuses = {model: shared_home.status(device, model, surface) for model in ASKED}
    assert statuses == {model: 200 if may(device, model, surface) else 403 for model in ASKED}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("path", "key", "name"), [("/v1/models", "data", "id"), ("/api/tags", "models", "name")])
def test_list(shared_home: Home, device: str, path: str, key: str, name: str) -> None:
    """A device sees its models in lists, and no others."""
    status, content = shared_home.ask(device, "GET", path)
    assert status == 200
    assert {entry[name] for entry in json.loads(content)[key]} == MODELS[device]


def test_list_of_loaded_models(shared_home: Home) -> None:
    """Where the list of loaded models is open, it has none that the device may not use."""
    assert [shared_home.status("laptop", model) for model in ("tiny", "plain")] == [200, 200]
    status, content = shared_home.ask("robot", "GET", "/api/ps")
    assert status == 200
    assert {entry["name"] for entry in json.loads(content)["models"]} <= MODELS["robot"]
    assert b"plain:latest" in content
    assert shared_home.ask("laptop", "GET", "/api/ps")[0] == 403


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", ["tiny", "tiny%3Alatest", "plain"])
def test_one_model(shared_home: Home, device: str, model: str) -> None:
    """A device is shown one of its models, and refused any other."""
    status, _ = shared_home.ask(device, "GET", f"/v1/models/{model}")
    assert status == (200 if f"{model.partition('%')[0]}:latest" in MODELS[device] else 403)


@pytest.mark.parametrize("device", DEVICES)
def test_sdks(shared_home: Home, device: str) -> None:
    """The SDKs of OpenAI, Anthropic and Ollama list and use a device's models, and report a refusal as 403."""
    address = f"http://{shared_home.mac.machine.ipv4}:{PORT}"
    found = json.loads(shared_home.devices[device].must(sys.executable, "-c", SDKS, address, SAY, timeout=300))
    wanted = {}
    for name in found["calls"]:
        path = name.partition(" ")[0]
        opened = path != "/v1/audio/transcriptions" or device == "robot"
        served = 200 if path != "/v1/audio/transcriptions" else 404  # which the simulated Ollama doesn't have
        models = ("tiny:latest", "plain:latest")
        wanted[name] = [served if opened and may(device, model, path) else 403 for model in models]
    assert found == {"lists": [sorted(MODELS[device])] * 2, "calls": wanted}


def test_device_that_no_rule_names(shared_home: Home) -> None:
    """The Mac itself is judged like any device: no rule names it, so it is refused, with its name and what to do."""
    status, content = shared_home.ask("mac", "GET", "/v1/models")
    assert (status, b"`access`" in content) == (403, True)
    assert shared_home.mac.line(device="mac")["reason"] == "asker_not_allowed"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", ["tiny:latest", "plain:latest"])
def test_explain(shared_home: Home, device: str, model: str) -> None:
    """On the Mac `explain` finds the device in the tailnet, and judges its request as the proxy does."""
    done = shared_home.mac.machine.proxy("explain", "POST", CHAT, "--from", device, "--model", model, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == ("served" if model in MODELS[device] else "refused")


def test_verify(shared_home: Home) -> None:
    """The Mac isn't named by any rule; `verify` there knows that, and finds each rule kept."""
    found = shared_home.mac.findings("verify", "--skip-model-tests")
    assert [each for each in found if each.outcome == "fail"] == []
    assert {f"access rule {number}" for number in (1, 2, 3)} <= {each.name for each in found}


def test_refusals_are_in_the_access_log(shared_home: Home) -> None:
    """A refused model's line has the device, the user or tag, the rule's reason and the model."""
    assert shared_home.status("kids-ipad") == 403
    line = until(lambda: shared_home.mac.lines(device="kids-ipad", reason="model_not_allowed"))[-1]
    assert (line["verdict"], line["status"], line["model"]) == ("refused", 403, "plain")
