"""Hints: what Ollama says when it can't pull or load a model, and the hint that the owner gets."""

from __future__ import annotations

import pytest

from proxy.manage.warm.hints import for_load, for_pull

LOG = "tail -n 20 log"


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("pull model manifest: file does not exist", "https://ollama.com/library"),
        ("unauthorized: access denied", "it is private"),
        (
            "pull model manifest: 412: The model you are attempting to pull requires a newer version of Ollama.",
            "brew upgrade ollama && python -m proxy restart ollama",
        ),
        ("write /Users/a/.ollama/models/blobs/sha256-ab-partial: no space left on device", "df -h ~"),
        (
            'pull model manifest: Get "https://registry.ollama.ai/v2/m": dial tcp: lookup registry.ollama.ai: '
            "no such host",
            "curl -I https://registry.ollama.ai",
        ),
        ("digest mismatch, file must be downloaded again: want sha256:a, got sha256:b", "python -m proxy warm m:8b"),
        ("max retries exceeded: unexpected EOF", "python -m proxy warm m:8b"),
        ("the pull ended before it was done", "python -m proxy warm m:8b"),
        ("the connection to Ollama broke: Connection reset by peer", "python -m proxy warm m:8b"),
        ("this model requires MLX support, but the MLX runtime is not available", "another variant"),
        ("something new", LOG),
    ],
)
def test_pull(error, hint):
    """An error of a pull that is known has a hint of its own; others lead to Ollama's log."""
    assert for_pull(error, "m:8b", LOG).startswith(hint) or hint in for_pull(error, "m:8b", LOG)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("model requires more system memory (100 GiB) than is available (60 GiB)", "ollama ps"),
        ("model runner has unexpectedly stopped, this may be due to resource limitations or an", "ollama ps"),
        ("timed out waiting for llama-server to start - progress 0.50", "OLLAMA_LOAD_TIMEOUT"),
        ("server busy, please try again.  maximum pending requests exceeded", "once other loads have finished"),
        ("model 'm:8b' not found", "python -m proxy warm m:8b, which pulls it again"),
        ("llama-server process has terminated: exit status 1", LOG),
    ],
)
def test_load(error, hint):
    """An error of a load that is known has a hint of its own; others lead to Ollama's log."""
    assert hint in for_load(error, "m:8b", LOG)
