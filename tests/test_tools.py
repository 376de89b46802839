"""What counts, lists and judges for `make security-report`, `sbom`, `audit` and `mutants`, without running them."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.test_docs import ROOT, section, table
from tests.tools import mutants
from tests.tools.mutants import MODULES, Mutant, explanation
from tests.tools.security_report import BEGIN, END, PAGE, counted, promises, rendered, with_report
from tests.tools.supply import bill, judged, normal, packages

# --- security-report --------------------------------------------------------------------------------------------------

THREATS = """# Security

## Threats

### From a device

| tries | what stops it | in the log | tests |
|---|---|---|---|
| to pull | no row | `path_not_served` | `tests/test_a.py::test_one`, `tests/test_b.py::test_two` |

### From a page

| tries | what stops it | in the log | tests |
|---|---|---|---|
| to call | a rule | | `tests/test_a.py::test_one` |

## Elsewhere

| not | a | threat | `tests/test_c.py::test_three` |
|---|---|---|---|
| x | y | z | `tests/test_c.py::test_three` |
"""
FOUND = [
    ("to pull", ["tests/test_a.py::test_one", "tests/test_b.py::test_two"]),
    ("to call", ["tests/test_a.py::test_one"]),
]


def test_promises_are_the_rows_of_the_threats():
    """Each row of the threat tables is one promise, with the tests that it names, and nothing else on the page is."""
    assert promises(THREATS) == FOUND


def test_cases_are_counted_by_outcome(tmp_path):
    """Each case of a test function counts once: as failed after a failure or an error, as skipped, or as passed."""
    results = tmp_path / "results.xml"
    results.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.test_a" name="test_one[x.y-[z]]"/>'
        '<testcase classname="tests.test_a" name="test_one[b]"><system-out>said</system-out></testcase>'
        '<testcase classname="tests.test_a" name="test_one[c]"><skipped/></testcase>'
        '<testcase classname="tests.test_b" name="test_two"><failure/></testcase>'
        '<testcase classname="tests.test_b" name="test_two"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    assert counted(results) == {
        "tests/test_a.py::test_one": Counter(passed=2, skipped=1),
        "tests/test_b.py::test_two": Counter(failed=2),
    }


def test_report_adds_up():
    """A row has the cases of all its tests; the last row counts a test that stands in several rows once."""
    counts = {"tests/test_a.py::test_one": Counter(passed=2, skipped=1), "tests/test_b.py::test_two": Counter(passed=5)}
    assert table(rendered(FOUND, counts)) == [
        ["to pull", "`test_one`, `test_two`", "7", "1"],
        ["to call", "`test_one`", "2", "1"],
        ["all, each test once", "2 tests", "7", "1"],
    ]


def test_report_takes_its_place_and_no_other():
    """A report replaces the one before it, and all around it stays."""
    page = f"above\n{BEGIN}\nold\n\n{END}below\n"
    assert with_report(page, "new\n") == f"above\n{BEGIN}\nnew\n\n{END}below\n"
    assert with_report(with_report(page, "new\n"), "new\n") == with_report(page, "new\n")


@pytest.mark.parametrize("page", ["", BEGIN, END, END + BEGIN])
def test_page_without_a_place_is_left_alone(page):
    """A page that has no place for the report is an error, not one that loses its end."""
    with pytest.raises(ValueError, match="no place for the report"):
        with_report(page, "new\n")


def test_report_is_of_the_threats_of_today():
    """The report in docs/security.md has the rows of the threat tables, with their tests, and each has cases."""
    page = PAGE.read_text()
    *rows, every = table(section(page, "## How much was tried"))
    named = [(row[0], re.findall(r"`(\w+)`", row[1])) for row in rows]
    assert named == [(tried, [test.partition("::")[2] for test in tests]) for tried, tests in promises(page)]
    assert all(int(row[2]) > 0 for row in [*rows, every])


# --- locks, sbom, audit -----------------------------------------------------------------------------------------------

LOCKS = {
    name: (ROOT / name).read_text()
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-tools.lock", "requirements-browser.lock")
}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_hashes(name):
    """Each line of a lock file pins one release and is followed by the hashes of its files: pip takes nothing else."""
    joined = re.sub(r"\\\n +", "", re.sub(r"^ *#.*\n", "", LOCKS[name], flags=re.MULTILINE))
    lines = joined.splitlines()
    assert len(lines) == len(packages(LOCKS[name])) > 10
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+ (?:; [^\\]+? )?(?:--hash=sha256:[0-9a-f]{64} ?)+", line), line


def test_locks_agree():
    """What is tested is what is installed, and what tools run with: a package has one version in all locks."""
    installed, tested, *others = (packages(lock) for lock in LOCKS.values())
    assert installed.items() <= tested.items()
    for other in others:
        assert installed.items() <= other.items()
        assert {name: other[name] for name in tested.keys() & other.keys()} == {
            name: tested[name] for name in tested.keys() & other.keys()
        }


def test_packages_of_a_lock():
    """A package is found whatever stands behind its version; hashes, comments and options are none."""
    lock = (
        "# made\n--index-url x\na==1.0 \\\n    --hash=sha256:0 \\\n    --hash=sha256:1\n    # via b\n"
        "b-c==2.0rc1 ; python_full_version < '3.12' \\\n    --hash=sha256:2\nd.e==3\n"
    )
    assert packages(lock) == {"a": "1.0", "b-c": "2.0rc1", "d.e": "3"}


@pytest.mark.parametrize("name", ["Typing_Extensions", "typing.extensions", "typing--extensions"])
def test_names_are_compared_as_locks_have_them(name):
    """A package has one name, however its own files spell it."""
    assert normal(name) == "typing-extensions"


def test_bill_has_what_is_installed_and_no_tool():
    """The list keeps what the lock names, in that version, and their links; it names our release."""
    everything = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [
            {"bom-ref": "a==1", "name": "A_a", "version": "1"},
            {"bom-ref": "b==2", "name": "b", "version": "2"},
            {"bom-ref": "pytest==9", "name": "pytest", "version": "9"},
        ],
        "dependencies": [
            {"ref": "root", "dependsOn": ["a==1", "pytest==9"]},
            {"ref": "a==1", "dependsOn": ["b==2"]},
            {"ref": "pytest==9", "dependsOn": ["a==1"]},
        ],
    }
    found = bill(everything, {"a-a": "1", "b": "3", "other": "4"}, "7.0.0")
    assert [each["name"] for each in found["components"]] == ["A_a"]
    assert found["dependencies"] == [{"ref": "root", "dependsOn": ["a==1"]}, {"ref": "a==1", "dependsOn": []}]
    assert found["metadata"] == {"component": {"bom-ref": "root", "version": "7.0.0"}}


CLEAN = {"name": "a", "version": "1", "vulns": []}
UNKNOWN = {"name": "b", "skip_reason": "not reached"}
FAULTY = {"name": "c", "version": "3", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1", "4"]}]}
UNMENDED = {"name": "d", "version": "4", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]}


@pytest.mark.parametrize(
    ("dependencies", "code", "lines"),
    [
        pytest.param([CLEAN], 0, ["PASS nothing is known against 1 packages"], id="clean"),
        pytest.param(
            [CLEAN, FAULTY, UNMENDED],
            1,
            [
                "FAIL c 3: PYSEC-1, mended in 3.1, 4",
                "FAIL d 4: PYSEC-2, mended in no release",
                "hint: make lock UPGRADE=1",
            ],
            id="found",
        ),
        pytest.param(
            [FAULTY, UNKNOWN], 1, ["FAIL c 3: PYSEC-1, mended in 3.1, 4", "hint: make lock UPGRADE=1"], id="both"
        ),
        pytest.param(
            [CLEAN, UNKNOWN], 1, ["FAIL nothing is known of b", "hint: make audit, once more"], id="one_not_reached"
        ),
        pytest.param(
            [UNKNOWN, UNKNOWN],
            0,
            ["SKIPPED: PyPI's data of vulnerabilities can't be reached from here"],
            id="none_reached",
        ),
    ],
)
def test_audit_is_judged(dependencies, code, lines):
    """What is known against a package fails, and so does a gap; only where nothing could be asked is it skipped."""
    assert judged({"dependencies": dependencies}) == (code, lines)


# --- mutants ----------------------------------------------------------------------------------------------------------

EXPLAINED = {
    "same": {'"ascii" -> "ASCII"': "no case"},
    "gate": {"return None": "as good", "a -> b": "the same"},
}


@pytest.mark.parametrize(
    ("name", "was", "became", "why"),
    [
        ("proxy.policy.gate.x_f__mutmut_1", "return 0", "return None", "as good"),
        ("proxy.policy.gate.x_f__mutmut_1", "a", "b", "the same"),
        ("proxy.policy.gate.x_f__mutmut_1", "c", "b", None),
        ("proxy.logs.audit.x_f__mutmut_1", "return 0", "return None", None),
        ("proxy.logs.audit.x_f__mutmut_1", 'x.encode("ascii")', 'x.encode("ASCII")', "no case"),
        ("proxy.logs.audit.x_f__mutmut_1", 'f("ascii", "ascii")', 'f("ascii", "ASCII")', "no case"),
        ("proxy.logs.audit.x_f__mutmut_1", 'x.encode("ascii")', 'y.encode("ASCII")', None),
        ("proxy.logs.audit.x_f__mutmut_1", "x", "x", None),
    ],
)
def test_a_change_is_explained_by_its_own_line(name, was, became, why):
    """A change is explained by what its line became, in its own module, or by what means the same in any."""
    assert explanation(Mutant(name, was, became), EXPLAINED) == why


VARIANTS = """
class C:
    def xǁCǁf__mutmut_orig(self) -> int:
        value = 1
        return value

    def xǁCǁf__mutmut_1(self) -> int:
        value = 2
        return value

async def x_g__mutmut_orig(a: int = 1) -> None:
    pass

async def x_g__mutmut_1(a: int = 2) -> None:
    pass
"""


@pytest.mark.parametrize(
    ("name", "was", "became"),
    [
        ("m.xǁCǁf__mutmut_1", "value = 1", "value = 2"),
        ("m.x_g__mutmut_1", "async def g(a: int = 1) -> None:", "async def g(a: int = 2) -> None:"),
    ],
)
def test_a_change_is_shown_by_its_lines(name, was, became):
    """A change is the lines of a function that differ, with the name that the function has in the module."""
    assert mutants.changes(VARIANTS, [name]) == [Mutant(name, was, became)]


def test_mutants_are_made_of_modules_with_tests():
    """Each module that is changed is there, and so are the tests that decide about it."""
    for module in MODULES:
        assert all((ROOT / file).exists() for file in (mutants.source(module), *mutants.tests_of(module)))


def test_explanations_can_be_read():
    """survivors.toml is TOML, and each change that may go unnoticed has its reason."""
    explained = tomllib.loads(mutants.EXPLAINED.read_text())
    assert set(explained) <= {"same", *(Path(module).name for module in MODULES)}
    assert all(why for reasons in explained.values() for why in reasons.values())
