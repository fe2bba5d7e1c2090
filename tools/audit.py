"""`make audit`: are there known vulnerabilities in the versions that constraints.txt pins?

Runs pip-audit against PyPI and, where that has no answer, against OSV. Fails with one line where neither has: what was
not looked up is not reported as sound.

usage: python tools/audit.py PIP_AUDIT CONSTRAINTS
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SERVICES = {"pypi": "pypi.org", "osv": "api.osv.dev"}

SOUND, VULNERABLE, UNKNOWN = 0, 1, 2


def main(pip_audit: str, constraints: str) -> int:
    for service in SERVICES:
        dependencies = ask(service, pip_audit, constraints)
        if any("vulns" in one for one in dependencies):
            return tell(dependencies)
    hosts = " nor ".join(SERVICES.values())
    sys.stderr.write(
        f"audit: neither {hosts} answers for the versions pinned; run it where one of them can be reached\n"
    )
    return UNKNOWN


def ask(service: str, pip_audit: str, constraints: str) -> list[dict[str, Any]]:
    """What the service knows of each version: `vulns`, or a `skip_reason`. Nothing where it cannot be reached."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [pip_audit, "--requirement", constraints, "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        command += ["--vulnerability-service", service, "--format", "json", "--output", str(report)]
        subprocess.run(command, capture_output=True, check=False)  # its status is 1 for what it found and for all else
        found: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"] if report.exists() else []
        return found


def tell(dependencies: list[dict[str, Any]]) -> int:
    """Print a line for each vulnerability and each version that is not known; returns the exit status."""
    status = SOUND
    for one in dependencies:
        if "vulns" not in one:
            status = max(status, UNKNOWN)
            sys.stdout.write(f"{one['name']}: not looked up: {one.get('skip_reason', 'no reason given')}\n")
        for vulnerability in one.get("vulns", ()):
            status = max(status, VULNERABLE)
            fixed = ", ".join(vulnerability.get("fix_versions") or ()) or "none yet"
            sys.stdout.write(f"{one['name']} {one['version']}: {vulnerability['id']}; fixed in: {fixed}\n")
    sys.stdout.write(f"audit: {len(dependencies)} versions, {'no' if status == SOUND else 'with'} findings\n")
    return status


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
