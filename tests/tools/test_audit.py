"""`make audit`: sound only where everything was looked up and nothing was found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).parent.parent.parent / "tools" / "audit.py"

GOOD: dict[str, Any] = {"name": "numpy", "version": "2", "vulns": []}
BAD: dict[str, Any] = {"name": "pillow", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
SKIPPED: dict[str, Any] = {"name": "torch", "skip_reason": "not found"}


def audit(folder: Path, **reports: list[dict[str, Any]]) -> "subprocess.CompletedProcess[str]":
    """Run it with a pip-audit that reports this for each service, and writes no report for any other."""
    program = folder / "pip-audit"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, sys\n"
        "arguments = sys.argv\n"
        f"reports = json.loads({json.dumps(json.dumps(reports))})\n"
        "service = arguments[arguments.index('--vulnerability-service') + 1]\n"
        "if service in reports:\n"
        "    report = pathlib.Path(arguments[arguments.index('--output') + 1])\n"
        "    report.write_text(json.dumps({'dependencies': reports[service]}))\n"
        "sys.exit(1)\n"
    )
    program.chmod(0o755)
    command = [sys.executable, str(AUDIT), str(program), "constraints.txt"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("reports", "status", "said"),
    [
        ({"pypi": [GOOD]}, 0, "audit: 1 versions, no findings"),
        ({"pypi": [GOOD, BAD]}, 1, "pillow 1: PYSEC-1; fixed in: 2"),
        ({"pypi": [GOOD, SKIPPED]}, 2, "torch: not looked up: not found"),
        ({"pypi": [SKIPPED], "osv": [GOOD]}, 0, "audit: 1 versions, no findings"),
        ({"osv": [BAD]}, 1, "pillow 1: PYSEC-1"),
    ],
)
def test_verdict(tmp_path: Path, reports: dict[str, list[dict[str, Any]]], status: int, said: str) -> None:
    done = audit(tmp_path, **reports)
    assert done.returncode == status, done.stderr
    assert said in done.stdout


@pytest.mark.parametrize("reports", [{}, {"pypi": [SKIPPED]}])
def test_without_an_answer_it_fails_with_one_line(tmp_path: Path, reports: dict[str, list[dict[str, Any]]]) -> None:
    done = audit(tmp_path, **reports)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "neither pypi.org nor api.osv.dev answers" in done.stderr
