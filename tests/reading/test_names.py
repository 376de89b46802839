"""Model names: which are the same to Ollama, which it would send off the machine, and which a pattern means."""

from __future__ import annotations

import pytest

from proxy.reading.names import ModelNameError, ModelPattern, full_name, is_cloud, normal_name, read_name


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
        ("https://localhost:5000/library/m", "localhost:5000/library/m:latest"),
        ("https://HF.co/u/m:Q4", "hf.co/u/m:q4"),
        ("http:///someone/tiny", "someone/tiny:latest"),
        ("localhost/m", "localhost/m:latest"),
        ("tiny:local", "tiny:latest"),
        ("tiny:8b:Local", "tiny:8b"),
    ],
)
def test_normal_name(sent, name):
    """A name is trimmed, lower-cased and completed; `:local` is no part of it."""
    assert normal_name(sent) == name


@pytest.mark.parametrize(
    "sent",
    [
        *("", " ", "../etc", "a b", "a/b/c/d", ":x", "a:", "a:b:c", "hf.co/m", "a/b\nc", "é", "x" * 81, "a:-b"),
        *(":cloud", ":local", "a:cloud:local", "a:local:cloud", "a:20b-cloud:cloud", "a:cloud:cloud"),
    ],
)
def test_normal_name_refuses(sent):
    """A text of another form is no name, and the error quotes it."""
    with pytest.raises(ModelNameError) as caught:
        normal_name(sent)
    assert caught.value.args == (sent,)


def test_full_name_keeps_letter_case():
    """What is sent keeps its letter case: other registries than Ollama's may heed it."""
    assert full_name(" hf.co/Some/Model-GGUF:Q4_K_M ") == "hf.co/Some/Model-GGUF:Q4_K_M"
    assert full_name("Library/Qwen3:local") == "Qwen3:latest"
    assert full_name("Kimi:CLOUD") == "Kimi:cloud"


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


@pytest.mark.parametrize(
    ("sent", "canonical", "cloud"),
    [
        ("tiny", "registry.ollama.ai/library/tiny:latest", False),
        ("HF.co/u/M:Q4:local", "hf.co/u/m:q4", False),
        ("kimi:CLOUD", "registry.ollama.ai/library/kimi:cloud", True),
        ("me/gpt-oss:20B-Cloud", "registry.ollama.ai/me/gpt-oss:20b-cloud", True),
        ("gpt-oss:20b:cloud", "registry.ollama.ai/library/gpt-oss:20b-cloud", True),
    ],
)
def test_name_says_which_model_and_where(sent, canonical, cloud):
    """A name has one complete form, and says by itself whether it means a model of ollama.com."""
    name = read_name(sent)
    assert (name.canonical, name.cloud) == (canonical, cloud)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("qwen3", " QWEN3:Latest ", True),
        ("qwen3:8b", "registry.ollama.ai/library/qwen3:8B", True),
        ("qwen3:local", "qwen3", True),
        ("gpt-oss:20b:cloud", "gpt-oss:20b-cloud", True),
        ("qwen3", "qwen3:8b", False),
        ("qwen3", "someone/qwen3", False),
        ("gpt-oss:20b", "gpt-oss:20b-cloud", False),
    ],
)
def test_canonical_names(one, other, same):
    """Two names have one canonical form if Ollama would run the same model for both."""
    assert (read_name(one).canonical == read_name(other).canonical) is same


@pytest.mark.parametrize(
    ("pattern", "meant", "not_meant"),
    [
        ("*", ["qwen3", "hf.co/u/m:Q4", "someone/x:y", "a:cloud"], ["", "a b", "a/b/c/d"]),
        ("qwen3", ["qwen3", "QWEN3:latest", "library/qwen3"], ["qwen3:8b", "qwen33", "someone/qwen3"]),
        ("qwen3:*", ["qwen3", "qwen3:8b", " Qwen3:8B "], ["qwen33:8b", "someone/qwen3:8b", "hf.co/library/qwen3:8b"]),
        ("QWEN*", ["qwen3:8b", "qwen2"], ["aqwen", "someone/qwen3"]),
        ("qwen*:8b", ["qwen3:8b", "qwen2:8b"], ["qwen3", "qwen3:8b-q4"]),
        ("*coder*", ["qwen3-coder:30b", "coder"], ["someone/coder"]),
        ("someone/*", ["someone/x", "SOMEONE/x:y"], ["x", "someone-else/x", "hf.co/someone/x"]),
        ("library/qwen3:*", ["qwen3:8b"], ["someone/qwen3:8b"]),
        ("*/coder", ["someone/coder", "coder"], ["someone/coder:8b", "hf.co/u/coder"]),
        ("hf.co/*", ["hf.co/u/m", "HF.co/u/m:Q4"], ["hf.com/u/m", "u/m"]),
        ("hf.co/u/*:q4", ["hf.co/u/m:Q4"], ["hf.co/u/m", "hf.co/v/m:q4"]),
        ("localhost:5000/u/m", ["localhost:5000/u/m:latest"], ["u/m"]),
        ("localhost:5000/*", ["localhost:5000/u/m"], ["u/m", "localhost/m"]),
        ("localhost/*", ["localhost/u/m"], ["localhost/m", "m"]),
        ("localhost/m", ["localhost/m"], ["localhost/u/m", "m"]),
        ("u/*", ["u/m:q4"], ["hf.co/u/m", "u/m/x"]),
        ("hf.co/u/m", ["hf.co/u/m:latest"], ["hf.co/u/m:q4"]),
        ("*/*", ["someone/x", "x"], ["hf.co/u/x"]),
        ("a:*cloud", ["a:cloud", "a:20b-cloud", "a:20b:cloud"], ["a", "a:20b"]),
        (" * ", ["a"], []),
        ("**", ["a", "hf.co/u/m:q4"], []),
        ("a.b*", ["a.b", "a.bc:d"], ["axb"]),
    ],
)
def test_pattern(pattern, meant, not_meant):
    """A star stands for any characters; what a pattern leaves out is completed as Ollama completes a name."""
    found = ModelPattern(pattern)
    assert [name for name in [*meant, *not_meant] if found.matches(name)] == meant


@pytest.mark.parametrize("pattern", ["", " ", "a b", "a:b:c", "/*", "*/", "a/b/c/d*", "é*", "a?", "[ab]*", "hf.co/m"])
def test_pattern_of_no_name(pattern):
    """A pattern that no model name can fit is a mistake."""
    with pytest.raises(ModelNameError):
        ModelPattern(pattern)


def test_pattern_takes_no_time():
    """Many stars don't make a pattern slow."""
    assert not ModelPattern("*a" * 20 + "b").matches("a" * 79)
