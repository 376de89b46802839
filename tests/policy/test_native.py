"""What a native request may say about its model, by `native_options`."""

from __future__ import annotations

import pytest

from proxy.policy.native import PATHS, judge_native
from proxy.policy.refusals import Reason
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


@pytest.mark.parametrize(
    ("asked", "setting", "held", "said"),
    [
        pytest.param(PLAIN, REFUSE, True, None, id="plain"),
        pytest.param(PLAIN, DROP, False, None, id="plain_large"),
        pytest.param(KEEPS, DROP, True, None, id="keeps"),
        pytest.param(KEEPS, REFUSE, True, "`keep_alive` would change the model for all its users", id="keeps_refused"),
        pytest.param(KEEPS, DROP, False, "`keep_alive` would change the model", id="keeps_large"),
        pytest.param(LOADS, DROP, True, None, id="loads"),
        pytest.param(LOADS, REFUSE, True, "`num_ctx` and `num_gpu` would change the model", id="loads_refused"),
        pytest.param(LOADS, DROP, False, "too large for this proxy to drop them", id="loads_large"),
        pytest.param(PRELOADS, DROP, True, None, id="preloads"),
        pytest.param(UNLOADS, DROP, True, "would unload the model for all its users", id="unloads"),
        pytest.param(UNLOADS, REFUSE, True, "`keep_alive` would change the model", id="unloads_refused"),
        pytest.param(UNREAD, DROP, True, "can't read it: the body is not valid JSON", id="unread"),
        pytest.param(UNREAD, REFUSE, False, "can't read it: the body is not valid JSON", id="unread_refused"),
        *(pytest.param(each, PASS, False, None, id=f"pass_{at}") for at, each in enumerate((KEEPS, UNLOADS, UNREAD))),
    ],
)
@pytest.mark.parametrize("path", sorted(PATHS))
def test_judgement(path: str, asked: Asked, setting: NativeOptions, held: bool, said: str | None) -> None:
    """A request is refused where it must not go on as it is, and can't go on without what it says."""
    refusal = judge_native(path, asked, setting, held=held)
    if said is None:
        assert refusal is None
        return
    assert refusal is not None
    assert (refusal.reason, refusal.status) == (Reason.NATIVE_OPTIONS, 403)
    assert said in refusal.message
    assert '`native_options = "pass"` on the server' in refusal.message


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/audio/transcriptions"])
def test_other_paths_are_not_judged(path: str) -> None:
    """Elsewhere Ollama reads none of it, and a body that can't be read is no concern of this rule."""
    assert judge_native(path, UNREAD, REFUSE, held=True) is None
