"""The editors that `connect` knows, and what to paste into their settings. Data, in the form of `tools`."""

from __future__ import annotations

from proxy.manage.connect.tools import CHAT, Tool
from proxy.policy.routes import Surface

COPILOT = Tool(
    "copilot",
    "GitHub Copilot Chat",
    Surface.NATIVE,
    ("GET /api/version", "GET /api/tags", "POST /api/show", CHAT),
    "chatLanguageModels.json",
    "json",
    """\
[
  {
    "name": "Ollama at home",
    "vendor": "ollama",
    "url": "$origin"
  }
]
""",
    "in VS Code run `Chat: Open Language Models (JSON)`, paste, save, and choose $model among the models of the chat",
    "an unknown time",
    aliases=("copilot-chat", "github-copilot", "github-copilot-chat", "vscode"),
    coding=True,
    notes=(
        "if the file has entries, add this one to them; Copilot lists every model on the Mac by itself",
        "the URL has no `/v1`, because Copilot uses both /api and /v1",
    ),
)

ZED = Tool(
    "zed",
    "Zed",
    Surface.OPENAI,
    (CHAT,),
    "~/.config/zed/settings.json",
    "json",
    """\
{
  "language_models": {
    "openai_compatible": {
      "Ollama at home": {
        "api_url": "$origin/v1",
        "available_models": [
          { "name": "$model", "display_name": "$model at home", "max_tokens": $context }
        ]
      }
    }
  },
  "agent": {
    "default_model": { "provider": "Ollama at home", "model": "$model" }
  }
}
""",
    "in Zed run `agent: open settings`, and type any text for the key of Ollama at home",
    "an unknown time",
    aliases=("zed-editor",),
    coding=True,
    notes=(
        "if you have a settings.json, add `language_models` and `agent` to yours",
        "provider `ollama` would need `POST /api/chat`, and gives the model 4096 tokens by default",
    ),
)
