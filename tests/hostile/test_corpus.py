"""How the files of tests/attacks/ are read."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.support.hostile.attack_corpus import EVIL, FOLDER, Expected, Reached, load, octets_of

if TYPE_CHECKING:
    from pathlib import Path


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "family.toml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("GET\r\n", b"GET\r\n"),
        ("\u00e4\u0000\u00ff", b"\xe4\x00\xff"),
        ("⟦a × 3⟧b", b"aaab"),
        ("⟦a\r\n × 2⟧", b"a\r\na\r\n"),
        ("⟦x⟦ab × 2⟧ × 2⟧", b"xababxabab"),
        ("a × 3", b"a \xd7 3"),
        ("⟦EVIL⟧", EVIL.encode()),
    ],
)
def test_octets(text: str, octets: bytes) -> None:
    """A character is a byte. A mark is replaced by what it names."""
    assert octets_of(text) == octets


@pytest.mark.parametrize("text", ["⟦b⟧", "⟦a × b⟧", "€", "⟦HERE⟧"])
def test_no_octets(text: str) -> None:
    """A character that isn't a byte is an error, not a guess."""
    with pytest.raises(ValueError, match=r"is no mark|ordinal not in range"):
        octets_of(text)


def test_forbidden_request_has_its_length() -> None:
    """Lengths and chunk sizes in the files count on these."""
    assert len(EVIL) == 42 == 0x2A


def test_expectations() -> None:
    """Answers and what reaches Ollama are read with their counts."""
    assert Expected.of("403 path_not_served") == [Expected(403, "path_not_served", False)]
    assert Expected.of("405 method_not_served to HEAD") == [Expected(405, "method_not_served", True)]
    assert Expected.of("200 × 2") == [Expected(200, None, False)] * 2
    assert Reached.of("GET /x?⟦a × 2⟧ × 2") == [Reached("GET", "/x?aa", b"")] * 2
    assert Reached.of("POST /x\n⟦a × 2⟧") == [Reached("POST", "/x", b"aa")]


def test_cases_inherit_and_override(tmp_path: Path) -> None:
    """A case has its own text, reason and keys, and the rest of its table."""
    one, two = load(
        written(
            tmp_path,
            """
[[attack]]
octets = "<⟦HERE⟧>"
answers = ["400 malformed"]
absent = ["x"]
cases = [
  ["one", "1", "why one"],
  ["two", "2", "why two", {answers = ["200"], then = "open", reaches = ["GET /"], apart = {reaches = []}}],
]
""",
        )
    )
    assert (one.name, one.octets, one.why, one.whole.then) == ("family/one", b"<1>", "why one", "closed")
    assert one.whole == one.apart
    assert (two.octets, two.absent, two.whole.answers[0].status, two.whole.then) == (b"<2>", ("x",), 200, "open")
    assert (two.whole.reaches, two.apart.reaches) == ((Reached("GET", "/", b""),), ())
    assert two.elsewhere == two.whole.reaches


def test_escapes_are_written_out(tmp_path: Path) -> None:
    """A path's percent-encodings are one character at a time and all at once, in small letters, capitals and twice."""
    found = load(
        written(
            tmp_path,
            """
[[attack]]
octets = "⟦METHOD⟧ ⟦HERE⟧"
why = "y"
answers = ["403 x"]
every_escape_of = ["DELETE /o/p"]
""",
        )
    )
    assert {each.octets.decode() for each in found} == {
        *("DELETE /%6f/p", "DELETE /%6F/p", "DELETE /%256f/p"),
        *("DELETE /o%2fp", "DELETE /o%2Fp", "DELETE /o%252fp"),
        *("DELETE /o/%70", "DELETE /o/%2570"),
        *("DELETE /%6f%2f%70", "DELETE /%6F%2F%70", "DELETE /%256f%252f%2570"),
    }
    assert all(each.generated for each in found)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ('anwsers = ["400"]', "no key is called anwsers"),
        ('answers = ["400"]\nthen = "shut"', "then = 'shut'"),
        ('answers = ["400"]\napart = {octets = ""}', "apart has no key octets"),
    ],
)
def test_misspelt_keys_are_errors(tmp_path: Path, keys: str, match: str) -> None:
    """An entry with a key that nobody reads isn't taken for one that expects nothing."""
    with pytest.raises(ValueError, match=match):
        load(written(tmp_path, f'[[attack]]\nid = "a"\nwhy = "b"\noctets = "c"\n{keys}\n'))


def test_every_file_is_in_the_readme() -> None:
    """The README next to the files says of each what is tried in it, and its example is a valid entry."""
    readme = (FOLDER / "README.md").read_text()
    assert re.findall(r"^\| `([a-z]+)` \|", readme, re.MULTILINE) == sorted(path.stem for path in FOLDER.glob("*.toml"))
    (example,) = re.findall(r"```toml\n(.+?)```", readme, re.DOTALL)
    assert tomllib.loads(example)["attack"][0]["id"] in {attack.id for attack in load()}
