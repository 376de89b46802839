"""The report of a run: RESULTS.md with its plots, and a short form on the terminal.

python -m bench.reporting.report writes them again from results/figures.json
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.parts.bodies import HOSTILE
from bench.parts.streaming import DISTRIBUTION
from bench.reporting.figures import TARGETS, Figures, Spread
from bench.reporting.plots import COLOURS, chart
from bench.reporting.sections import SECTIONS
from bench.without import FEATURES
from proxy.terminal.console import print_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bench.reporting.figures import Judged

HERE = Path(__file__).parent.parent
SHOWN = HERE.parent / "docs/performance.md"
BUSY = 0.5
"""The least load average of a machine that counts as busy."""
_RATIO = "Each ratio is the median of the rounds' ratios, so it differs from the quotient of two medians in the table."
_PINNED = "The proxies had one core to themselves, load and upstream the others."


def held(figures: Figures) -> list[tuple[str, ...]]:
    """Return the table of goals, and whether each is met."""
    return [("", "at most", "found", "ours", "theirs", "met"), *(_judged(figures, each) for each in _results(figures))]


def _results(figures: Figures) -> list[Judged]:
    """Return the result of each goal that was measured."""
    return [found for target in TARGETS if (found := target.judge(figures)) is not None]


def _judged(figures: Figures, judged: Judged) -> tuple[str, ...]:
    target = judged.target
    digits = 4 if target.limit < 0.1 else 2
    both = [figures.spread(target.measure, who) if target.peer else None for who in ("ours", target.peer)]
    return (
        target.text,
        f"{target.limit:.{digits}f} {target.unit}",
        f"{judged.found.text(digits)} {target.unit}",
        *(f"{each.median:.2f} {target.of}" if each else "–" for each in both),
        "yes" if judged.held else "**no**",
    )


def _features(figures: Figures) -> list[tuple[str, ...]]:
    """Return the cost of each feature: the proxy with everything, less the proxy without the feature."""
    kinds = ("feature_chat_cpu", "feature_get_cpu", "feature_chunk_cpu")
    rows = [("", "chat, µs", "GET, µs", "chunk, µs")]
    whole = [figures.spread(kind, "without nothing") for kind in kinds]
    if not all(whole):
        return []
    rows.append(("all of it", *(each.text(1) for each in whole if each)))
    for feature, text in FEATURES.items():
        cells = []
        for kind in kinds:
            pairs = zip(
                figures.samples(kind, "without nothing"), figures.samples(kind, f"without {feature}"), strict=False
            )
            saved = [one - other for one, other in pairs]
            cells.append(Spread.of(saved).text(1) if saved else "–")
        rows.append((f"of that: {text}", *cells))
    return rows


def _moving(figures: Figures) -> list[tuple[str, ...]]:
    rows = [("", "p50, ms", "p99, ms", "highest, ms", "rotations")]
    for name, text in (
        ("quiet", "nothing"),
        ("rotation", "logs rotate"),
        ("reload", "settings reload, 4 times a second"),
    ):
        cells = [figures.spread(f"delay_{share}@{name}", "ours") for share in ("p50", "p99", "max")]
        aside = figures.spread("set_aside", name)
        if all(cells) and aside:
            rows.append((text, *(each.text(2) for each in cells if each), aside.text(0)))
    return rows if len(rows) > 1 else []


def _reading(figures: Figures) -> list[tuple[str, ...]]:
    rows = [("", "CPU per chat, µs")]
    for text, measure, who in (
        ("read before it is sent", "coding_cpu", "with"),
        ("sent while it comes", "coding_cpu", "without"),
        ("the difference", "reading_cpu", "ours"),
        ("`orjson.loads` alone", "reading_cpu", "orjson.loads"),
    ):
        found = figures.spread(measure, who)
        if found:
            rows.append((text, found.text(0)))
    return rows if len(rows) > 1 else []


def _hostile(figures: Figures) -> list[tuple[str, ...]]:
    rows = [("meanwhile come", "longest delay, ms")]
    for kind, (text, _) in HOSTILE.items():
        found = figures.spread(f"hostile_delay@{kind}", "ours")
        if found:
            rows.append((text, found.text(1)))
    return rows if len(rows) > 1 else []


def _own(figures: Figures) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """Return the tables about this proxy alone that there are figures for: title, text and rows."""
    tables = (
        (
            "Reading a coding tool's chat",
            "Each chat has 300 KiB, with tools, calls and their results, and is held until it is read. The difference"
            " to a proxy that passes it on as it comes is compared with `orjson.loads` of the same chats, which was"
            " measured in the same rounds.",
            _reading(figures),
        ),
        (
            "Streams next to hostile bodies",
            "The longest delay of a chunk of five streams, while bodies that are made to take long come one after"
            " another.",
            _hostile(figures),
        ),
        (
            "What the features cost",
            "The CPU of the proxy with all features, and the part that each feature takes. Differences below the spread"
            " mean nothing.",
            _features(figures),
        ),
        (
            "While logs rotate and settings reload",
            "Delay at 50 streams, next to 2,000 refused requests a second that fill the log.",
            _moving(figures),
        ),
    )
    return [each for each in tables if each[2]]


# --- as pages ---


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rest]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(figures: Figures) -> str:
    """Return RESULTS.md."""
    about = figures.about
    versions = ", ".join(f"{name} {number}" for name, number in {**about["versions"], **about["libraries"]}.items())
    parts = [
        "# Results",
        "Written by `make bench`; [docs/performance.md](../docs/performance.md) explains what each figure means to you."
        " A figure is the median of its rounds, with the lowest and the highest. A ratio is the median of the ratios of"
        " single rounds.",
        f"{about['date']}, commit {about['commit']}. {about['cpu']}, {about['cores']} cores, {about['system']}."
        f" {about['python']}. Load: {about['load']}."
        f" {_PINNED if about['pinned'] else 'Nothing was pinned to a core.'} {versions}.",
        *_busy(about),
        *([about["note"]] if "note" in about else []),
        "## Goals",
        "Most goals compare this proxy (ours) with another in the same run. The others are limits on a figure of ours.",
        _markdown(held(figures)),
        *(f"![{title}](results/{name}.svg)" for name, (title, _) in drawings(figures).items()),
    ]
    for section in SECTIONS:
        rows = [*section.rows(figures)]
        if len(rows) > 1:
            parts += [f"## {section.title}", section.text, _markdown(rows)]
    for title, text, own in _own(figures):
        parts += [f"## {title}", text, _markdown(own)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _full(about: dict[str, Any]) -> bool:
    """Return whether a run was long enough to be written down."""
    return about.get("scale", "full") == "full"


def _busy(about: dict[str, Any]) -> list[str]:
    """Return warnings, for example that the run was short or other programs were running."""
    before = about["load_average"]
    short = [] if _full(about) else ["**A short run**: each figure comes from few rounds, so its spread means little."]
    if before < BUSY:
        return short
    return [
        *short,
        f"**The machine was not idle**: its load average was {before:.1f} before anything was started. Delays mean"
        " little then. Ratios within a round suffer less.",
    ]


def drawings(figures: Figures) -> dict[str, tuple[str, str]]:
    """Return the plots: file name -> title and SVG."""
    found = {}

    def draw(name: str, title: str, kind: str, x: tuple[str, bool], y: tuple[str, bool], leave_out: str = "") -> None:
        lines = {who: line for who in COLOURS if who != leave_out and len(line := figures.curve(kind, who)) > 1}
        if lines:
            found[name] = (title, chart(title, lines, x, y))

    distribution = {
        who: [
            (spread.median, 100 * share)
            for share in DISTRIBUTION
            if (spread := figures.spread(f"distribution@{share}", who))
        ]
        for who in COLOURS
    }
    if any(distribution.values()):
        title = "Delay of a chunk, 50 streams"
        lines = {who: line for who, line in distribution.items() if line}
        found["delay"] = (title, chart(title, lines, ("milliseconds", True), ("% of chunks come within", False)))
    draw("chunk-cost", "CPU of a chunk as streams grow", "chunk_cpu", ("streams", True), ("µs per chunk", False))
    draw(
        "memory", "Memory as idle streams grow", "idle_total", ("streams", True), ("MiB beyond the program's own", True)
    )
    draw(
        "length", "CPU of a chunk as answers grow", "length_cpu", ("chunks of an answer", True), ("µs per chunk", False)
    )
    draw(
        "connections",
        "CPU of a request as connections grow",
        "connections_cpu",
        ("connections", True),
        ("µs per request", False),
    )
    return found


_SHORT = (
    ("CPU of a small chat, each different, µs", "chat_cpu", 0),
    ("CPU of a long chat, 8 to 150 KB, µs", "agent_cpu", 0),
    ("CPU of a streamed chunk, 50 streams, µs", "chunk_cpu@50", 1),
    ("CPU of a chunk of one stream alone, µs", "chunk_cpu@1", 0),
    ("delay of a chunk, 50 streams, ms, median", "delay_p50@50", 2),
    ("the same, ms, 99th percentile", "delay_p99@50", 2),
    ("first byte, ms", "first_byte", 2),
    ("CPU of one identical GET again and again, µs", "get_cpu", 1),
    ("64 MiB up, MiB/s", "up_rate", 0),
    ("memory of an idle stream, KiB", "idle_memory@2000", 1),
    ("start, s", "start", 2),
)
_HEADS = ("ours", "haproxy-tuned", "haproxy-replaced", "nginx", "caddy", "aiohttp", "litellm")


def short(figures: Figures) -> str:
    """Return the few medians that docs/performance.md shows."""
    heads = [who for who in _HEADS if who == "ours" or any(figures.spread(measure, who) for _, measure, _ in _SHORT)]
    rows = [("", *heads)]
    for text, measure, digits in _SHORT:
        found = [figures.spread(measure, who) for who in heads]
        if any(found):
            rows.append((text, *(f"{each.median:,.{digits}f}" if each else "–" for each in found)))
    sentences = (_run(figures.about), figures.about.get("note", ""), _missed(figures))
    return f"{_markdown(rows)}\n{' '.join(each for each in sentences if each)}\n"


def _run(about: dict[str, Any]) -> str:
    """Return where and how the figures were measured."""
    kind = "full" if _full(about) else "short"
    busy = " on a busy machine" if about["load_average"] >= BUSY else ""
    where = f"{about['date']}, {about['cpu']}, {about['cores']} cores, {about['python']}"
    return f"A {kind} run{busy}: {where}."


def _missed(figures: Figures) -> str:
    """Return how many goals are met, and which aren't; nothing if no goal was measured."""
    judged = _results(figures)
    missed = [each for each in judged if not each.held]
    if not judged:
        return ""
    names = "; ".join(
        f"{each.target.text} ({each.found.median:.2f} {each.target.unit}, at most {each.target.limit:.2f})"
        for each in missed
    )
    met = f"The proxy meets {len(judged) - len(missed)} of {len(judged)} goals"
    return f"{met}. Missed: {names}. {_RATIO}" if missed else f"{met}."


def show(page: str, figures: Figures) -> str:
    """Return the page with these figures instead of its present ones."""
    before, mark, rest = page.partition("<!-- make bench writes from here -->\n")
    _, end, after = rest.partition("<!-- to here -->")
    return f"{before}{mark}\n{short(figures)}\n{end}{after}"


def write(figures: Figures, folder: Path = HERE, shown: Path = SHOWN) -> None:
    """Write RESULTS.md, the plots and the samples, and put the most important figures into docs/performance.md."""
    results = folder / "results"
    results.mkdir(exist_ok=True)
    figures.write(results / "figures.json")
    figures = Figures.read(results / "figures.json")  # rounded, so that the page can be made again from them
    shown.write_text(show(shown.read_text(), figures))
    for name, (_, drawing) in drawings(figures).items():
        (results / f"{name}.svg").write_text(drawing)
    (folder / "RESULTS.md").write_text(page(figures))


def print_results(figures: Figures) -> None:
    """Print all tables, the goals first."""
    tables = [("goals", held(figures))]
    tables += [(section.title, [*section.rows(figures)]) for section in SECTIONS]
    tables += [(title, rows) for title, _, rows in _own(figures)]
    print_tables((title, rows) for title, rows in tables if len(rows) > 1)


if __name__ == "__main__":
    write(Figures.read(HERE / "results/figures.json"))
