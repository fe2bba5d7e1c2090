"""Wall clocks jump, so code that waits must not read them."""

import ast
import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.serving import FakeEngine, classify_request, running_server
from zfserve_protos.v1 import zfserve_pb2 as pb

ROOT = Path(__file__).parent.parent.parent

WALL_CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}

RECORDS_DATES = {
    "runtime/zfserve_runtime/telemetry/logs.py",  # times of log lines
    "runtime/zfserve_runtime/telemetry/tracing.py",  # times of spans, as OpenTelemetry defines them
    "engines/zfserve_engines/store/store.py",  # the time at which an engine was built
    "engines/zfserve_engines/engines_command.py",  # the age of an engine
    "runtime/zfserve_runtime/telemetry/model_statistics.py",  # the time of a model's last answer
}
"""Modules that record dates and do not wait for them."""


def wall_clocks(source: str) -> Iterator[int]:
    """Yields the lines that read a wall clock or import one by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            if (owner, node.attr) in WALL_CLOCKS:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (node.lineno for alias in node.names if ("time", alias.name) in WALL_CLOCKS)


@pytest.mark.parametrize("room", ["runtime", "server", "worker"])
def test_only_modules_that_record_dates_read_a_wall_clock(room: str) -> None:
    files = {str(file.relative_to(ROOT)): file for file in (ROOT / room).rglob("*.py")}
    asking = {name: list(wall_clocks(file.read_text())) for name, file in files.items() if name not in RECORDS_DATES}
    assert {name: lines for name, lines in asking.items() if lines} == {}


def test_the_search_finds_wall_clocks() -> None:
    source = "import time\nfrom time import time_ns\ntime.time()\ntime.monotonic()\ndatetime.datetime.now()\n"
    assert sorted(wall_clocks(source)) == [2, 3, 5]


async def test_a_jump_of_the_wall_clock_expires_no_deadline_and_no_reference(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_server(engine, reference_ttl=600.0) as server:
        reference = (await server.vision.Classify(classify_request(5))).image_reference
        await engine.begun()
        engine.open.clear()
        waiting = asyncio.ensure_future(server.vision.Classify(classify_request(1), timeout=60))
        await engine.begun()
        with monkeypatch.context() as clock:
            now = time.time
            clock.setattr(time, "time", lambda: now() + 86_400.0)
            engine.open.set()
            assert (await waiting).features[0] == 1
            again = pb.ClassifyRequest(image=pb.Image(reference=reference), include_features=True)
            assert (await server.vision.Classify(again)).features[0] == 5
