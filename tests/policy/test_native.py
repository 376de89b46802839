"""What a native request may say about its model, by `native_options`."""

from __future__ import annotations

import pytest

from proxy.policy.native import PATHS, judge_native
from proxy.policy.refusals import Reason, Refusal
from proxy.reading.asked import Asked, Naming
from proxy.reading.fields import SHAPES
from proxy.reading.native import NativeOptions

CHAT = "/api/chat"
PLAIN = Asked(Naming.NAMED, "tiny", prompt=True)
KEEPS = Asked(Naming.NAMED, "tiny", prompt=True, keep_alive=-1)
LOADS = Asked(Naming.NAMED, "tiny", prompt=True, options={"num_ctx": 8192, "num_gpu": 1})
PRELOADS = Asked(Naming.NAMED, "tiny", keep_alive="10m")
UNLOADS = Asked(Naming.NAMED, "tiny", keep_alive=0)
UNREAD = Asked(Naming.UNREADABLE, why="the body is not valid JSON")
DROP, REFUSE, PASS = NativeOptions


def test_paths_are_those_where_ollama_reads_it() -> None:
    """These are all the paths where Ollama reads `keep_alive` and `options`."""
    assert {path for path, shape in SHAPES.items() if shape.top.keys.keys() & {"keep_alive", "options"}} == PATHS


OWNER = 'or the owner can allow this with `native_options = "pass"` on the server'
CHANGES = "`keep_alive` would change the model for all its users"
TWO_CHANGE = "`num_ctx` and `num_gpu` would change the model for all its users"
LEFT_OUT = f"leave this out of the request, {OWNER}"
TOO_LARGE = f"and the body is too large for this proxy to drop them; {LEFT_OUT}"
UNLOAD = (
    "`keep_alive` 0 without a prompt would unload the model for all its users; Ollama unloads it by itself when it "
    f"isn't used, or for another model, {OWNER}"
)
CORRECT = (
    "The body may say how a model is loaded, but this proxy can't read it: the body is not valid JSON; correct it, "
    f"{OWNER}"
)


@pytest.mark.parametrize(
    ("asked", "setting", "held", "said"),
    [
        pytest.param(PLAIN, REFUSE, True, None, id="plain"),
        pytest.param(PLAIN, DROP, False, None, id="plain_large"),
        pytest.param(KEEPS, DROP, True, None, id="keeps"),
        pytest.param(KEEPS, REFUSE, True, f"{CHANGES}; {LEFT_OUT}", id="keeps_refused"),
        pytest.param(KEEPS, DROP, False, f"{CHANGES}, {TOO_LARGE}", id="keeps_large"),
        pytest.param(LOADS, DROP, True, None, id="loads"),
        pytest.param(LOADS, REFUSE, True, f"{TWO_CHANGE}; {LEFT_OUT}", id="loads_refused"),
        pytest.param(LOADS, DROP, False, f"{TWO_CHANGE}, {TOO_LARGE}", id="loads_large"),
        pytest.param(PRELOADS, DROP, True, None, id="preloads"),
        pytest.param(UNLOADS, DROP, True, UNLOAD, id="unloads"),
        pytest.param(UNLOADS, REFUSE, True, f"{CHANGES}; {LEFT_OUT}", id="unloads_refused"),
        pytest.param(UNREAD, DROP, True, CORRECT, id="unread"),
        pytest.param(UNREAD, REFUSE, False, CORRECT, id="unread_refused"),
        *(pytest.param(each, PASS, False, None, id=f"pass_{at}") for at, each in enumerate((KEEPS, UNLOADS, UNREAD))),
    ],
)
@pytest.mark.parametrize("path", sorted(PATHS))
def test_judgement(path: str, asked: Asked, setting: NativeOptions, held: bool, said: str | None) -> None:
    """A request is refused where it must not go on as it is, and can't go on without what it says."""
    refusal = judge_native(path, asked, setting, held=held)
    assert refusal == (None if said is None else Refusal(Reason.NATIVE_OPTIONS, 403, said))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/audio/transcriptions"])
def test_other_paths_are_not_judged(path: str) -> None:
    """Elsewhere Ollama reads none of it, and a body that can't be read is no concern of this rule."""
    assert judge_native(path, UNREAD, REFUSE, held=True) is None
