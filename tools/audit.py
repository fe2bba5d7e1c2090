"""`make audit`: looks up known vulnerabilities of the versions that constraints.txt pins.

It runs pip-audit against PyPI and, if PyPI does not answer, against OSV. pip-audit reads the pages of single versions,
which a mirror of PyPI may lack. The mirror's page of a project lists the vulnerabilities of its latest version, so pins
to the latest version are looked up there. The audit fails if any version could not be looked up.

usage: python tools/audit.py PIP_AUDIT CONSTRAINTS [INDEX]
"""

import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SERVICES = {"pypi": "pypi.org", "osv": "api.osv.dev"}

SOUND, VULNERABLE, UNKNOWN = 0, 1, 2
"""The exit statuses."""

INDEX = "https://pypi.org"
CONNECTIONS = 4
TIMEOUT_S = 60

Dependency = dict[str, Any]


def main(pip_audit: str, constraints: str, index: str = INDEX) -> int:
    """Looks up all pins. Returns the exit status."""
    for service in SERVICES:
        dependencies = ask(service, pip_audit, constraints)
        if any("vulns" in one for one in dependencies):
            return report(dependencies)
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        dependencies = list(threads.map(lambda pin: ask_page(index, *pin), pins(Path(constraints))))
    if any("vulns" in one for one in dependencies):
        return report(dependencies)
    hosts = " nor ".join(SERVICES.values())
    sys.stderr.write(
        f"audit: neither {hosts} answers for the pinned versions; run it where one of them can be reached\n"
    )
    return UNKNOWN


def ask(service: str, pip_audit: str, constraints: str) -> list[Dependency]:
    """Returns `vulns` or a `skip_reason` for each version; an empty list if the service cannot be reached."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [pip_audit, "--requirement", constraints, "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        command += ["--vulnerability-service", service, "--format", "json", "--output", str(report)]
        subprocess.run(command, capture_output=True, check=False)  # status 1 may be an error too
        found: list[Dependency] = json.loads(report.read_text())["dependencies"] if report.exists() else []
        return found


def pins(constraints: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and the version of each pin."""
    for line in constraints.read_text(encoding="utf-8").splitlines():
        if pin := re.match(r"([A-Za-z0-9._-]+)==([^\s;+]+)", line):
            yield pin[1], pin[2]


def ask_page(index: str, name: str, version: str) -> Dependency:
    """Returns the vulnerabilities on the project's page, if `version` is its latest; otherwise a `skip_reason`."""
    try:
        with urllib.request.urlopen(f"{index}/pypi/{name}/json", timeout=TIMEOUT_S) as answer:
            page = json.load(answer)
        latest, known = page["info"]["version"], page["vulnerabilities"]
    except (OSError, ValueError, KeyError) as error:
        return {"name": name, "skip_reason": f"{index} has no page of the project ({error})"}
    if latest != version:
        return {"name": name, "skip_reason": f"{version} is pinned, and {index} has only {latest}"}
    found = [{"id": one["id"], "fix_versions": one["fixed_in"]} for one in known if not one.get("withdrawn")]
    return {"name": name, "version": version, "vulns": found}


def report(dependencies: list[Dependency]) -> int:
    """Prints a line for each vulnerability and each version without an answer. Returns the exit status."""
    for one in dependencies:
        if "vulns" not in one:
            sys.stdout.write(f"{one['name']}: not looked up: {one.get('skip_reason', 'no reason given')}\n")
        for vulnerability in one.get("vulns", ()):
            fixed = ", ".join(vulnerability.get("fix_versions") or ()) or "none yet"
            sys.stdout.write(f"{one['name']} {one['version']}: {vulnerability['id']}; fixed in: {fixed}\n")
    looked_up = sum("vulns" in one for one in dependencies)
    vulnerable = sum(bool(one.get("vulns")) for one in dependencies)
    sys.stdout.write(f"audit: {looked_up} of {len(dependencies)} versions looked up, {vulnerable} vulnerable\n")
    return VULNERABLE if vulnerable else UNKNOWN if looked_up < len(dependencies) else SOUND


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
