"""docs/clients.md has what `connect` prints: the same texts, the same routes, the same patience."""

from __future__ import annotations

import re
import tomllib

import pytest

from proxy.manage.connect.tools import TOOLS
from proxy.policy.routes import OPT_IN
from tests.docs.test_docs import PAGES, anchors, blocks, marked, table

PAGE = PAGES["docs/clients.md"]
each_tool = pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)


def below(heading):
    """Return what stands below a heading; a comment in a block is none."""
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_table_is_the_programs():
    """The table of tools has each with its name, the rows that it asks for, and how it takes silence."""
    told = [
        (row[0], *marked(row[1]), tuple(marked(row[2])), row[3].removesuffix(" †"), row[4])
        for row in table(PAGE.partition("\n## ")[0])
    ]
    assert told == [(tool.title, tool.name, tool.asks, tool.patience, tool.otherwise) for tool in TOOLS]


def test_sections_are_the_programs():
    """Each tool has its section, in the order of the table; programs without a text have one together."""
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    after = ["Other programs", "Errors that any tool may show", "How the tools were tested"]
    assert headings == ["For all of them", "What Ollama tools send", "Waiting", *(tool.title for tool in TOOLS), *after]


def test_other_programs_need_rows_that_there_are():
    """What has to be opened for a program without a text of its own is a row that can be opened."""
    rows = table(below("Other programs"))
    assert len(rows) >= 8
    for program, address, opened, _ in rows:
        assert "NAME:11434" in address, program
        assert opened == "nothing" or set(marked(opened)) <= set(OPT_IN), program


@each_tool
def test_text_is_what_is_printed(tool):
    """The first block of a section is what the command prints where it can find out nothing."""
    assert blocks(below(tool.title), tool.language)[0] == tool.filled(tool.text)


@each_tool
def test_section_has_all_of_it(tool):
    """A section names the file, what has to be opened, how long the tool waits, and errors with their remedy."""
    text = below(tool.title)
    assert tool.path.rpartition("/")[2] in text
    opened = text.partition("**Routes to open:**")[2].partition("**Waits:**")[0]
    rows = {row for row in (*tool.asks, *(extra.row for extra in tool.extras)) if row in OPT_IN}
    assert rows <= set(marked(opened))
    assert rows or "none" in opened
    patience = re.split(r"[,;]| with ", tool.patience)[0]
    assert patience in text
    assert all(len(row) == 3 and all(row) for row in table(text))
    assert table(text)


@each_tool
def test_notes_fit_the_page(tool):
    """No note of the command, and no text, has a placeholder that nobody fills in."""
    for text in (tool.text, tool.then, *tool.notes):
        assert "$" not in tool.filled(text).replace('"$schema"', "")


def test_context_for_ollama_is_a_setting():
    """The table that gives Ollama more context is one that the proxy's settings take."""
    (body,) = blocks(below("For all of them").replace("\n  ", "\n"), "toml")
    assert tomllib.loads(body) == {"ollama_env": {"OLLAMA_CONTEXT_LENGTH": 65536}}
    assert "for-all-of-them" in anchors(PAGE)
