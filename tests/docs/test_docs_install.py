"""What the pages say about installing: from a file or an address, and by name only once this project owns the name.

Until the project is on PyPI, another owner of the name could decide what `pip install remote-ollama-proxy` runs.
"""

from __future__ import annotations

import re

import pytest

from proxy.manage.machine.source import WHEEL
from tests.docs.test_docs import DOCUMENTATION, ROOT

TEXTS = {**DOCUMENTATION, **{str(path.relative_to(ROOT)): path.read_text() for path in ROOT.glob("proxy/**/*.py")}}

_INSTALLS = r"(?:uv (?:tool install|tool run|pip install|add)|uvx|pipx (?:install|run|upgrade)|pip3? install)"
_BY_NAME = re.compile(rf"{_INSTALLS}\b[^`\n]*?[ '\"](?:--from )?remote[-_]ollama[-_]proxy(?![\w./-]*\.whl)\b")


def by_name(text):
    """Return the commands of a text that install by the bare name, outside a paragraph that says `once published`."""
    paragraphs = re.split(r"\n\s*\n", text)
    kept = [
        each
        for number, each in enumerate(paragraphs)
        if not any("once published" in near.lower() for near in paragraphs[max(0, number - 1) : number + 1])
    ]
    return [match[0] for each in kept for match in _BY_NAME.finditer(each)]


@pytest.mark.parametrize("name", TEXTS)
def test_bare_name_only_once_published(name):
    """No page and no hint recommends an install by a name that nobody owns yet."""
    assert by_name(TEXTS[name]) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("uv tool install remote-ollama-proxy", True),
        ("`pip install --user remote-ollama-proxy`", True),
        ("uvx remote-ollama-proxy demo", True),
        ("uvx --from remote-ollama-proxy demo", True),
        ("pipx install 'remote_ollama_proxy==1.0'", True),
        ("uv tool install ./remote_ollama_proxy-0.1.0-py3-none-any.whl", False),
        ("pipx install git+https://example.org/remote-ollama-proxy", False),
        ("uv tool uninstall remote-ollama-proxy", False),
        ("`uv tool install --force WHEEL`, then `remote-ollama-proxy install`", False),
        ("Once published, `pip install remote-ollama-proxy` will do.", False),
        ("Once published:\n\n```sh\npip install remote-ollama-proxy\n```", False),
    ],
)
def test_bare_name_is_seen(text, found):
    """A name is distinguished from a file, an address and the command itself."""
    assert bool(by_name(text)) is found


@pytest.mark.parametrize("name", [name for name, text in DOCUMENTATION.items() if "-py3-none-any.whl" in text])
def test_named_wheel_is_this_release(name):
    """A wheel that a page names is the one that this release is built into; `make release` writes it there."""
    assert set(re.findall(r"remote_ollama_proxy-[\w.-]+\.whl", DOCUMENTATION[name])) == {WHEEL}
