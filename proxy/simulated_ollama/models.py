"""The models that the simulated Ollama has, which the recordings were made with, and their metadata.

Sizes, digests, dates and blob paths are those of the recordings, so that metadata can be compared byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.simulated_ollama.go.json import Json

_PLAIN = (
    "{{- if .System }}system: {{ .System }}\n{{ end }}{{- range .Messages }}{{ .Role }}: {{ .Content }}\n"
    "{{ end }}assistant: "
)
_TOOLS = (
    "{{- if .Tools }}tools: {{ .Tools }}\n{{ end }}{{- range .Messages }}{{ .Role }}: {{ if .Thinking }}"
    "<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ if .ToolCalls }}{{ range .ToolCalls }}<tool_call>"
    '{"name":"{{ .Function.Name }}","arguments":{{ .Function.Arguments }}}</tool_call>{{ end }}{{ end }}\n'
    "{{ end }}assistant: "
)
_BLOBS = "/Users/owner/v0.32.15/.ollama/models/blobs/sha256-"
_PARENT_BLOBS = "/Users/owner/v0.24.0/.ollama/models/blobs/sha256-"
_PARAMETERS = {"num_ctx": 2048, "num_predict": 32}


class Shape(NamedTuple):
    """The tensors of a small llama."""

    embedding: int
    feed_forward: int
    vocabulary: int
    blocks: int
    parameters: int


_TINY = Shape(64, 128, 457, 2, 140_736)
_SMALL = Shape(512, 1024, 457, 1, 2_969_600)
_LARGE = Shape(1024, 4096, 457, 10, 168_730_624)


@dataclass(frozen=True, slots=True)
class Model:
    """One model in the store."""

    name: str  # normalised: namespace only if not "library", always a tag
    size: int = 575_318  # bytes
    digest: str = "0" * 64
    blob: str = "0" * 64
    modified_at: str = "2026-11-23T18:27:59.000000001Z"
    capabilities: tuple[str, ...] = ("completion",)
    template: str = _PLAIN
    shape: Shape = _TINY
    parameter_size: str = "141K"
    quantization: str = "F32"  # as /api/tags reports it; elsewhere F32 is called unknown
    memory: int = 5_242_880  # bytes when loaded, as /api/ps reports it
    gpu_share: float = 0.0  # how much of that is in the GPU's memory
    jinja: bool = False  # its runner thinks and calls tools itself, whatever the capabilities say
    load_seconds: float | None = None  # None: as long as the simulator's others
    load_fails: bool = False
    remote_host: str = ""  # set: a stub of a model that runs elsewhere
    remote_model: str = ""
    layers: tuple[int, ...] = ()  # bytes of each layer that a pull brings; none: one of `size`
    pull_fails: str = ""  # in the registry: with this error, once the first layer is half there

    @property
    def created(self) -> int:
        """Seconds since the epoch of the last change."""
        return int(datetime.fromisoformat(self.modified_at[:19] + "+00:00").timestamp())

    @property
    def namespace(self) -> str:
        """Who owns the name."""
        return self.name.rpartition("/")[0].rpartition("/")[2] or "library"

    def can(self, what: str) -> bool:
        """Whether a request may ask for thinking, tools …"""
        return self.jinja or what in self.capabilities


_THINKS = ("completion", "tools", "thinking")
DEFAULT_MODELS = (
    Model(
        "thinker:latest", 11_889_124, "cf64e70f0b7092b11022fdc9251233803f9c507a38d2823791f66ac2006e98df",
        "0e822945f9c8282acb92f7ba805833b25b4d4c8273ffd1d19f7c2797b09e6553", "2026-11-23T18:27:59.553406412Z",
        _THINKS, _TOOLS, _SMALL, "2.97M",
    ),
    Model(
        "toolcaller:latest", 11_880_932, "0468eecd7a02f4e10151dccb3b6afd58e90006cd9b6b511f409d2d2e5ff03919",
        "b0ace80bc73858ba08df529fe6e53193064c96603fe373fe03b1b61c5b717c99", "2026-11-23T18:27:59.605886702Z",
        _THINKS, _TOOLS, _SMALL, "2.97M",
    ),
    Model(
        "tools:latest", 575_523, "200687146156aef65634752ca05e864c7f99d4748c3bcb3ac5de955fcba3f534",
        "37a95aee4c843c5c527d9210fa5fe254e9cb662dce0d78373d6f2ae461b2bbc8", "2026-11-23T18:27:59.481682397Z",
        _THINKS, _TOOLS, memory=4_769_056,
    ),
    Model(
        "someone/tiny:v1", 575_318, "04e1f30d6438c325af978b7d8a61fd4fcb57937572df0aab0d2c1680d3d0ee57",
        "37a95aee4c843c5c527d9210fa5fe254e9cb662dce0d78373d6f2ae461b2bbc8", "2026-11-23T18:27:59.652722339Z",
        memory=4_769_056,
    ),
    Model(
        "jinja:latest", 575_542, "cd55647828ac3c71ad8945950a8c707c1b81de66a251cdada73e2b4f86a67435",
        "7f5689f8c87c36a5094bdfb0c442e965e82df03e28cea8051a0560db7157d0ec", "2026-11-23T18:27:59.640983912Z",
        jinja=True, memory=4_769_056,
    ),
    Model(
        "plain:latest", 575_126, "ad58ce42ace70ae615c60c46227a58ec9930d14d1fa34a90f2d3a1722b2ec6bd",
        "37a95aee4c843c5c527d9210fa5fe254e9cb662dce0d78373d6f2ae461b2bbc8", "2026-11-23T18:27:59.505019629Z",
        template="{{ .Prompt }}", memory=4_769_056,
    ),
    Model(
        "slow:latest", 337_518_805, "61b2e9aedb03a6b00898a0cb33ea67ad6e2d2652752a1db184c47dee57a93c48",
        "abc93be8382ee5b9704a8fbc5463b4feee505d007dafd14b357b9da5122db7f8", "2026-11-23T18:27:59.460209255Z",
        shape=_LARGE, parameter_size="168.73M", quantization="F16",
    ),
    Model(
        "tiny:latest", 575_318, "04e1f30d6438c325af978b7d8a61fd4fcb57937572df0aab0d2c1680d3d0ee57",
        "37a95aee4c843c5c527d9210fa5fe254e9cb662dce0d78373d6f2ae461b2bbc8", "2026-11-23T18:27:58.640825785Z",
        memory=4_769_056,
    ),
)  # fmt: skip

# Not in the recordings: for tests of what runs off the machine, and of a model that only embeds.
REMOTE_STUB = Model("far:latest", remote_host="https://ollama.com:443", remote_model="gpt-oss:120b")
EMBEDDER = Model("embedder:latest", capabilities=("embedding",))


def registry_name(model: Model) -> str:
    """Return a model's name with registry and namespace, as some errors show it."""
    return f"registry.ollama.ai/{model.namespace}/{model.name.rpartition('/')[2]}"


def _details(model: Model, *, listed: bool) -> dict[str, Json]:
    unknown = model.quantization == "F32" and not listed
    details: dict[str, Json] = {
        "parent_model": _PARENT_BLOBS + model.blob,
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": model.parameter_size,
        "quantization_level": "unknown" if unknown else model.quantization,
    }
    if listed:
        details |= {"context_length": 8192, "embedding_length": model.shape.embedding}
    return details


def tag_entry(model: Model) -> dict[str, Json]:
    """Return a model's entry in /api/tags."""
    remote = {"remote_model": model.remote_model, "remote_host": model.remote_host} if model.remote_host else {}
    return {
        "name": model.name,
        "model": model.name,
        **remote,
        "modified_at": model.modified_at,
        "size": model.size,
        "digest": model.digest,
        "details": _details(model, listed=True),
        "capabilities": list(model.capabilities),
    }


def ps_entry(model: Model, expires_at: str, num_ctx: Json = None) -> dict[str, Json]:
    """Return a loaded model's entry in /api/ps."""
    return {
        "name": model.name,
        "model": model.name,
        "size": model.memory,
        "digest": model.digest,
        "details": _details(model, listed=False) | {"parent_model": ""},
        "expires_at": expires_at,
        "size_vram": int(model.memory * model.gpu_share),
        "context_length": num_ctx or _PARAMETERS["num_ctx"],
    }


def openai_entry(model: Model, identifier: str | None = None) -> dict[str, Json]:
    """Return a model's entry in /v1/models; `identifier` is the text that it was asked for by."""
    return {
        "id": identifier or model.name,
        "object": "model",
        "created": model.created,
        "owned_by": model.namespace,
    }


def show(model: Model, basename: str | None) -> dict[str, Json]:
    """Return the answer to /api/show; GitHub Copilot gets the asked-for name as `basename`."""
    quoted = f'"""{model.template}"""' if '"' in model.template else f'"{model.template}"'
    lines = "".join(f"PARAMETER {name} {value}\n" for name, value in _PARAMETERS.items())
    modelfile = (
        '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n'
        f"# FROM {model.name}\n\nFROM {_BLOBS}{model.blob}\nTEMPLATE {quoted}\n{lines}"
    )
    remote = {"remote_model": model.remote_model, "remote_host": model.remote_host} if model.remote_host else {}
    return {
        "modelfile": modelfile,
        "parameters": "\n".join(f"{name:<30} {value}" for name, value in _PARAMETERS.items()),
        "template": model.template,
        "details": _details(model, listed=False),
        **remote,
        "model_info": _model_info(model, basename),
        "tensors": list(_tensors(model.shape)),
        "capabilities": list(model.capabilities),
        "modified_at": model.modified_at,
    }


def _model_info(model: Model, basename: str | None) -> dict[str, Json]:
    shape = model.shape
    info: dict[str, Json] = {
        "general.architecture": "llama",
        "general.basename": basename,
        "general.file_type": 0,
        "general.parameter_count": shape.parameters,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": orjson.Fragment(b"0.00001"),  # Go writes no exponent here
        "llama.block_count": shape.blocks,
        "llama.context_length": 8192,
        "llama.embedding_length": shape.embedding,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.rope.dimension_count": shape.embedding // 4,
        "llama.rope.freq_base": 10000,
        "llama.vocab_size": shape.vocabulary,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": None,
        "tokenizer.ggml.token_type": None,
        "tokenizer.ggml.tokens": None,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    if basename is None:
        del info["general.basename"]
    return info


def _tensors(shape: Shape) -> Iterable[dict[str, Json]]:
    wide, inner = shape.embedding, shape.feed_forward
    block = {
        "attn_norm": [wide], "attn_q": [wide, wide], "attn_k": [wide, wide], "attn_v": [wide, wide],
        "attn_output": [wide, wide], "ffn_norm": [wide], "ffn_gate": [wide, inner], "ffn_up": [wide, inner],
        "ffn_down": [inner, wide],
    }  # fmt: skip
    sizes = {"token_embd": [wide, shape.vocabulary]}
    sizes |= {f"blk.{number}.{name}": size for number in range(shape.blocks) for name, size in block.items()}
    sizes |= {"output_norm": [wide], "output": [wide, shape.vocabulary]}
    return ({"name": f"{name}.weight", "type": "F32", "shape": size} for name, size in sizes.items())


def copied(model: Model, name: str, modified_at: str) -> Model:
    """Return `model` under another name."""
    return replace(model, name=name, modified_at=modified_at)
