"""A life of an install on a Mac of fakes, from the copy of the program that runs this: one of uv, pipx or pip.

    uv tool install --with pytest WHEEL
    ~/.local/share/uv/tools/remote-ollama-proxy/bin/python tests/tools/without_a_clone.py FOLDER [--packages FOLDER]

FOLDER is empty and becomes the Mac. The service gets its packages from the registry, as a real one does, or finds them
in the folder that `--packages` names.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import sys
import urllib.error
import urllib.request
from pathlib import Path

# Last, so that the package is that of the copy that runs.
sys.path[:] = [*sys.path[1:], str(Path(__file__).parent.parent.parent)]

import proxy  # noqa: E402
from proxy.manage.machine import environment  # noqa: E402
from proxy.manage.machine.source import Package  # noqa: E402
from tests.support.mac.fake_mac import Mac  # noqa: E402


def builder(packages):
    """Return what builds an environment: as an owner's, or with `packages` instead of what a registry has."""
    if packages is None:
        return environment.build
    commands_for = environment.commands_for

    def without_registry(*given):
        venv, _, wheel = commands_for(*given)
        venv.insert(-1, "--without-pip")  # it is among the packages
        link = f"import pathlib, site; pathlib.Path(site.getsitepackages()[0], 'more.pth').write_text({packages!r})"
        return [venv, [wheel[0], "-I", "-c", link], wheel]

    environment.commands_for = without_registry
    return environment.build


def status(port, method, path):
    """Return the status of an answer of the installed proxy."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@contextlib.contextmanager
def changed(more, *, recorded):
    """Have one module of this copy be another, with or without the record of what was unpacked."""
    file = Path(proxy.__file__)
    record = next(file.parent.parent.glob("remote_ollama_proxy-*.dist-info/RECORD"))
    kept = {path: path.read_bytes() for path in (file, record)}
    file.write_bytes(kept[file] + more)
    if recorded:
        known, now = (digest(path).encode() for path in (kept[file], kept[file] + more))
        record.write_bytes(kept[record].replace(known, now))
    yield
    for path, content in kept.items():
        path.write_bytes(content)


def digest(content):
    """Return a hash as a RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def live(mac, build):
    """Install, install again, upgrade, meet a changed file, and uninstall; print what came of each."""
    own = Path(sys.prefix) / "bin" / "remote-ollama-proxy"
    machine = mac.machine()
    machine.link.parent.mkdir(parents=True)
    machine.link.symlink_to(own)  # as uv and pipx do
    port, _ = mac.on_loopback()
    # Where the settings are looked for when this isn't macOS.
    (mac.home / ".config").symlink_to("Library/Application Support")
    print("install", mac.install(builder=build, seconds=60.0), *mac.heard.errors)
    print("version", *[path.name for path in machine.versions.iterdir()])
    print("answers", status(port, "GET", "/api/version"), status(port, "POST", "/api/pull"))
    (folder,) = machine.versions.iterdir()
    ran = machine.run(folder / "bin/python", "-I", "-c", "import proxy; print(proxy.__file__)").out.strip()
    print("service", Path(ran).is_relative_to(folder) or ran)
    print("again", mac.install(builder=build, seconds=60.0), len(mac.heard.taken()))
    with changed(b"# a newer release\n", recorded=True):
        print(
            "upgrade",
            mac.install(builder=build, seconds=60.0),
            [path.name for path in machine.versions.iterdir()] == [Package.here().version] != [folder.name],
        )
        print("answers", status(port, "GET", "/api/version"), status(port, "POST", "/api/pull"))
    with changed(b"# not what was installed\n", recorded=False):
        next(machine.versions.glob("*/.made-of")).unlink()  # so that it is to be built again
        print("changed", mac.install(builder=build, seconds=60.0), "was changed after" in mac.heard.errors[0][0])
        print("answers", status(port, "GET", "/api/version"))
    print("uninstall", mac.uninstall(), machine.versions.exists(), machine.link.readlink() == own)


def main():
    """Run it; the exit code is 0 when it came to its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages")
    given = parser.parse_args()
    print("source", Package.here().version)
    mac = Mac(given.folder, silent=False)
    try:
        live(mac, builder(given.packages))
    finally:
        mac.close()


if __name__ == "__main__":
    main()
