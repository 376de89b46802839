"""A stub of a model that runs elsewhere is named once the cloud is off, because it spoils the list of some clients."""

from __future__ import annotations

import asyncio
import json

import pytest

from proxy.manage.facts.answers import Answer
from proxy.manage.facts.facts import Facts
from proxy.manage.findings import ollama as findings_ollama
from proxy.manage.findings.table import TABLE, Counts, When
from proxy.manage.install.prove import Prove
from proxy.manage.machine.machine import Machine
from proxy.settings.settings import load
from proxy.simulated_ollama import DEFAULT_MODELS, REMOTE_STUB, SimulatedOllama
from proxy.terminal.finding import Outcome
from tests.fakes.scripted_tailscale import STOPPED, ScriptedTailscale
from tests.support.mac.fake_mac import Mac
from tests.support.mac.installed_mac import RUN

OFF, ON = {"cloud": {"disabled": True, "source": "env"}}, {"cloud": {"disabled": False, "source": "none"}}
STUB = {"name": "far:latest", "remote_host": "https://ollama.com:443", "remote_model": "gpt-oss:120b"}
HERE = {"name": "tiny:latest"}


@pytest.mark.parametrize(
    ("status", "models", "named"),
    [
        pytest.param(OFF, [HERE, STUB], ["ollama rm 'far:latest'"], id="a_stub"),
        pytest.param(OFF, [STUB, {**STUB, "name": "x:cloud"}], 2 * [None], id="two_stubs"),
        pytest.param(OFF, [HERE], [], id="none"),
        pytest.param(OFF, [{**STUB, "name": "it's"}], ["ollama rm 'it'\\''s'"], id="a_quote_in_its_name"),
        pytest.param(ON, [STUB], [], id="the_cloud_is_on"),
        pytest.param(404, [STUB], [], id="an_old_ollama"),
        pytest.param(None, [STUB], [], id="no_answer"),
        pytest.param({"cloud": {"disabled": "yes"}}, [STUB], [], id="an_odd_answer"),
        pytest.param(OFF, None, [], id="no_models"),
        pytest.param(OFF, [None, "far", {}], [], id="odd_models"),
    ],
)
def test_unusable_stubs(status, models, named):
    """Each stub is named with the command that removes it, while the cloud is off."""

    def ask(host, port, method, path, timeout):
        document = {"/api/version": {"version": "1.0.0"}, "/api/status": status, "/api/tags": {"models": models}}[path]
        if document is None:
            raise ConnectionRefusedError(111, "Connection refused")
        return Answer(404, b"") if document == 404 else Answer(200, json.dumps(document).encode())

    facts = Facts(Machine.here(), load({}, {"HOME": "/nowhere"}), ask=ask)
    found = list(findings_ollama.unusable_models(facts))
    assert [each.hint for each in found if None not in named] == [hint for hint in named if hint]
    assert len(found) == len(named)
    assert all(each.outcome is Outcome.WARN and "Copilot Chat" in each.detail for each in found)


@pytest.mark.parametrize("cloud", [True, False])
async def test_install_names_them(tmp_path, cloud):
    """The proof of an install, which has turned the cloud off, notes each stub with the command; it doesn't fail."""
    mac = Mac(tmp_path)
    try:
        async with SimulatedOllama(models=(*DEFAULT_MODELS, REMOTE_STUB), cloud=cloud) as ollama:
            flags = {"upstream": f"http://127.0.0.1:{ollama.port}"}
            nowhere = ScriptedTailscale(STOPPED)
            step = Prove(Facts(mac.machine(), load(flags, {"HOME": str(tmp_path)}), tailscale=nowhere))
            await asyncio.to_thread(step.do)
    finally:
        mac.close()
    told = [note for note in step.notes if note.startswith("remote model: far:latest runs at https://ollama.com:443")]
    assert [note.endswith("; hint: ollama rm 'far:latest'") for note in told] == ([] if cloud else [True])


@pytest.mark.parametrize(
    ("live", "found"),
    [
        pytest.param({}, [], id="no_proxy_runs"),
        pytest.param({"troubles": []}, [], id="nothing_wrong"),
        pytest.param(
            {"troubles": ["the last 3 answers of tiny:latest had no token"]},
            [("warn", "the last 3 answers of tiny:latest had no token: it may be stuck", f"{RUN} restart ollama")],
            id="stuck",
        ),
        pytest.param(
            {"troubles": ["\x1b[2J"]}, [("warn", "\\x1b[2J: it may be stuck", f"{RUN} restart ollama")], id="odd"
        ),
    ],
)
def test_stuck(installed, live, found):
    """What the proxy that runs noticed about Ollama is a warning with the command that helps."""
    facts = installed.seen_as()
    facts.live = live
    told = [(str(each.outcome), each.detail, each.hint) for each in findings_ollama.stuck(facts)]
    assert told == found


def test_stuck_is_part_of_status():
    """`status` and `verify` look for it, and report it only if something is wrong."""
    (row,) = [row for row in TABLE if row.look is findings_ollama.stuck]
    assert {row.counts(when) for when in (When.STATUS, When.VERIFY)} == {Counts.IF_WRONG}
