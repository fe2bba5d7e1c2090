"""Tests `make audit`: it succeeds only if every version was looked up and no vulnerability was found."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

AUDIT = Path(__file__).parent.parent.parent / "tools" / "audit.py"

GOOD: dict[str, Any] = {"name": "numpy", "version": "2", "vulns": []}
BAD: dict[str, Any] = {"name": "pillow", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
SKIPPED: dict[str, Any] = {"name": "torch", "skip_reason": "not found"}


Reports = dict[str, list[dict[str, Any]]]

NOWHERE = "http://127.0.0.1:9"


def audit(folder: Path, reports: Reports, index: str = NOWHERE) -> "subprocess.CompletedProcess[str]":
    """Runs the audit with a fake pip-audit, which writes `reports` by service, and none for other services."""
    constraints = folder / "constraints.txt"
    constraints.write_text("# pinned\nnumpy==2\npillow==1\ntorch==3.0+cpu\n")
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
    command = [sys.executable, str(AUDIT), str(program), str(constraints), index]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("reports", "status", "said"),
    [
        ({"pypi": [GOOD]}, 0, "audit: 1 of 1 versions looked up, 0 vulnerable"),
        ({"pypi": [GOOD, BAD]}, 1, "pillow 1: PYSEC-1; fixed in: 2"),
        ({"pypi": [GOOD, SKIPPED]}, 2, "torch: not looked up: not found"),
        ({"pypi": [SKIPPED], "osv": [GOOD]}, 0, "audit: 1 of 1 versions looked up, 0 vulnerable"),
        ({"pypi": [BAD, SKIPPED]}, 1, "audit: 1 of 2 versions looked up, 1 vulnerable"),
        ({"osv": [BAD]}, 1, "pillow 1: PYSEC-1"),
    ],
)
def test_verdict(tmp_path: Path, reports: Reports, status: int, said: str) -> None:
    done = audit(tmp_path, reports)
    assert done.returncode == status, done.stderr
    assert said in done.stdout


@pytest.mark.parametrize("reports", [{}, {"pypi": [SKIPPED]}])
def test_without_an_answer_it_fails_with_one_line(tmp_path: Path, reports: Reports) -> None:
    done = audit(tmp_path, reports)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "neither pypi.org nor api.osv.dev answers" in done.stderr


class Pages(BaseHTTPRequestHandler):
    """Stands for a package index that has pages of projects, but not of versions."""

    latest: ClassVar[dict[str, str]] = {"numpy": "2", "pillow": "1", "torch": "3.0"}
    known: ClassVar[dict[str, list[dict[str, Any]]]] = {}

    def do_GET(self) -> None:
        _, _, name, _ = self.path.split("/")
        page = {"info": {"version": self.latest[name]}, "vulnerabilities": self.known.get(name, [])}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(page).encode())

    def log_message(self, *_: object) -> None:
        """Keeps the server's log out of the test's output."""


@pytest.fixture
def index() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_index_without_pages_of_versions_answers_for_latest_versions(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = audit(tmp_path, {"pypi": [SKIPPED]}, index)
    assert (done.returncode, done.stdout) == (0, "audit: 3 of 3 versions looked up, 0 vulnerable\n")
    monkeypatch.setattr(Pages, "latest", {**Pages.latest, "torch": "3.1"})
    done = audit(tmp_path, {}, index)
    assert done.returncode == 2
    assert f"torch: not looked up: 3.0 is pinned, and {index} has only 3.1" in done.stdout
    known = [{"id": "PYSEC-1", "fixed_in": ["2"]}, {"id": "PYSEC-2", "fixed_in": [], "withdrawn": "2026-01-01"}]
    monkeypatch.setattr(Pages, "known", {"pillow": known})
    done = audit(tmp_path, {}, index)
    assert done.returncode == 1
    assert "pillow 1: PYSEC-1; fixed in: 2" in done.stdout
    assert "PYSEC-2" not in done.stdout
    assert done.stdout.endswith("audit: 2 of 3 versions looked up, 1 vulnerable\n")
