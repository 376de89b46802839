"""Model names: which are the same to Ollama, and which it would send off the machine."""

from __future__ import annotations

import pytest

from proxy.manage.ollama.model_names import ModelNameError, full_name, is_cloud, normal_name


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("TINY", "tiny:latest"),
        (" tiny ", "tiny:latest"),
        ("library/tiny:V1", "tiny:v1"),
        ("Library/tiny", "tiny:latest"),
        ("registry.ollama.ai/library/tiny", "tiny:latest"),
        ("https://registry.ollama.ai/someone/tiny", "someone/tiny:latest"),
        ("someone/tiny", "someone/tiny:latest"),
        ("hf.co/u/m:Q4", "hf.co/u/m:q4"),
        ("localhost:5000/library/m", "localhost:5000/library/m:latest"),
        ("tiny:local", "tiny:latest"),
        ("tiny:8b:Local", "tiny:8b"),
    ],
)
def test_normal_name(sent, name):
    """A name is trimmed, lower-cased and completed; `:local` is no part of it."""
    assert normal_name(sent) == name


@pytest.mark.parametrize(
    "sent", ["", " ", "../etc", "a b", "a/b/c/d", ":x", "a:", "a:b:c", "hf.co/m", "a/b\nc", "é", "x" * 81, "a:-b"]
)
def test_normal_name_refuses(sent):
    """A text of another form is no name."""
    with pytest.raises(ModelNameError):
        normal_name(sent)


def test_full_name_keeps_letter_case():
    """What is sent keeps its letter case: other registries than Ollama's may heed it."""
    assert full_name(" hf.co/Some/Model-GGUF:Q4_K_M ") == "hf.co/Some/Model-GGUF:Q4_K_M"
    assert full_name("Library/Qwen3:local") == "Qwen3:latest"


@pytest.mark.parametrize(
    ("name", "cloud"),
    [
        ("gpt-oss:120b-cloud", True),
        ("kimi:CLOUD", True),
        (" kimi:cloud ", True),
        ("a:20b:cloud", True),
        ("my-cloud-model", False),
        ("my-cloud", False),
        ("a:cloudy", False),
        ("host:5000/me/a-cloud", False),
    ],
)
def test_is_cloud(name, cloud):
    """The last part of a name decides whether it leaves the machine."""
    assert is_cloud(name) is cloud
