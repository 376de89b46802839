"""`make release`: when it refuses, what it changes, what it makes, and that a failure leaves no trace."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy import __version__
from tests.tools import release
from tests.tools.release import MODULE, RefusedError

ROOT = Path(__file__).parent.parent
TREE = {
    MODULE: '"""A gateway."""\n\n__version__ = "1.2.3"\n',
    "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n### Fixed\n\n- It holds.\n\n## 1.2.3, 2026-01-02\n\n- It began.\n",
    "README.md": "uv tool install ./remote_ollama_proxy-1.2.3-py3-none-any.whl\n",
    "docs/setup.md": "uv tool install git+ADDRESS@v1.2.3  # not git+ADDRESS@v1.2.30\n",
}
WELL, RED = (sys.executable, "-c", ""), (sys.executable, "-c", "raise SystemExit(1)")


@pytest.fixture
def tree(tmp_path):
    """Give a repository with one commit."""
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".gitignore").write_text("dist/\n")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(tree, *words):
    """Run git as someone."""
    somebody = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *somebody, *words], cwd=tree, check=True, capture_output=True, text=True).stdout


def commit(tree):
    """Commit all there is."""
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "tree: begin")


def builder(root, version, folder):
    """Build a wheel of nothing."""
    assert f'"{version}"' in (root / MODULE).read_text()
    (folder / "x.whl").write_bytes(b"wheel")


def contents(tree):
    """Return each file of the release's with its text."""
    return {name: (tree / name).read_text() for name in TREE}


def test_release(tree):
    """It writes the version where it stands, closes the section of the changelog, and makes files with checksums."""
    folder = release.release(tree, "1.3.0", WELL, builder)
    day = datetime.now(UTC).date()
    assert contents(tree) == {
        MODULE: '"""A gateway."""\n\n__version__ = "1.3.0"\n',
        "CHANGELOG.md": f"# Changelog\n\n## Unreleased\n\n## 1.3.0, {day}\n\n### Fixed\n\n- It holds.\n\n"
        "## 1.2.3, 2026-01-02\n\n- It began.\n",
        "README.md": "uv tool install ./remote_ollama_proxy-1.3.0-py3-none-any.whl\n",
        "docs/setup.md": "uv tool install git+ADDRESS@v1.3.0  # not git+ADDRESS@v1.2.30\n",
    }
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "x.whl": "wheel",
        "SHA256SUMS": f"{hashlib.sha256(b'wheel').hexdigest()}  x.whl\n",
        "NOTES.md": "### Fixed\n\n- It holds.\n",
    }


def test_publishes_nothing(tree):
    """It commits and tags nothing, and the commands that do so are printed for the owner."""
    before = git(tree, "log", "--format=%H")
    release.release(tree, "1.3.0", WELL, builder)
    assert (git(tree, "log", "--format=%H"), git(tree, "tag")) == (before, "")
    words = [line.split()[:2] for line in release.following("1.3.0").splitlines()]
    assert words == [["git", "commit"], ["git", "tag"], ["git", "push"], ["gh", "release"]]


def test_first_release(tree):
    """The version that the tree has already can be released, as long as it has no tag."""
    assert release.release(tree, "1.2.3", WELL, builder).name == "1.2.3"


def silence(tree):
    """Commit a changelog without anything new."""
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 1.2.3, 2026-01-02\n\n- It began.\n")
    commit(tree)


@pytest.mark.parametrize(
    ("version", "change", "words"),
    [
        pytest.param("", lambda tree: None, "takes three numbers", id="no_version"),
        pytest.param("v1.3.0", lambda tree: None, "takes three numbers", id="with_a_v"),
        pytest.param("1.3", lambda tree: None, "takes three numbers", id="two_numbers"),
        pytest.param("1.03.0", lambda tree: None, "takes three numbers", id="leading_zero"),
        pytest.param("1.2.2", lambda tree: None, "older than 1.2.3", id="older"),
        pytest.param("1.3.0", lambda tree: (tree / MODULE).write_text("x = 1\n"), "no commit has", id="changed"),
        pytest.param(
            "1.3.0", lambda tree: (tree / "new.py").write_text(""), "no commit has:\n?? new.py", id="new_file"
        ),
        pytest.param("1.3.0", lambda tree: git(tree, "tag", "v1.3.0"), "released already", id="tagged"),
        pytest.param("1.3.0", silence, "nothing under Unreleased", id="nothing_new"),
    ],
)
def test_refusal(tree, version, change, words):
    """What can't be released is refused before anything is changed or tested, with a command that helps."""
    change(tree)
    before = git(tree, "status", "--porcelain")
    with pytest.raises(RefusedError, match=words.replace("?", r"\?")) as refused:
        release.release(tree, version, RED, builder)
    assert refused.value.hint
    assert git(tree, "status", "--porcelain") == before
    assert not (tree / "dist").exists()


def broken(root, version, folder):
    """Fail in the middle of a build."""
    builder(root, version, folder)
    raise RefusedError("the build failed", "again")


@pytest.mark.parametrize(
    ("suite", "build", "words"),
    [
        pytest.param(RED, builder, "the suite failed", id="red_suite"),
        pytest.param(WELL, broken, "the build failed", id="build"),
    ],
)
def test_failure_leaves_no_trace(tree, suite, build, words):
    """After a red suite or a build that fails the tree is what it was, and there are no files of a release."""
    with pytest.raises(RefusedError, match=words):
        release.release(tree, "1.3.0", suite, build)
    assert contents(tree) == TREE
    assert git(tree, "status", "--porcelain", "--ignored") == ""


def test_suite_sees_the_release(tree):
    """The suite runs on the tree as it will be released."""
    looks = (sys.executable, "-c", f"assert '1.3.0' in open({MODULE!r}).read()")
    release.release(tree, "1.3.0", looks, builder)


def test_this_tree_can_be_released():
    """The version stands where it is looked for, and each page that is rewritten names the present release."""
    assert release.current((ROOT / MODULE).read_text()) == __version__
    for name in release.PAGES:
        text = (ROOT / name).read_text()
        assert release.released(text, __version__, "999.0.0", "today") != text
