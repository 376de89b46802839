"""The findings as the tables of docs/security-comparison.md."""

from __future__ import annotations

import datetime
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.peers.finding import LET_THROUGH, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.peers.finding import Finding
    from tests.peers.peers import Peer
    from tests.support.hostile.attack_corpus import Attack

PAGE = Path(__file__).parent.parent.parent / "docs" / "security-comparison.md"
BEGIN, END = "<!-- begin: make compare-security -->", "<!-- end -->"


def tables(attacks: Sequence[Attack], peers: Sequence[Peer], findings: Mapping[str, Mapping[str, Finding]]) -> str:
    """Return what is found as Markdown."""
    names = [peer.name for peer in peers]
    families = Counter(attack.family for attack in attacks)
    today = datetime.datetime.now(datetime.UTC).date()
    parts = [
        f"{len(attacks)} attacks, sent on {today}, to:",
        _table(("proxy", "version", "set up as"), [(f"**{each.name}**", each.version(), each.about) for each in peers]),
        "### Attacks that got something through",
        _table(
            ("family", "attacks", *names),
            [
                (f"`{family}`", count, *(_through(attacks, findings[name], family) for name in names))
                for family, count in sorted(families.items())
            ]
            + [("**all**", len(attacks), *(f"**{_through(attacks, findings[name], '')}**" for name in names))],
        ),
        "### What got through, and what else went wrong",
        _table(
            ("kind", *names),
            [(kind, *(sum(kind in each.kinds for each in findings[name].values()) for name in names)) for kind in Kind],
        ),
        "### Where another is stricter",
        _stricter(attacks, names, findings),
    ]
    return "\n\n".join(parts)


def _through(attacks: Iterable[Attack], found: Mapping[str, Finding], family: str) -> int:
    return sum(
        bool(set(found[attack.name].kinds) & set(LET_THROUGH)) for attack in attacks if family in ("", attack.family)
    )


def _stricter(attacks: Sequence[Attack], names: Sequence[str], findings: Mapping[str, Mapping[str, Finding]]) -> str:
    """Return the attacks that reach Ollama by this proxy, rightly, and that another refuses."""
    rows = []
    for attack in attacks:
        who = [
            f"{name} ({findings[name][attack.name].statuses[0]})"
            for name in names
            if name != "ours" and findings[name][attack.name].stricter
        ]
        if who and attack.whole.reaches:
            rows.append((f"`{attack.name}`", ", ".join(who), attack.why))
    return _table(("attack", "refused by", "why it passes here"), rows)


def _table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def write(text: str) -> None:
    """Put the tables between the marks of the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
