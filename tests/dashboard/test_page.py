"""The page's own files: what they load, what they may not use, and whether their colours can be read."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import proxy.dashboard

ROOT = Path(__file__).parent.parent.parent
PAGE = Path(proxy.dashboard.__file__).parent / "page"
VENDOR = PAGE / "vendor"
SOURCE = json.loads((VENDOR / "SOURCE.json").read_text())
INDEX = (PAGE / "index.html").read_text()
SCRIPTS = sorted(PAGE.glob("*.js"))
LINES = 350

# What turns text into markup or code, in a script of ours.
UNSAFE = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|ContextualFragment"
)


@pytest.mark.parametrize("name", SOURCE["files"])
def test_the_library_is_the_published_one(name):
    """A file of the charting library has the hash that is recorded for its release."""
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == SOURCE["files"][name]


def test_the_library_has_nothing_else():
    """Every file in the library's folder is recorded, its licence too."""
    assert {path.name for path in VENDOR.iterdir()} == {*SOURCE["files"], "SOURCE.json"}
    assert "MIT" in SOURCE["licence"]
    assert "Permission is hereby granted" in (VENDOR / "uPlot-LICENSE.txt").read_text()


def test_the_page_loads_its_own_files_only():
    """index.html names each script and style of the folder once, and no other address."""
    loaded = re.findall(r'^(?:<link rel="stylesheet" href|<script src)="/page/([^"]+)">', INDEX, re.MULTILINE)
    there = {str(path.relative_to(PAGE)) for path in PAGE.rglob("*") if path.suffix in {".css", ".js"}}
    assert sorted(loaded) == sorted(there)
    addresses = re.findall(r'(?:href|src|action)="([^"]*)"', INDEX)
    assert {each for each in addresses if not each.startswith(("/page/", "#"))} == {"data:,"}


def test_nothing_is_inline():
    """No script, style or handler stands in the markup, because the policy forbids all three."""
    assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", INDEX) == ['<script type="application/json" id="exported">']
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:", INDEX) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_text_stays_text(path):
    """No script of ours makes markup or code out of a text, or sets a style as a text."""
    found = UNSAFE.findall(path.read_text()) + re.findall(
        r"setAttribute\(\s*[\"'](?:style|href|src|on)", path.read_text()
    )
    assert found == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short(path):
    """A script has one subject, so it is short, and it names no other host."""
    text = path.read_text()
    assert len(text.splitlines()) <= LINES
    assert [each for each in re.findall(r"https?://[^\s\"'`]+", text) if "www.w3.org/2000/svg" not in each] == []


# --- pictures ---------------------------------------------------------------------------------------------------------

PICTURES = sorted((ROOT / "docs" / "dashboard").glob("*.png"))
SHOWN = (ROOT / "README.md").read_text() + (ROOT / "docs" / "dashboard.md").read_text()


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_pictures(path):
    """A picture is a PNG of modest size that holds nothing else, and the documentation shows it."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) <= 300_000
    assert not re.search(rb"tEXt|iTXt|zTXt|eXIf", content[:200])
    assert f"dashboard/{path.name}" in SHOWN


def test_the_readme_shows_one():
    """The first screen of the README has a picture of the page."""
    assert "docs/dashboard/now.png" in (ROOT / "README.md").read_text()[:2500]


# --- colours ----------------------------------------------------------------------------------------------------------

CSS = (PAGE / "page.css").read_text()
_LIGHT, _, _DARK = CSS.partition("@media (prefers-color-scheme: dark)")
SURFACES = ("page", "surface", "sunken")
TEXTS = ("text", "muted", "accent")
SERIES = (*(f"series-{number}" for number in range(1, 8)), "series-others")

# Foreground, background, and the least contrast that WCAG 2.2 AA wants: 4.5 for text (1.4.3), 3 for graphics (1.4.11).
PAIRS = [
    *((text, surface, 4.5) for text in TEXTS for surface in SURFACES),
    *((text, "surface", 4.5) for text in ("good", "warn", "bad")),
    ("surface", "bad", 4.5),
    *((text, f"{kind}-surface", 4.5) for kind in ("warn", "bad") for text in ("text", kind)),
    *((text, "new", 4.5) for text in ("text", "muted", "accent")),
    *((series, "surface", 3.0) for series in SERIES),
    ("control", "surface", 3.0),
    ("control", "sunken", 3.0),
    ("accent", "sunken", 3.0),
]


def palette(scheme: str) -> dict[str, str]:
    """Return the colours of a scheme by name; the dark one inherits what it doesn't set."""

    def colours(text: str) -> dict[str, str]:
        return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", text))

    return colours(_LIGHT) | (colours(_DARK) if scheme == "dark" else {})


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG defines it."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_measured_right():
    """Black on white has 21, a colour on itself 1, and #767676 on white just reaches 4.5."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#777777") == 1
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("front", "back", "least"), PAIRS, ids=str)
def test_colours_contrast(scheme, front, back, least):
    """Text has the contrast of WCAG's level AA with what it stands on, and so have bars and borders of controls."""
    colours = palette(scheme)
    assert contrast(colours[front], colours[back]) >= least


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_series_differ(scheme):
    """No two series have the same colour."""
    colours = palette(scheme)
    assert len({colours[name] for name in SERIES}) == len(SERIES)


def test_motion_can_be_turned_off():
    """Whoever asks for less motion gets none."""
    rule = CSS.partition("@media (prefers-reduced-motion: reduce)")[2]
    assert "animation: none" in rule
    assert "transition: none" in rule
