"""What an install builds the service from: a checkout, or the copy that uv, pipx or pip unpacked from a wheel."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from proxy import __version__
from proxy.manage.machine import source
from proxy.manage.machine.source import WHEEL, Checkout, Package
from proxy.manage.machine.steps import StepError
from tests.support.mac.fake_mac import Mac

ROOT = Path(__file__).parent.parent.parent
INFO = f"remote_ollama_proxy-{__version__}.dist-info"
RECORDED = {
    "proxy/__init__.py": b"__version__ = '0'\n",
    "proxy/requirements.lock": b"aiohttp==3 --hash=sha256:0\n",
    f"{INFO}/METADATA": f"Name: remote-ollama-proxy\nVersion: {__version__}\n".encode(),
    f"{INFO}/entry_points.txt": b"[console_scripts]\n",
}
LEFT_BY_TOOLS = {
    f"{INFO}/INSTALLER": b"uv",
    f"{INFO}/direct_url.json": b"{}",
    f"{INFO}/uv_cache.json": b"{}",
}


def digest(content):
    """Return a hash as the specification of RECORD has it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Give a folder with the package as a tool leaves it, which is the one that runs."""
    folder = tmp_path / "site-packages"
    rows = [["../../../bin/remote-ollama-proxy", digest(b""), "0"], ["proxy/__pycache__/x.pyc", "", ""]]
    for path, content in {**RECORDED, **LEFT_BY_TOOLS}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        rows.append([path, digest(content), str(len(content))])
    record = folder / f"{INFO}/RECORD"
    text = io.StringIO()
    csv.writer(text).writerows([*rows, [str(record.relative_to(folder)), "", ""]])
    record.write_text(text.getvalue())
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(source.proxy, "__file__", str(folder / "proxy/__init__.py"))
    return folder


# --- the copy that runs ---------------------------------------------------------------------------------------------


def test_wheel_has_what_came_in_a_wheel(site, tmp_path):
    """The wheel holds the files that were recorded, and none that a tool left, with a record of its own."""
    Package.here().make_wheel(None, tmp_path)
    with zipfile.ZipFile(tmp_path / WHEEL) as wheel:
        held = {name: wheel.read(name) for name in wheel.namelist()}
    rows = list(csv.reader(held.pop(f"{INFO}/RECORD").decode().splitlines()))
    assert held == RECORDED
    assert rows[:-1] == [[path, digest(content), str(len(content))] for path, content in RECORDED.items()]
    assert rows[-1] == [f"{INFO}/RECORD", "", ""]


@pytest.mark.parametrize(
    "row",
    ["", "proxy/x.py", f",{digest(b'')},0", f"proxy/../../secret,{digest(b'secret')},6", f"/proxy/x,{digest(b'')},0"],
    ids=["blank", "path_alone", "no_path", "outside", "absolute"],
)
def test_odd_row_of_a_record_is_passed_over(site, tmp_path, row):
    """A row that no installer writes adds nothing to the wheel, and above all no file from elsewhere."""
    (tmp_path / "secret").write_text("secret")
    with (site / f"{INFO}/RECORD").open("a") as record:
        record.write(f"{row}\n")
    assert set(Package.here().hashes) == set(RECORDED)


def test_file_that_nobody_recorded_stays_out(site, tmp_path):
    """A module that was put next to the others after the install doesn't reach the service."""
    (site / "proxy" / "gift.py").write_text("raise SystemExit\n")
    package = Package.here()
    package.make_wheel(None, tmp_path)
    assert "proxy/gift.py" not in zipfile.ZipFile(tmp_path / WHEEL).namelist()


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        pytest.param("proxy/__init__.py", lambda file: file.write_text("0"), "was changed after", id="code"),
        pytest.param("proxy/requirements.lock", lambda file: file.write_text(""), "was changed after", id="lock"),
        pytest.param("proxy/__init__.py", Path.unlink, "can't be read", id="gone"),
    ],
)
def test_changed_copy_is_refused(site, tmp_path, path, change, words):
    """A file that isn't what the owner installed stops the build, and the hint says how to get the right one."""
    package = Package.here()
    change(site / path)
    with pytest.raises(StepError, match=words) as error:
        package.make_wheel(None, tmp_path)
    assert str(site / path) in str(error.value)
    assert "uv tool install --force" in error.value.hint


def test_version_is_that_of_the_code(site):
    """Another line of code is another version; another text in the metadata isn't."""
    before = Package.here()
    assert before.version.startswith(f"{__version__}-")
    record = site / f"{INFO}/RECORD"
    text = record.read_text()
    for path, same in ((f"{INFO}/METADATA", True), ("proxy/requirements.lock", False)):
        record.write_text(text.replace(digest(RECORDED[path]), digest(b"other")))
        assert (Package.here().version == before.version) is same, path


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda site: next(site.glob("*.dist-info/RECORD")).unlink(), id="no_record"),
        pytest.param(lambda site: shutil.rmtree(next(site.glob("*.dist-info"))), id="no_metadata"),
        pytest.param(lambda site: (site / "proxy").rename(site / "elsewhere"), id="another_copy_runs"),
    ],
)
def test_copy_without_a_record(site, monkeypatch, change):
    """A copy that no tool recorded, or whose record is of another copy, can't be installed from."""
    change(site)
    if not (site / "proxy").exists():
        monkeypatch.setattr(source.proxy, "__file__", str(site / "elsewhere/__init__.py"))
    assert Package.here() is None
    assert source.here() is None


def test_checkout_comes_first(monkeypatch):
    """A clone installs itself, though its package is installed in its environment too."""
    assert isinstance(source.here(), Checkout)


# --- whose command it is --------------------------------------------------------------------------------------------


@pytest.fixture
def mac(tmp_path):
    """Give a Mac whose Ollama and proxy do nothing."""
    mac = Mac(tmp_path)
    yield mac
    mac.close()


@pytest.fixture
def tool(mac, monkeypatch):
    """Give the folder of a tool's environment, which runs, with its command on the PATH as uv and pipx put it there."""
    folder = mac.home / ".local/share/uv/tools/remote-ollama-proxy"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/remote-ollama-proxy").write_text("#!/bin/sh\n")
    mac.machine().link.parent.mkdir(parents=True)
    mac.machine().link.symlink_to(folder / "bin/remote-ollama-proxy")
    monkeypatch.setattr(sys, "prefix", str(folder))
    return folder


def test_tools_command_stays(mac, tool):
    """The command that uv or pipx put on the PATH stays theirs through install and uninstall, which names it."""
    link = mac.machine().link
    before = link.readlink()
    assert mac.install() == 0
    assert mac.uninstall() == 0
    assert link.readlink() == before
    assert any(line.endswith("or `pipx uninstall remote-ollama-proxy` removes") for line in mac.heard.lines)


def test_command_of_another_copy(mac, tool, monkeypatch):
    """A command that belongs to another copy than the one that runs is not taken over."""
    monkeypatch.setattr(sys, "prefix", str(mac.home))
    assert mac.install() == 1
    assert [finding.name for finding in mac.heard.seen if finding.outcome == "fail"] == ["command"]
