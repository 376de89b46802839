"""The comparison with other proxies reports what got through, and its page is up to date."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.peers import report
from tests.peers.compare import besiege, statuses_in
from tests.peers.finding import Finding, Kind, let_through, reached
from tests.peers.peers import PEERS
from tests.support.hostile.attack_corpus import load
from tests.support.hostile.strict_upstream import Record, Seen

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hostile.attack_corpus import Attack

ATTACKS = {attack.name: attack for attack in load()}
HOST = (("host", "mac"),)
VERSION = Seen("GET", "/api/version", HOST, b"")
EVIL = Seen("DELETE", "/api/delete", HOST, b"")
SHOW = Seen("POST", "/api/show", HOST, b"{}")


@pytest.mark.parametrize(
    ("name", "requests", "kinds"),
    [
        ("hosts/own_ip", [VERSION], []),
        ("hosts/own_ip", [], []),
        ("hosts/own_ip", [VERSION, VERSION], [Kind.SERVED]),
        ("hosts/rebound", [VERSION], [Kind.SERVED]),
        ("hosts/rebound", [], []),
        ("smuggling/evil_behind_content", [SHOW, EVIL], [Kind.SMUGGLED]),
        ("smuggling/evil_behind_content", [SHOW], []),
        ("targets/dots_from_models", [Seen("GET", "/v1/models/../../api/ps", HOST, b"")], [Kind.OFF_TABLE]),
        ("methods/delete_a_model", [Seen("DELETE", "/v1/models/qwen3", HOST, b"")], [Kind.OFF_TABLE]),
        ("targets/escaped_letter", [Seen("GET", "/%61pi/version", HOST, b"")], [Kind.SERVED]),
        ("targets/model_escaped_colon", [Seen("GET", "/v1/models/qwen3:8b", HOST, b"")], []),
        ("fields/x_real_ip", [Seen("GET", "/api/version", (*HOST, ("x-real-ip", "127.0.0.1")), b"")], [Kind.FIELD]),
        ("fields/referer", [Seen("GET", "/api/version", (*HOST, ("referer", "http://evil.com/")), b"")], []),
        ("fields/via_ours", [VERSION], []),
        ("chunks/trailer_forged", [Seen("POST", "/api/show", HOST, b"{}", (("x-forwarded-for", "1"),))], [Kind.FIELD]),
        ("hosts/rebound", [Seen("GET", "/api/tags", (*HOST, ("user-agent", "canary")), b"")], []),
    ],
)  # fmt: skip
def test_kinds(name: str, requests: list[Seen], kinds: list[Kind]) -> None:
    """A request that arrived and must not is named by its worst property. Allowed requests aren't named."""
    assert let_through(ATTACKS[name], Record(requests)) == kinds


def test_octets_that_are_no_request_are_told() -> None:
    """What the strict upstream couldn't read is garbled."""
    assert let_through(ATTACKS["hosts/rebound"], Record(faults=["x"])) == [Kind.GARBLED]


def test_what_is_due_is_missed() -> None:
    """A proxy that lets through less than may be is noticed."""
    assert reached(ATTACKS["hosts/own_ip"], Record([VERSION]))
    assert not reached(ATTACKS["hosts/own_ip"], Record())
    assert reached(ATTACKS["hosts/rebound"], Record())


def test_final_statuses() -> None:
    """Interim answers don't count."""
    assert statuses_in(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{}HTTP/1.0 403 No\r\n") == [200, 403]


async def test_comparison_finds_what_the_obvious_program_lets_through(tmp_path: Path) -> None:
    """Run for real, it sees aiohttp's obvious program serve a rebound name and forward a forged field, and survive."""
    (peer,) = [peer for peer in PEERS if peer.name == "aiohttp"]
    names = ["hosts/rebound", "fields/x_real_ip", "management/pull", "targets/dots_as_model", "smuggling/cl_then_te"]
    found = await besiege(peer, [ATTACKS[name] for name in names], tmp_path)
    assert {name: [kind for kind in each.kinds if kind is not Kind.TRACEBACK] for name, each in found.items()} == {
        "hosts/rebound": [Kind.SERVED],
        "fields/x_real_ip": [Kind.FIELD],
        "management/pull": [],
        "targets/dots_as_model": [Kind.OFF_TABLE],
        "smuggling/cl_then_te": [],
    }
    assert found["management/pull"].statuses == [404]


def test_tables() -> None:
    """Each family is counted once for each attack of which something got through; stricter ones are listed."""
    attacks: list[Attack] = [ATTACKS["hosts/rebound"], ATTACKS["hosts/own_ip"], ATTACKS["expect/unknown"]]
    peers = [peer for peer in PEERS if peer.name in ("ours", "aiohttp")]
    fine = {attack.name: Finding([], [200]) for attack in attacks}
    other = {
        "hosts/rebound": Finding([Kind.SERVED, Kind.FIELD, Kind.TRACEBACK], [200]),
        "hosts/own_ip": Finding([], [403], stricter=True),
        "expect/unknown": Finding([Kind.WAITED], []),
    }
    text = report.tables(attacks, peers, {"ours": fine, "aiohttp": other})
    assert "| `hosts` | 2 | 0 | 1 |" in text
    assert "| `expect` | 1 | 0 | 0 |" in text
    assert "| **all** | 3 | **0** | **1** |" in text
    assert "| left waiting | 0 | 1 |" in text
    assert "| `hosts/own_ip` | aiohttp (403) |" in text


def test_tables_go_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands around the tables stays, and what stood between the marks goes."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    report.write("new")
    assert page.read_text() == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"


def test_page_has_every_family_and_nothing_of_ours() -> None:
    """The page in docs/ has a row for each family and each kind, and nothing got through or went wrong here."""
    text = report.PAGE.read_text()
    rows = re.findall(r"^\| `([a-z]+)` \| [0-9]+ \| ([0-9]+) \|", text, re.MULTILINE)
    assert [name for name, _ in rows] == sorted({attack.family for attack in ATTACKS.values()})
    assert {count for _, count in rows} == {"0"}
    for kind in Kind:
        assert len(re.findall(rf"^\| {kind} \| ", text, re.MULTILINE)) == 2, kind
        assert re.search(rf"^\| {kind} \| 0 \|", text, re.MULTILINE), kind
