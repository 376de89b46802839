"""Line charts as SVG: a few curves, axes that may be logarithmic, a legend. Too little to install a library for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 170, 50, 55

COLOURS = {
    "ours": "#d62728",
    "haproxy-tuned": "#1f77b4",
    "haproxy-replaced": "#7fb2dd",
    "nginx": "#2ca02c",
    "caddy": "#17becf",
    "aiohttp": "#ff9f40",
    "litellm": "#8c564b",
    "direct": "#888888",
    "imports": "#bbbbbb",
}
_STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Axis:
    """One axis: its title and its range."""

    title: str
    least: float
    most: float
    logarithmic: bool

    @classmethod
    def over(cls, title: str, values: Sequence[float], *, logarithmic: bool) -> Axis:
        """Return an axis that contains all `values`."""
        most = max(values) or 1.0
        if not logarithmic:
            return cls(title, 0.0, most * 1.08, logarithmic=False)
        least = min(value for value in values if value > 0)
        return cls(title, least / 1.15, most * 1.15, logarithmic=True)

    def place(self, value: float) -> float:
        """Return the position of `value`, from 0 to 1."""
        if self.logarithmic:
            return math.log(max(value, self.least) / self.least) / math.log(self.most / self.least)
        return (value - self.least) / (self.most - self.least)

    def ticks(self) -> Iterator[float]:
        """Yield round values for the marks."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
            steps = _STEPS if len(decades) < 4 else _STEPS[:1]
            marks = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = self.most / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(unit * each for each in (*_STEPS, 10) if unit * each >= rough)
            marks = [step * number for number in range(int(self.most / step) + 1)]
        yield from (mark for mark in marks if self.least <= mark <= self.most)


def chart(title: str, lines: Mapping[str, Points], x: tuple[str, bool], y: tuple[str, bool]) -> str:
    """Return the drawing; `x` and `y` are an axis's title and whether it is logarithmic."""
    across = Axis.over(x[0], [point[0] for line in lines.values() for point in line], logarithmic=x[1])
    up = Axis.over(y[0], [point[1] for line in lines.values() for point in line], logarithmic=y[1])
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def left_of(value: float) -> float:
        return _LEFT + across.place(value) * (right - _LEFT)

    def top_of(value: float) -> float:
        return bottom - up.place(value) * (bottom - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="15" font-weight="bold">{title}</text>',
    ]
    for mark in across.ticks():
        at = f"{left_of(mark):.1f}"
        parts.append(f'<path d="M{at} {_TOP}V{bottom}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{mark:,g}</text>')
    for mark in up.ticks():
        at = f"{top_of(mark):.1f}"
        parts.append(f'<path d="M{_LEFT} {at}H{right}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at}" text-anchor="end" dominant-baseline="middle">{mark:,g}</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 14}" text-anchor="middle">{across.title}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">{up.title}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS.get(name, "#444444")
        width = 3 if name == "ours" else 1.7
        path = " ".join(f"{left_of(a):.1f},{top_of(b):.1f}" for a, b in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        if len(line) < 10:
            parts += [f'<circle cx="{left_of(a):.1f}" cy="{top_of(b):.1f}" r="3" fill="{colour}"/>' for a, b in line]
        at = _TOP + 10 + 20 * number
        parts.append(f'<path d="M{right + 14} {at}h22" stroke="{colour}" stroke-width="{width}"/>')
        parts.append(f'<text x="{right + 42}" y="{at}" dominant-baseline="middle">{name}</text>')
    return "\n".join((*parts, "</svg>\n"))
