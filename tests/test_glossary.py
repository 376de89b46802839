"""The pages use the glossary's words, and none of the words that it advises against."""

from __future__ import annotations

import re

import pytest

from tests.test_docs import DOCUMENTATION, PAGES, marked, section, table

PAGE = PAGES["docs/glossary.md"]
TERMS = [row[0] for row in table(section(PAGE, "# Glossary").partition("## ")[0])]
AVOID = {word: row[1] for row in table(section(PAGE, "## Words to avoid")) for word in marked(row[0])}
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def prose(page):
    """Return a page without blocks of code, quotations of code, and comments."""
    return re.sub(r"<!--.*?-->|`[^`\n]*`", "", _FENCE.sub("", page), flags=re.DOTALL)


def found(text):
    """Return each avoided word in a text, with what to write instead."""
    return [
        f"{hit[0]!r} in {text[max(0, hit.start() - 30) : hit.end() + 20]!r}: write {instead}"
        for word, instead in AVOID.items()
        for hit in re.finditer(rf"\b{word}s?\b", text, re.IGNORECASE)
    ]


def test_terms_are_sorted_and_explained_once():
    """Each term has one entry, in alphabetical order, with a sentence."""
    assert sorted(TERMS) == TERMS
    assert len(set(TERMS)) == len(TERMS) > 25
    assert all(row[1].endswith(".") for row in table(PAGE.partition("## ")[0]))


# Pages that are still to be rewritten.
_OLD = {
    "CHANGELOG.md",
    *(f"docs/{name}.md" for name in ()),
}


@pytest.mark.parametrize("name", sorted(DOCUMENTATION.keys() - _OLD - {"docs/glossary.md"}))
def test_page_avoids(name):
    """No page has a word that the glossary advises against."""
    assert found(prose(DOCUMENTATION[name])) == []
