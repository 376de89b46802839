"""Record what Go reads: `make go-json`. Needs Go 1.26, and the Go module proxy once."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.go_json.corpus import corpus
from tests.go_json.readings import READINGS, packed

if TYPE_CHECKING:
    from tests.go_json.corpus import Case

ORACLE = Path(__file__).parent / "oracle"
_MADE_UP = int(os.environ.get("MADE_UP") or 1000)


def main() -> int:
    """Ask the oracle about the whole corpus and write its answers."""
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false -mod=readonly", "CGO_ENABLED": "0"}
    environment["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/go/bin"
    try:
        version = subprocess.run(
            ["go", "env", "GOVERSION"], cwd=ORACLE, env=environment, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        print("error: Go 1.26 or newer was not found", file=sys.stderr)
        print("hint: https://go.dev/dl/", file=sys.stderr)
        return 1
    cases = list(corpus(_MADE_UP))
    asked = "".join(json.dumps(_asked(case)) + "\n" for case in cases)
    done = subprocess.run(
        ["go", "run", "."], cwd=ORACLE, env=environment, input=asked, capture_output=True, text=True, check=False
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(cases):
        print(f"error: the oracle failed: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return 1
    ollama = re.search(r"github.com/ollama/ollama (v\S+)", (ORACLE / "go.mod").read_text())
    lines: list[dict[str, Any]] = [{"go": version.stdout.strip(), "ollama": ollama[1] if ollama else ""}]
    lines += [packed(case, answer) for case, answer in zip(cases, answers, strict=True)]
    READINGS.write_text("".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines))
    print(f"{len(cases)} readings by {version.stdout.strip()} in {READINGS.name}")
    return 0


def _asked(case: Case) -> dict[str, Any]:
    body = case.get("body")
    return case if body is None else case | {"body": base64.b64encode(body).decode()}


if __name__ == "__main__":
    sys.exit(main())
