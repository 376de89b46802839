"""The history as one file: it needs nothing else, runs nothing but the page, and holds no line of the log."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from proxy.dashboard import export
from proxy.dashboard.export import ExportError, answers, document, write
from proxy.dashboard.filters import PERIODS
from proxy.dashboard.page_files import PageFile, page_files
from tests.dashboard.indexed import Indexed, line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>&lt;/script&gt;",
    "\u2028\u2029'\"`${1}\\",
    '"><img src=x onerror=alert(1)>',
    "a b&c=d#e%f+ü",
)


class Page(HTMLParser):
    """What a browser would find in a file: elements, and the content of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))
        self._open = tag if tag in self.inside else ""
        if self._open:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        """Note that a script or style ends."""
        self._open = "" if tag == self._open else self._open

    def handle_data(self, data: str) -> None:
        """Keep the content of a script or style."""
        if self._open:
            self.inside[self._open][-1] += data

    @property
    def data(self) -> Any:
        """What the page reads from its own file."""
        return next(json.loads(each) for each in self.inside["script"] if each.startswith("{"))


async def exported(log: Indexed) -> str:
    """Return the file for a log."""

    async def ask(query: Mapping[str, str]) -> dict[str, Any]:
        others = {name: value for name, value in query.items() if name != "period"}
        return {"index": {"state": "ready", "log": str(log.path)}, **log.history(query["period"], **others)}

    return document(page_files(), await answers(ask, lambda *_: None), str(log.path), log.now)


@pytest.fixture
async def hostile(tmp_path: Path) -> Page:
    """Give the file for a log whose models, devices and reasons are as hostile as can be."""
    log = Indexed(tmp_path)
    for text in HOSTILE:
        log.append(line(model=text, device=text, user=text), line(verdict="refused", reason=text, status=403))
    return Page(await exported(log))


async def test_hostile_texts_are_data(hostile: Page) -> None:
    """Whatever a client calls its model ends no script and begins no element, and is read back as it was."""
    own = Page(page_files()["index.html"].content.decode())
    kinds = [tag for tag, _ in hostile.elements if tag not in {"link", "style", "meta"}]
    assert kinds == [tag for tag, _ in own.elements if tag not in {"link", "style", "meta"}]
    found = {each["name"] for each in hostile.data["answers"]["period=all"]["models"]}
    assert {text for text in HOSTILE if text.isprintable()} <= found


async def test_embedded_data_has_no_markup(hostile: Page) -> None:
    """The data holds no character that means something to a reader of HTML or JavaScript."""
    (text,) = (each for each in hostile.inside["script"] if each.startswith("{"))
    assert not set(text) & set("<>&\u2028\u2029")


async def test_needs_nothing_else(hostile: Page) -> None:
    """The file loads nothing, and its policy allows its own scripts and styles and nothing else."""
    loads = [
        (tag, name, value)
        for tag, fields in hostile.elements
        for name, value in fields.items()
        if name in {"src", "href"}
    ]
    assert [each for each in loads if not (each[2] or "").startswith(("data:", "#"))] == []
    (policy,) = (fields["content"] for _, fields in hostile.elements if "http-equiv" in fields)
    allowed = set(re.findall(r"'sha256-([^']+)'", policy or ""))
    contents = [*hostile.inside["style"], *(each for each in hostile.inside["script"] if not each.startswith("{"))]
    assert allowed == {base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in contents}
    assert "unsafe" not in (policy or "")
    assert "default-src 'none'" in (policy or "")
    assert "connect-src 'none'" in (policy or "")


async def test_policy_comes_before_what_it_is_about(hostile: Page) -> None:
    """A policy in a page counts for what follows it."""
    tags = ["policy" if "http-equiv" in fields else tag for tag, fields in hostile.elements]
    assert tags.index("policy") < min(tags.index("script"), tags.index("style"))


async def test_answers_for_each_period_and_filter(tmp_path: Path) -> None:
    """The file has each period, whole and for one device, model or reason, under the name that the page looks up."""
    log = Indexed(tmp_path)
    log.append(line(model="a b/c:1b", device="l&p"), line(verdict="refused", reason="path_not_served", model=None))
    found = Page(await exported(log)).data["answers"]
    assert {key for key in found if "&" not in key} == {f"period={period}" for period in PERIODS}
    assert {key for key in found if key.startswith("period=all&")} == {
        "period=all&device=l%26p",
        "period=all&device=laptop",
        "period=all&model=a%20b%2Fc%3A1b",
        "period=all&reason=path_not_served",
    }
    for key, answer in found.items():
        for name, value in (part.split("=") for part in key.split("&")[1:]):
            assert answer["filter"][name] == unquote(value)


async def test_only_the_largest_have_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays of a size that can be sent: so many devices, models and reasons have answers of their own."""
    monkeypatch.setattr(export, "FILTERED", 2)
    log = Indexed(tmp_path)
    log.append(*(line(model=f"m{number}") for number in range(5)))
    found = Page(await exported(log)).data["answers"]
    assert sum(key.startswith("period=all&model=") for key in found) == 2


async def test_says_nothing_of_the_machine(tmp_path: Path) -> None:
    """The file names the log without its folder, and has no line of it: no path, no address of a named device."""
    log = Indexed(tmp_path)
    log.append(line(path="/api/secret-path", user_agent="secret-agent", peer="100.64.0.77"))
    text = await exported(log)
    assert str(tmp_path) not in text
    assert not [each for each in ("secret-path", "secret-agent", "100.64.0.77") if each in text]


@pytest.mark.parametrize(("name", "content"), [("a.js", "var a = '</SCRIPT >';"), ("a.css", "/* </style> */")])
def test_file_that_would_end_its_element(name: str, content: str) -> None:
    """A file of the page that could end the element which it is put into is an error, not a broken page."""
    refers = {"a.js": '<script src="/page/a.js"></script>', "a.css": '<link rel="stylesheet" href="/page/a.css">'}
    files = {"index.html": PageFile(refers[name].encode(), "text/html"), name: PageFile(content.encode(), "")}
    with pytest.raises(ExportError, match=name):
        document(files, {}, "access.log", 0.0)


def test_page_refers_to_its_files_as_the_export_expects() -> None:
    """Each script and style of the page is named in the form that the export replaces."""
    text = page_files()["index.html"].content.decode()
    named = re.findall(r"/page/([\w./-]+)", text)
    assert sorted(named) == sorted(name for name in page_files() if name.endswith((".js", ".css")))
    assert text.count("/page/") == len(re.findall(r'(?:<script src|<link rel="stylesheet" href)="/page/', text))
    assert '<script type="application/json" id="exported"></script>' in text


def test_file_is_private(tmp_path: Path) -> None:
    """Only the owner can read the file, and it takes the place of an earlier one at once or not at all."""
    path = tmp_path / "week.html"
    path.write_text("old")
    before = os.umask(0)
    try:
        write(path, "new")
    finally:
        os.umask(before)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    with pytest.raises(UnicodeEncodeError):
        write(path, "\ud800")
    assert (path.read_text(), [each.name for each in tmp_path.iterdir()]) == ("new", ["week.html"])
