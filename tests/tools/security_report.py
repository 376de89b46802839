"""`make security-report`: run the tests that docs/security.md names, and write there how many cases each row has.

What is promised, and by which tests, is said in the page's own tables of threats; the counts come from pytest's
results, never from a hand. Exit code 1 when a case fails, or a promise has none that passed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from tests.docs.test_docs import section, table

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- security-report: written by `make security-report` -->\n", "<!-- end of security-report -->\n"

_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def promises(page: str) -> list[tuple[str, list[str]]]:
    """Return each row of the threat tables: what is tried, and the tests that stand against it."""
    rows = table(section(page, "## Threats"))
    return [(row[0], ["::".join(each) for each in _TEST.findall(row[-1])]) for row in rows]


def counted(results: Path) -> dict[str, Counter[str]]:
    """Return, of a JUnit file, how often each test function passed, failed and was skipped."""
    counts: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts.setdefault(name, Counter())[outcome] += 1
    return counts


def rendered(found: list[tuple[str, list[str]]], counts: dict[str, Counter[str]]) -> str:
    """Return the table: a row for each promise, its tests, and how many cases passed and were skipped."""
    lines = ["| tried | tests | cases | skipped |", "|---|---|---|---|"]
    every = {test for _, tests in found for test in tests}
    for tried, tests in found:
        total = sum((counts.get(test, Counter()) for test in tests), Counter())
        names = ", ".join(f"`{test.partition('::')[2]}`" for test in tests)
        lines.append(f"| {tried} | {names} | {total['passed']} | {total['skipped']} |")
    total = sum((counts.get(test, Counter()) for test in every), Counter())
    lines.append(f"| all, each test once | {len(every)} tests | {total['passed']} | {total['skipped']} |")
    return "\n".join(lines) + "\n"


def with_report(page: str, report: str) -> str:
    """Return the page with the report in its place."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no place for the report: {BEGIN.strip()} … {END.strip()}")
    return before + begin + "\n" + report + "\n" + end + after


def main() -> int:
    """Run the tests, write the table; return the exit code."""
    page = PAGE.read_text()
    found = promises(page)
    tests = sorted({test for _, each in found for test in each})
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={results}", *tests]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        counts = counted(results) if results.exists() else {}
    if code or any(test not in counts for test in tests):
        print("error: not all of these tests passed; docs/security.md is as it was", file=sys.stderr)
        print("hint: make test", file=sys.stderr)
        return 1
    PAGE.write_text(with_report(page, rendered(found, counts)))
    print(f"{PAGE.relative_to(ROOT)}: {len(found)} promises, {sum(each['passed'] for each in counts.values())} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
