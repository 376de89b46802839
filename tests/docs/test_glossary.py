"""The pages use the glossary's words, and none of the words that it advises against."""

from __future__ import annotations

import ast
import io
import re
import tokenize

import pytest

from proxy.command_line import commands
from tests.docs.test_docs import DOCUMENTATION, PAGES, ROOT, marked, section, table
from tests.policy.test_refusals import CATALOGUE

PAGE = PAGES["docs/glossary.md"]
TERMS = [row[0] for row in table(section(PAGE, "# Glossary").partition("## ")[0])]
AVOID = {word: row[1] for row in table(section(PAGE, "## Words to avoid")) for word in marked(row[0])}
CODE = sorted(path for folder in ("proxy", "bench", "tests") for path in (ROOT / folder).rglob("*.py"))
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def prose(page):
    """Return a page without blocks of code, quotations of code, and comments."""
    return re.sub(r"<!--.*?-->|`[^`\n]*`", "", _FENCE.sub("", page), flags=re.DOTALL)


def found(text):
    """Return each avoided word in a text, with what to write instead."""
    return [
        f"{hit[0]!r} in {text[max(0, hit.start() - 30) : hit.end() + 20]!r}: write {instead}"
        for word, instead in AVOID.items()
        for hit in re.finditer(rf"\b{word}\b", text, re.IGNORECASE)
    ]


def test_terms_are_sorted_and_explained_once():
    """Each term has one entry, in alphabetical order, with a sentence."""
    assert sorted(TERMS) == TERMS
    assert len(set(TERMS)) == len(TERMS) > 25
    assert all(row[1].endswith(".") for row in table(PAGE.partition("## ")[0]))


@pytest.mark.parametrize("name", sorted(DOCUMENTATION.keys() - {"docs/glossary.md"}))
def test_pages(name):
    """No page has a word that the glossary advises against."""
    assert found(prose(DOCUMENTATION[name])) == []


def explanations(path):
    """Return the docstrings and comments of a Python file, without quotations of code."""
    source = path.read_text()
    nodes = [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.Expr)]
    texts = [each.value.value for each in nodes if isinstance(getattr(each.value, "value", None), str)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join([*texts, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_comments(path):
    """No docstring or comment has a word that the glossary advises against."""
    assert found(prose(explanations(path))) == []


def test_help():
    """No help text has a word that the glossary advises against."""
    parser, _ = commands.commands(commands.options())
    tree = parser.action("command")
    texts = [each.format_help() for each in (parser, *tree.choices.values())]
    assert found(prose("\n".join(texts))) == []


def test_refusals():
    """No refusal has a word that the glossary advises against."""
    assert found("\n".join(each.message for each in CATALOGUE)) == []
