"""Clocks of the wall jump; nothing that waits may ask them."""

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

DATED = {
    "runtime/zfserve_runtime/telemetry/logs.py",  # lines of the log
    "runtime/zfserve_runtime/telemetry/tracing.py",  # spans, as OpenTelemetry wants them
    "engines/zfserve_engines/store/store.py",  # when an engine was built
    "engines/zfserve_engines/engines_command.py",  # and how long that is ago
    "runtime/zfserve_runtime/telemetry/model_statistics.py",  # when a model answered last
}
"""Modules that write down when something was, and wait for nothing."""


def wall_clocks(source: str) -> Iterator[int]:
    """The lines that ask a wall clock, or import one by its own name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            if (owner, node.attr) in WALL_CLOCKS:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (node.lineno for alias in node.names if ("time", alias.name) in WALL_CLOCKS)


@pytest.mark.parametrize("room", ["runtime", "server", "worker"])
def test_only_what_is_dated_asks_a_wall_clock(room: str) -> None:
    files = {str(file.relative_to(ROOT)): file for file in (ROOT / room).rglob("*.py")}
    asking = {name: list(wall_clocks(file.read_text())) for name, file in files.items() if name not in DATED}
    assert {name: lines for name, lines in asking.items() if lines} == {}


def test_a_wall_clock_is_seen() -> None:
    source = "import time\nfrom time import time_ns\ntime.time()\ntime.monotonic()\ndatetime.datetime.now()\n"
    assert sorted(wall_clocks(source)) == [2, 3, 5]


async def test_a_jump_of_the_clock_ends_no_deadline_and_no_reference(
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
