"""The programs that `connect` prints: a first call with each SDK, with curl, and with Ollama's own; as in `tools`.

Each runs as it is printed, and says hello.
"""

from __future__ import annotations

from proxy.manage.connect.editors import COPILOT, ZED
from proxy.manage.connect.tools import (
    AIDER,
    CHAT,
    CLAUDE_CODE,
    CLINE,
    CODEX,
    CONTINUE,
    FOR_EVER,
    GOOSE,
    OPEN_WEBUI,
    OPENCODE,
    Extra,
    Tool,
)
from proxy.policy.routes import Surface

_MESSAGES = "POST /v1/messages"
_OTHERS = (
    Extra("`client.embeddings`", "POST /v1/embeddings"),
    Extra("`client.completions`", "POST /v1/completions"),
    Extra("`client.audio.transcriptions`", "POST /v1/audio/transcriptions"),
)
_NODE = "5 minutes, whatever `timeout` says, because of Node's own fetch"

OPENAI_PYTHON = Tool(
    "openai-python",
    "openai SDK, Python",
    Surface.OPENAI,
    (CHAT,),
    "hello.py",
    "python",
    """\
from openai import OpenAI

# Seconds to wait while a model loads or reads (default: 600). No retry, because it would restart the load.
client = OpenAI(base_url="$origin/v1", api_key="unused", timeout=1800, max_retries=0)
question = [{"role": "user", "content": "Say hello"}]
for part in client.chat.completions.create(model="$model", messages=question, stream=True):
    if part.choices:
        print(part.choices[0].delta.content or "", end="", flush=True)
print()
""",
    "pip install openai, then: python hello.py",
    "half an hour",
    aliases=("openai", "openai-py", "openai-sdk"),
    extras=_OTHERS,
)

OPENAI_JS = Tool(
    "openai-js",
    "openai SDK, JavaScript",
    Surface.OPENAI,
    (CHAT,),
    "hello.mjs",
    "js",
    """\
import OpenAI from "openai";

// No retry, because it would restart a model's load.
const client = new OpenAI({ baseURL: "$origin/v1", apiKey: "unused", timeout: 1_800_000, maxRetries: 0 });
const stream = await client.chat.completions.create({
  model: "$model",
  messages: [{ role: "user", content: "Say hello" }],
  stream: true,
});
for await (const part of stream) process.stdout.write(part.choices[0]?.delta?.content ?? "");
console.log();
""",
    "npm install openai, then: node hello.mjs",
    _NODE,
    aliases=("openai-node", "openai-javascript", "openai-ts"),
    extras=_OTHERS,
)

ANTHROPIC_PYTHON = Tool(
    "anthropic-python",
    "anthropic SDK, Python",
    Surface.ANTHROPIC,
    (_MESSAGES,),
    "hello.py",
    "python",
    """\
from anthropic import Anthropic

# Seconds to wait while a model loads or reads (default: 600). No retry, because it would restart the load.
client = Anthropic(base_url="$origin", auth_token="unused", timeout=1800, max_retries=0)
question = [{"role": "user", "content": "Say hello"}]
with client.messages.stream(model="$model", max_tokens=1000, messages=question) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
""",
    "pip install anthropic, then: python hello.py",
    "half an hour",
    aliases=("anthropic", "anthropic-py", "anthropic-sdk"),
    notes=("without `/v1` at the end: the SDK adds it", "`count_tokens` and batches aren't there: Ollama has none"),
)

ANTHROPIC_JS = Tool(
    "anthropic-js",
    "anthropic SDK, JavaScript",
    Surface.ANTHROPIC,
    (_MESSAGES,),
    "hello.mjs",
    "js",
    """\
import Anthropic from "@anthropic-ai/sdk";

// No retry, because it would restart a model's load.
const client = new Anthropic({ baseURL: "$origin", authToken: "unused", timeout: 1_800_000, maxRetries: 0 });
const stream = client.messages.stream({
  model: "$model",
  max_tokens: 1000,
  messages: [{ role: "user", content: "Say hello" }],
});
stream.on("text", (text) => process.stdout.write(text));
await stream.finalMessage();
console.log();
""",
    "npm install @anthropic-ai/sdk, then: node hello.mjs",
    _NODE,
    aliases=("anthropic-node", "anthropic-javascript", "anthropic-ts"),
    notes=("without `/v1` at the end: the SDK adds it",),
)

LANGCHAIN = Tool(
    "langchain",
    "LangChain, Python",
    Surface.OPENAI,
    (CHAT,),
    "hello.py",
    "python",
    """\
from langchain_openai import ChatOpenAI

# Seconds to wait while a model loads or reads. The defaults are 600, and 120 between two pieces of an async stream.
# No retry, because it would restart the load.
model = ChatOpenAI(
    model="$model",
    base_url="$origin/v1",
    api_key="unused",
    timeout=1800,
    stream_chunk_timeout=1800,
    max_retries=0,
)
for part in model.stream("Say hello"):
    print(part.content, end="", flush=True)
print()
""",
    "pip install langchain-openai, then: python hello.py",
    "half an hour",
    aliases=("langchain-python", "langchain-openai", "langgraph"),
    notes=("`ChatOllama` would need `POST /api/chat`; with this one nothing has to be opened",),
    extras=(Extra("`OpenAIEmbeddings`", "POST /v1/embeddings"),),
)

LLAMAINDEX = Tool(
    "llamaindex",
    "LlamaIndex, Python",
    Surface.OPENAI,
    (CHAT,),
    "hello.py",
    "python",
    """\
from llama_index.llms.openai_like import OpenAILike

# Seconds to wait while a model loads or reads (default: 60). No retry, because it would restart the load.
model = OpenAILike(
    model="$model",
    api_base="$origin/v1",
    api_key="unused",
    context_window=$context,
    is_chat_model=True,
    is_function_calling_model=True,
    timeout=1800,
    max_retries=0,
)
for part in model.stream_complete("Say hello"):
    print(part.delta or "", end="", flush=True)
print()
""",
    "pip install llama-index-llms-openai-like, then: python hello.py",
    "half an hour",
    aliases=("llama-index", "llama_index", "llamaindex-python"),
    notes=(
        "`llama_index.llms.ollama` would need `POST /api/chat`; with this one nothing has to be opened",
        "without `is_chat_model=True` it uses `POST /v1/completions`, which is closed",
    ),
    extras=(Extra("`OpenAILikeEmbedding`", "POST /v1/embeddings"),),
)

VERCEL = Tool(
    "vercel-ai-sdk",
    "Vercel AI SDK",
    Surface.OPENAI,
    (CHAT,),
    "hello.mjs",
    "js",
    """\
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const home = createOpenAICompatible({ name: "home", baseURL: "$origin/v1", apiKey: "unused" });
// No retry, because it would restart a model's load.
const { textStream } = streamText({ model: home("$model"), prompt: "Say hello", maxRetries: 0 });
for await (const text of textStream) process.stdout.write(text);
console.log();
""",
    "npm install ai @ai-sdk/openai-compatible, then: node hello.mjs",
    _NODE,
    aliases=("ai-sdk", "vercel", "vercel-ai"),
    notes=("providers made for Ollama would need `POST /api/chat`; with this one nothing has to be opened",),
    extras=(Extra("`embed`", "POST /v1/embeddings"),),
)

CURL = Tool(
    "curl",
    "curl",
    Surface.OPENAI,
    ("GET /v1/models", CHAT),
    "hello.sh",
    "sh",
    """\
# List the models; then stream an answer, event by event.
curl -fsS $origin/v1/models
curl -fsSN $origin/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{"model": "$model", "stream": true, "messages": [{"role": "user", "content": "Say hello"}]}'
""",
    "sh hello.sh",
    FOR_EVER,
    notes=("to see a refusal in full, leave out -f",),
)

OLLAMA_PYTHON = Tool(
    "ollama-python",
    "ollama SDK, Python",
    Surface.NATIVE,
    ("POST /api/chat",),
    "hello.py",
    "python",
    """\
from ollama import Client

client = Client("$origin")
question = [{"role": "user", "content": "Say hello"}]
for part in client.chat("$model", question, stream=True):
    print(part.message.content or "", end="", flush=True)
print()
""",
    "pip install ollama, then: python hello.py",
    FOR_EVER,
    aliases=("ollama", "ollama-py"),
    notes=("whoever may ask this route can unload and pin models",),
    instead="openai-python",
)

OLLAMA_CLI = Tool(
    "ollama-cli",
    "ollama, the command",
    Surface.NATIVE,
    ("HEAD /", "POST /api/show", "POST /api/generate", "POST /api/chat"),
    "hello.sh",
    "sh",
    """\
OLLAMA_HOST=$origin ollama run $model 'Say hello'
""",
    "sh hello.sh",
    FOR_EVER,
    aliases=("ollama-run",),
    notes=(
        "a client that may use these routes can unload and pin models",
        "`ollama list` works with `HEAD /` alone; pull, rm, cp and create stay closed, and `ollama launch` pulls",
    ),
    extras=(Extra("`ollama ps`", "GET /api/ps"),),
    instead="curl",
)

TOOLS = (
    CLAUDE_CODE,
    CODEX,
    AIDER,
    CONTINUE,
    CLINE,
    OPENCODE,
    GOOSE,
    OPEN_WEBUI,
    COPILOT,
    ZED,
    OPENAI_PYTHON,
    OPENAI_JS,
    ANTHROPIC_PYTHON,
    ANTHROPIC_JS,
    LANGCHAIN,
    LLAMAINDEX,
    VERCEL,
    CURL,
    OLLAMA_PYTHON,
    OLLAMA_CLI,
)
"""All of them, in the order in which they are listed."""
