"""Tests that each room imports only the rooms that docs/architecture.md permits. Reads every import statement."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ROOMS = {
    "protos": set[str](),
    "photos": set[str](),
    "client": {"protos", "photos"},
    "cli": {"protos", "photos", "client"},
    "runtime": {"protos", "photos"},
    "engines": {"protos", "photos", "runtime"},
    "server": {"protos", "photos", "runtime", "engines"},
    "model": {"protos", "photos"},
    "worker": {"protos", "photos", "runtime", "model"},
    "export": {"protos", "photos", "runtime", "engines", "model"},
    "studies": {"protos", "photos", "client", "cli", "model"},
}
PRODUCT = set(ROOMS)
ROOMS |= {"bench": PRODUCT, "tools": PRODUCT}
"""Bench and tools may import the whole product. No room may import them, so only tests do."""

_ENGINES = {"onnxruntime", "openvino", "tensorrt"}
FOREIGN = {"torch", "onnx", "numpy", "safetensors", "matplotlib", "sklearn", "captum"} | _ENGINES
"""Heavy libraries; a room may import only those listed for it."""
ALLOWED_FOREIGN = {
    "protos": set[str](),
    "photos": set[str](),
    "client": set[str](),
    "cli": set[str](),
    "runtime": set[str](),
    "engines": {"numpy", "onnx", "onnxruntime", "openvino"},
    "server": {"numpy"},
    "model": {"torch", "onnx", "numpy", "safetensors", "matplotlib"},
    "worker": {"torch", "numpy"},
    "export": {"torch", "numpy", "onnx", "onnxruntime", "matplotlib"},
    "studies": {"torch", "numpy", "matplotlib", "sklearn"},
    "bench": FOREIGN,
    "tools": FOREIGN,
}


def imports(source: str) -> Iterator[str]:
    """The first part of every module named in an import statement, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def package(room: str) -> str:
    """Returns the name of the room's import package. The client's is the name of the product."""
    return {"client": "zfserve", "tools": "tools"}.get(room, f"zfserve_{room}")


def folder(room: str) -> Path:
    """Returns the folder of the room's import package. The room of tools is its own package."""
    return ROOT / room if room == "tools" else ROOT / room / package(room)


def trespasses(room: str, source: str) -> list[str]:
    """Imports in `source` that a module of `room` may not make."""
    forbidden = {package(other) for other in ROOMS if other != room and other not in ROOMS[room]}
    forbidden |= FOREIGN - ALLOWED_FOREIGN[room]
    return sorted(set(imports(source)) & forbidden)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted(folder(room).rglob("*.py"))
    assert files, f"the room {room} has no modules"
    found = {str(file.relative_to(ROOT)): bad for file in files if (bad := trespasses(room, file.read_text()))}
    assert not found


def test_the_page_has_the_same_table() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|([^|]*)\|$", page, re.MULTILINE)
    told = {room: (set(re.findall(r"\w+", rooms)), set(re.findall(r"\w+", heavy))) for room, rooms, heavy in rows}
    assert told.pop("deploy") == (set(), set())
    assert told.pop("bench") == told.pop("tools") == ({"all"}, {"all"})
    assert told == {room: (ROOMS[room], ALLOWED_FOREIGN[room]) for room in PRODUCT}
    assert set(re.split(r", | and ", re.sub(r"\s+", " ", page.split("Heavy are ")[1].split(";")[0]))) == FOREIGN


def test_a_trespass_is_seen() -> None:
    source = (
        "def f():\n    import torch\n    from zfserve_model.networks import Network\nimport zfserve_runtime.bundle\n"
    )
    assert trespasses("server", source) == ["torch", "zfserve_model"]


@pytest.mark.parametrize("room", ROOMS)
def test_only_tests_import_bench_and_tools(room: str) -> None:
    source = "from zfserve_bench.load.closed_loop import protocol\ndef f():\n    import tools.fuzz.corpus\n"
    assert trespasses(room, source) == sorted({"zfserve_bench", "tools"} - {package(room)})


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("zfserve_cli.main", {"torch", "numpy", "grpc", "PIL", "zfserve_server"}),
        ("zfserve", {"torch", "numpy"}),
        ("zfserve_server.serve_command", {"grpc"}),  # which reads the environment when it is imported
        ("zfserve_server.server_process", {"torch"}),
        ("zfserve_server.app", {"torch", "onnx", "zfserve_model", "zfserve_worker", "opentelemetry.sdk"}),
        ("zfserve_worker.worker_command", {"grpc"}),
        ("zfserve_worker.worker_process", {"onnxruntime", "zfserve_server", "opentelemetry.sdk"}),
    ],
)
def test_importing_stays_light(module: str, absent: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not absent & set(loaded)
