"""The pictures in docs/img can be shown anywhere: they are whole, they load nothing, and a page shows each."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from tests.docs.test_docs import DOCUMENTATION, ROOT
from tests.tools import pictures

IMAGES = sorted((ROOT / "docs/img").glob("*.svg"))
each_image = pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)


@each_image
def test_is_well_formed(image):
    """A picture is an SVG with a size of its own."""
    root = ET.parse(image).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox")


@each_image
def test_loads_nothing(image):
    """A picture refers to nothing outside itself, and has no script."""
    text = image.read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:href|src)=|@import|@font-face|<script|<image|url\((?!#)", text) == []


@each_image
def test_is_shown(image):
    """A page shows each picture, and says in words what it shows."""
    assert [name for name, page in DOCUMENTATION.items() if re.search(rf"!\[[^\]]+\]\(\S*img/{image.name}\)", page)]


@each_image
def test_names_no_machine(image):
    """A picture has no path, address or name of the machine that drew it."""
    text = image.read_text().replace("&#160;", " ")
    assert re.findall(r"/(?:root|home|tmp|Users|work)\b", text) == []
    addresses = set(re.findall(r"\b\d+\.\d+\.\d+\.\d+(?::\d+)?", text))
    assert addresses <= {"127.0.0.1", "127.0.0.1:11434", "127.0.0.1:11500"}


def test_excerpt_marks_each_cut():
    """An excerpt keeps the paragraphs that are asked for, and has one `…` for those between them."""
    text = "a 1\nmore\n\nb\n\nc\n\n\x1b[1ma 2\x1b[0m\n"
    assert pictures.excerpt(text, "a") == "a 1\nmore\n\n…\n\n\x1b[1ma 2\x1b[0m"


def test_devices_are_examples():
    """The log that is shown has example names for devices, and is unchanged otherwise."""
    line = '{"method": "GET", "surface": "openai"}\n'
    assert pictures.with_devices(line) == line.replace("}", ', "device": "laptop", "user": "alice@example.com"}')


def test_log_has_one_line_of_each_kind():
    """The log that is shown is short: of lines alike but for their path, size and time, it has the first."""
    alike = '{"path":"/a","status":200}\n{"path":"/b","status":200}\n{"path":"/c","status":403,"reason":"x"}\n{}\n'
    assert pictures.one_of_each(alike).splitlines() == [alike.splitlines()[0], alike.splitlines()[2]]
