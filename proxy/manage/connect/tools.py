"""The tools that `connect` knows: what to paste into each, and which rows of the table each asks for.

Data. Texts are templates of `string.Template`: `$origin` is `http://NAME:PORT`, `$model` a model's name, `$context` how
many tokens it was loaded for. They stand in docs/clients.md as they are printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from proxy.policy.routes import Surface

ORIGIN, MODEL, CONTEXT = "http://NAME:11434", "MODEL", 32768
"""What stands in a text where nothing better is known."""

FOR_EVER = "without limit"
"""The patience of a tool that never gives up by itself."""

CHAT = "POST /v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Extra:
    """What else a tool can do once the owner has opened a row for it."""

    purpose: str
    row: str


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its settings, and how it asks."""

    name: str
    title: str
    surface: Surface
    asks: tuple[str, ...]  # rows that it can't do without
    path: str  # the file that the text is for
    language: str
    text: str
    then: str  # how to go on from there
    patience: str  # how long it waits for a first token: what follows "waits"
    aliases: tuple[str, ...] = ()
    coding: bool = False  # wants a model that calls tools, and much context
    notes: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()
    instead: str = ""  # another tool of the table, which does the same without rows that are closed

    def base_url(self, origin: str) -> str:
        """Return the base URL that the tool is given."""
        return f"{origin}/v1" if self.surface is Surface.OPENAI else origin

    def filled(self, text: str, origin: str = ORIGIN, model: str = MODEL, context: int = CONTEXT) -> str:
        """Return one of the tool's texts with the values of this machine in it."""
        return Template(text).substitute(origin=origin, model=model, context=context)


CLAUDE_CODE = Tool(
    "claude-code",
    "Claude Code",
    Surface.ANTHROPIC,
    ("POST /v1/messages",),
    "claude-code.sh",
    "sh",
    """\
# Use the Mac instead of Anthropic's API. The token may be any text, so don't use a real key.
unset ANTHROPIC_API_KEY
export ANTHROPIC_BASE_URL=$origin
export ANTHROPIC_AUTH_TOKEN=unused
# Use one model wherever Claude Code would use a large, a medium or a small one.
export ANTHROPIC_MODEL=$model
export ANTHROPIC_DEFAULT_OPUS_MODEL=$model
export ANTHROPIC_DEFAULT_SONNET_MODEL=$model
export ANTHROPIC_DEFAULT_HAIKU_MODEL=$model
# The context length with which Ollama loaded the model. For unknown names, Claude Code assumes a million tokens.
export CLAUDE_CODE_MAX_CONTEXT_TOKENS=$context
# Wait up to half an hour while a model loads or reads. The default is 6 minutes, and each retry restarts the load.
export API_TIMEOUT_MS=1800000
export CLAUDE_STREAM_IDLE_TIMEOUT_MS=1800000
export API_FORCE_IDLE_TIMEOUT=0
# No telemetry or updates. And let prompts begin the same way, so that Ollama doesn't read everything again.
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
export CLAUDE_CODE_ATTRIBUTION_HEADER=0
""",
    ". ./claude-code.sh && claude",
    "half an hour with these variables; by default 6 minutes, then it retries",
    aliases=("claude", "claudecode"),
    coding=True,
    notes=("`HEAD /` and `POST /v1/messages/count_tokens` may be refused, and Claude Code works without them",),
    extras=(Extra("its first probe (which it can do without)", "HEAD /"),),
)

CODEX = Tool(
    "codex",
    "Codex",
    Surface.OPENAI,
    ("POST /v1/responses",),
    "~/.codex/home.config.toml",
    "toml",
    """\
model = "$model"
model_provider = "home"
# The context length with which Ollama loaded the model.
model_context_window = $context
# Ollama would run this tool through ollama.com.
web_search = "disabled"

[model_providers.home]
name = "Ollama at home"
base_url = "$origin/v1"
wire_api = "responses"
# Wait up to half an hour while a model loads or reads.
stream_idle_timeout_ms = 1800000
""",
    "codex --profile home",
    "half an hour",
    aliases=("codex-cli", "openai-codex"),
    coding=True,
    notes=(
        "an older Codex doesn't read such profile files: put the same lines into ~/.codex/config.toml",
        "`codex --oss` and `ollama launch codex` use closed routes, because they pull models",
    ),
)

AIDER = Tool(
    "aider",
    "aider",
    Surface.OPENAI,
    (CHAT,),
    "~/.aider.conf.yml",
    "yaml",
    """\
# With openai/ before the name: ollama/ and ollama_chat/ use closed routes.
model: "openai/$model"
openai-api-base: $origin/v1
openai-api-key: unused
# Seconds to wait while a model loads or reads (default: 600).
timeout: 1800
show-model-warnings: false
""",
    "aider",
    "half an hour",
    coding=True,
    notes=("it doesn't know how much context the model has: its command `/tokens` shows the size of a chat",),
)

CONTINUE = Tool(
    "continue",
    "Continue",
    Surface.OPENAI,
    (CHAT,),
    "~/.continue/config.yaml",
    "yaml",
    """\
name: Ollama at home
version: 1.0.0
schema: v1
models:
  - name: Ollama at home
    provider: openai
    model: "$model"
    apiBase: $origin/v1
    apiKey: unused
    roles: [chat, edit, apply]
    capabilities: [tool_use]
    defaultCompletionOptions:
      contextLength: $context
""",
    "choose Ollama at home in Continue, or: cn --config ~/.continue/config.yaml",
    "10 minutes",
    aliases=("continue.dev", "continuedev", "cn"),
    coding=True,
    notes=(
        "if you have a config.yaml, add the entry below `models:` to yours",
        "provider `ollama` would need `POST /api/chat`; with this one nothing has to be opened",
        "don't set requestOptions.timeout: Continue reads it as seconds in one place, and as milliseconds in another",
    ),
    extras=(
        Extra("`roles: [embed]`", "POST /v1/embeddings"),
        Extra("autocomplete with `useLegacyCompletionsEndpoint: true`", "POST /v1/completions"),
    ),
)

CLINE = Tool(
    "cline",
    "Cline",
    Surface.OPENAI,
    (CHAT,),
    "cline.sh",
    "sh",
    """\
# In the editor, Cline's settings, API Configuration:
#   API Provider               OpenAI Compatible
#   Base URL                   $origin/v1
#   OpenAI Compatible API Key  unused
#   Model ID                   $model
#   Model Configuration, Context Window Size  $context
# In a terminal:
cline auth --provider openai --apikey unused --baseurl $origin/v1 --modelid $model
""",
    "sh cline.sh, then: cline; in the editor, type the fields into its settings",
    "5 minutes, without a setting for it",
    coding=True,
    notes=("API Provider `Ollama` would need `POST /api/chat`; with this one nothing has to be opened",),
)

OPENCODE = Tool(
    "opencode",
    "OpenCode",
    Surface.OPENAI,
    (CHAT,),
    "~/.config/opencode/opencode.json",
    "json",
    """\
{
  "$$schema": "https://opencode.ai/config.json",
  "model": "home/$model",
  "small_model": "home/$model",
  "provider": {
    "home": {
      "npm": "@ai-sdk/openai-compatible",
      "name": "Ollama at home",
      "options": {
        "baseURL": "$origin/v1",
        "apiKey": "unused",
        "timeout": false,
        "headerTimeout": 1800000,
        "chunkTimeout": 1800000
      },
      "models": {
        "$model": {
          "name": "$model",
          "limit": { "context": $context, "output": 8192 }
        }
      }
    }
  }
}
""",
    "opencode",
    "half an hour",
    aliases=("open-code",),
    coding=True,
    notes=("if you have an opencode.json, add `model`, `small_model` and the provider to yours",),
)

OPEN_WEBUI = Tool(
    "open-webui",
    "Open WebUI",
    Surface.OPENAI,
    ("GET /v1/models", CHAT),
    "open-webui.env",
    "ini",
    """\
# A connection of type OpenAI. Type Ollama would need POST /api/chat, and tries to manage models.
OPENAI_API_BASE_URL=$origin/v1
OPENAI_API_KEY=unused
ENABLE_OLLAMA_API=false
DEFAULT_MODELS=$model
""",
    "docker run --env-file open-webui.env … (or, in a shell: set -a; . ./open-webui.env; open-webui serve)",
    "without limit, unless AIOHTTP_CLIENT_TIMEOUT sets one",
    aliases=("openwebui", "webui", "open_webui"),
    notes=(
        "its server sends the requests, not your browser, so the machine that it runs on must be in the tailnet",
        "an Open WebUI that has been started before keeps its connections: add it there, in Admin Settings, "
        "Connections, OpenAI API, with URL $origin/v1 and key unused",
    ),
    extras=(Extra("documents (RAG) with an embedding model of the Mac's", "POST /v1/embeddings"),),
)

GOOSE = Tool(
    "goose",
    "Goose",
    Surface.NATIVE,
    ("GET /api/tags", CHAT),
    "~/.config/goose/config.yaml",
    "yaml",
    """\
GOOSE_PROVIDER: ollama
GOOSE_MODEL: "$model"
OLLAMA_HOST: $origin
# Seconds to wait while a model loads or reads (default: 600).
OLLAMA_TIMEOUT: 1800
""",
    "goose session",
    "half an hour",
    aliases=("goose-cli", "block-goose"),
    coding=True,
    notes=(
        "if you have a config.yaml, change only these keys in it, so that your extensions stay",
        "its Ollama provider lists models with /api and chats with /v1, so nothing has to be opened",
        "to have it shorten a chat in time, start it with GOOSE_CONTEXT_LIMIT=$context",
    ),
)
