"""What a newcomer copies from the README works as it is, except for ports and the name of the model."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys

import pytest

from proxy.simulated_ollama import SimulatedOllama
from tests.docs.test_docs import PAGES, README, blocks, section, table
from tests.support.patience import PATIENCE
from tests.support.proxy_process import ROOT, Process

TRY_IT = section(README, "## Try it")
TOOLS = section(README, "## Point your tools at it")
CALLS = [call for body in blocks(TRY_IT, "sh") for call in re.findall(r"^curl (?:.+\\\n)*.+$", body, re.MULTILINE)]


@pytest.fixture
async def port(tmp_path):
    """Yield the port of a proxy in front of a simulated Ollama that answers at full speed."""
    async with SimulatedOllama(tokens_per_second=0) as ollama:
        process = await Process.start(tmp_path, ollama.port)
        await process.says("listening")
        yield process.port
        await process.kill()


async def output(*words):
    """Run a command; return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE):
        printed, said = await process.communicate()
    return process.returncode, printed.decode(), said.decode()


async def test_calls(port):
    """The calls with curl list the models and stream an answer to its end."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    models, stream = CALLS
    code, printed, _ = await output("sh", "-c", models.replace(":11500", f":{port}").replace("curl", "curl -sf"))
    assert (code, '"id":"tiny:latest"' in printed) == (0, True)
    code, printed, _ = await output("sh", "-c", stream.replace(":11500", f":{port}").replace("curl", "curl -sf"))
    assert (code, printed.rstrip().endswith("data: [DONE]")) == (0, True)


async def test_program(port):
    """The Python program prints what the model says."""
    (program,) = blocks(TOOLS, "python")
    program = program.replace(":11500", f":{port}").replace("MODEL", "tiny")
    code, printed, said = await output(sys.executable, "-c", program)
    assert (code, said) == (0, "")
    assert printed.startswith("Are of may sound")


def test_comparison_is_whole():
    """The page and the README compare the same programs; the page says what each side lacks and when to choose it."""
    rows = table(section(PAGES["docs/comparison.md"], "# How it compares"))
    peers = ["tailscale serve", "Caddy, nginx or HAProxy", "Olla", "llama-swap", "LiteLLM"]
    assert [next(peer for peer in peers if peer in row[0]) for row in rows] == peers
    assert all(len(row) == 4 and all(row) for row in rows)
    short = table(section(README, "## How it compares"))
    assert len(short) == len(peers)
    assert all(re.search(peer.rpartition(", ")[2], row[0]) for peer, row in zip(peers, short, strict=True))


@pytest.mark.parametrize(
    ("topic", "pages"),
    [
        ("architecture", {"architecture.md"}),
        ("functionalities", {"api-contract.md", "architecture.md"}),
        ("interfaces", {"api-contract.md", "operations.md", "setup.md"}),
        ("files", {"architecture.md", "setup.md"}),
        ("security", {"security.md"}),
        ("Anthropic", {"anthropic-compatibility.md"}),
        ("routes", {"api-contract.md"}),
        ("who may connect", {"hardening-options.md"}),
        ("several Macs", {"scaling.md"}),
    ],
)
def test_index_says_where_topics_live(topic, pages):
    """The index leads from each topic to its pages."""
    rows = table(section(PAGES["docs/README.md"], "## Where each topic lives"))
    found = {page for row in rows if topic in row[0] for page in re.findall(r"\(([a-z-]+\.md)", row[1])}
    assert pages <= found
