"""`make sbom` and `make audit`: what the installed proxy consists of, its licences, and what is known against it.

Both speak of the packages in requirements.lock, which is what `install` puts on the Mac, and of nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from proxy import __version__

ROOT = Path(__file__).parent.parent.parent
LOCK = ROOT / "requirements.lock"


def packages(lock: str) -> dict[str, str]:
    """Return name and version of each package of a lock file; those for other systems are among them."""
    return dict(re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE))


def normal(name: str) -> str:
    """Return a package's name as lock files have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill(everything: dict[str, Any], wanted: dict[str, str], version: str) -> dict[str, Any]:
    """Return, of a CycloneDX list of an environment, what concerns the packages `wanted` of our `version`."""
    kept = [each for each in everything["components"] if wanted.get(normal(each["name"])) == each["version"]]
    names = {each["bom-ref"] for each in kept} | {everything["metadata"]["component"]["bom-ref"]}
    links = [
        {**each, "dependsOn": sorted(names.intersection(each.get("dependsOn", [])))}
        for each in everything.get("dependencies", [])
        if each["ref"] in names
    ]
    root = {**everything["metadata"]["component"], "version": version}  # pyproject.toml, which it is from, has none
    metadata = {**everything["metadata"], "component": root}
    return {**everything, "metadata": metadata, "components": kept, "dependencies": links}


def licence(name: str) -> str:
    """Return the licence that an installed package says it has."""
    reported = metadata(name)
    lines = reported.get_all("Classifier", [])
    classified = [line.rpartition(" :: ")[2] for line in lines if line.startswith("License ::")]
    plain = ["".join(reported.get_all(key, [])) for key in ("License-Expression", "License")]
    return plain[0] or ", ".join(classified) or (plain[1] or "unknown").splitlines()[0]


def sbom(target: Path) -> int:
    """Write the list to `target` and print the licences; return the exit code."""
    tool = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    reported = subprocess.run(
        [*tool, "--pyproject", "pyproject.toml", sys.executable], cwd=ROOT, check=True, capture_output=True
    )
    found = bill(json.loads(reported.stdout), packages(LOCK.read_text()), __version__)
    target.write_text(json.dumps(found, indent=2) + "\n")
    for each in found["components"]:
        print(f"{each['name']:<22} {each['version']:<10} {licence(each['name'])}")
    print(f"{len(found['components'])} packages; {target}", file=sys.stderr)
    return 0


def judged(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the exit code for what pip-audit reports, and what to print."""
    found, unknown = [], []
    for each in report["dependencies"]:
        if "skip_reason" in each:
            unknown.append(each["name"])
        for fault in each.get("vulns", []):
            mended = ", ".join(fault["fix_versions"]) or "no release"
            found.append(f"FAIL {each['name']} {each['version']}: {fault['id']}, mended in {mended}")
    if found:
        return 1, [*found, "hint: make lock UPGRADE=1"]
    if len(unknown) == len(report["dependencies"]):
        return 0, ["SKIPPED: PyPI's data of vulnerabilities can't be reached from here"]
    if unknown:
        return 1, [f"FAIL nothing is known of {', '.join(unknown)}", "hint: make audit, once more"]
    return 0, [f"PASS nothing is known against {len(report['dependencies'])} packages"]


def audit() -> int:
    """Ask for what is known against each package; return the exit code."""
    tool = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    reported = subprocess.run([*tool, "-r", LOCK, "-f", "json"], cwd=ROOT, check=False, capture_output=True, text=True)
    try:
        report = json.loads(reported.stdout)
    except ValueError:
        said = (reported.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"SKIPPED: pip-audit could not ask: {said}")
        return 0
    code, lines = judged(report)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(audit() if sys.argv[1] == "audit" else sbom(Path(sys.argv[2])))
