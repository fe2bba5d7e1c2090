"""Tests the start, from the open port to the first answer, with an engine that opens in steps."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest
from fakes.model_repository import FakeModelRepository
from fakes.serving import MANIFEST, FakeEngine, FakeWorker, classify_request, raw_image
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import running_service, zfserve
from zfserve_engines.contract import EngineName, EngineUnavailable
from zfserve_engines.opening import Phase, Report, Step
from zfserve_protos.methods import PROJECTION, VISION_SERVICE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
from zfserve_runtime.bundle import Bundle
from zfserve_runtime.errors import EngineLost, ServiceError, Starting
from zfserve_runtime.grpc.health import SERVER, Health
from zfserve_runtime.grpc.shutdown import StopRequest
from zfserve_runtime.grpc.status import from_call_error
from zfserve_runtime.model_repository import FoundVersion
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.app import serve
from zfserve_server.config import ServerConfig
from zfserve_server.grpc_server import Ports
from zfserve_server.models.engine_choice import EngineChoice, NotTaken
from zfserve_server.models.opening_thread import StillOpening
from zfserve_server.models.served_model import ServedModel
from zfserve_server.models.source import ModelSource, OpenedVersion
from zfserve_server.models.startup_progress import StartupProgress, phase_service

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

ColourBundle = Callable[..., Bundle]


@dataclass
class SlowOpening:
    """Opens an engine in the steps that the test sends. It returns the engine, or raises the error that the test sends.

    Attributes:
        cancelled: True once a report raised OpeningCancelled.
    """

    engine: FakeEngine = field(default_factory=FakeEngine)
    cancelled: bool = False
    _sent: list[Step | BaseException | None] = field(default_factory=list)
    _permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def send(self, event: Step | BaseException | None) -> None:
        """Sends a step to report, an error to raise, or None to return the open engine."""
        self._sent.append(event)
        self._permits.release()

    def open(self, found: FoundVersion, report: Report) -> OpenedVersion:
        while True:
            assert self._permits.acquire(timeout=60)
            match self._sent.pop(0):
                case Step() as step:
                    try:
                        report(step)
                    except BaseException:
                        self.cancelled = True
                        raise
                case None:
                    choice = EngineChoice("onnx-cpu", [self.engine], (NotTaken("tensorrt", "no GPU"),))
                    return OpenedVersion(MANIFEST, choice)
                case error:
                    raise error


@dataclass
class StartingServer:
    """Holds a server that listens and has not loaded its model. `opening` controls how the engine opens."""

    opening: SlowOpening
    stop: StopRequest
    ended: "asyncio.Task[None]"
    ready: "asyncio.Future[Ports]"
    channel: grpc.aio.Channel

    async def status(self, service: str) -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        status: int = (await health_pb2_grpc.HealthStub(self.channel).Check(request)).status
        return status

    @asynccontextmanager
    async def watch(self, service: str) -> AsyncIterator[Callable[[], Awaitable[int | None]]]:
        """Yields a function that returns the next status of a service's health Watch, or None at its end."""
        call = health_pb2_grpc.HealthStub(self.channel).Watch(health_pb2.HealthCheckRequest(service=service))

        async def next_status() -> int | None:
            answer = await call.read()
            return None if answer is grpc.aio.EOF else answer.status

        yield next_status
        call.cancel()

    async def reach(self, step: Step) -> None:
        """Lets the engine report `step`, and waits until the server's health shows the phase of the step."""
        async with self.watch(phase_service(step.phase)) as next_status:
            self.opening.send(step)
            while await next_status() != SERVING:
                pass

    async def refusal(self) -> ServiceError | None:
        """Calls each method once, and returns the error. It must be the same for all methods."""
        stub = VisionServiceStub(self.channel)
        calls = (
            stub.Classify(classify_request(1)),
            stub.DescribeModel(pb.DescribeModelRequest()),
            stub.Project(pb.ProjectRequest(image=raw_image(1), layer="conv1", strongest=1)).read(),
        )
        refusals = []
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            refusals.append(from_call_error(refused.value))
        assert len({str(refusal).split(",")[0] for refusal in refusals}) == 1
        return refusals[0]


@contextmanager
def logged(logger_name: str, message: str) -> Iterator["asyncio.Future[dict[str, Any]]"]:
    """Yields a future of the fields of the first log line with this message."""
    fields: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == message and not fields.done():
                fields.set_result(vars(record))

    listener, logger = Listener(), logging.getLogger(logger_name)
    logger.addHandler(listener)
    try:
        yield fields
    finally:
        logger.removeHandler(listener)


@asynccontextmanager
async def starting_server(**settings: object) -> AsyncIterator[StartingServer]:
    """Starts a server and yields it once it listens. Stops it at the end, unless it has ended."""
    chosen: dict[str, object] = {"port": 0, "metrics_port": 0, "worker": False, "drain_grace": 10.0, "drain_delay": 0.0}
    chosen.update(settings)
    opening, stop = SlowOpening(), StopRequest()
    ready: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    config, found = ServerConfig.model_validate(chosen), FakeModelRepository().put(MANIFEST)
    with logged("zfserve_server.app", "listening") as listening:
        source = ModelSource(lambda: [found], opening.open)
        serving = serve(config, source, stop, lambda ports, _: ready.set_result(ports))
        task = asyncio.create_task(serving)
        await asyncio.wait((task, listening), return_when=asyncio.FIRST_COMPLETED)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listening.result()['port']}") as channel:
        try:
            yield StartingServer(opening, stop, task, ready, channel)
        finally:
            if not task.done():
                stop.ask("the test is over")
                opening.send(None)
                await task


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zfserve_server")


async def test_each_phase_is_reported_and_calls_are_refused_until_the_engine_is_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with starting_server() as server, server.watch(VISION_SERVICE) as service, server.watch(SERVER) as whole:
        assert await service() == await whole() == NOT_SERVING
        refusal = await server.refusal()
        assert isinstance(refusal, Starting)
        assert "starting: choosing an engine" in refusal.message
        for step, text in (
            (Step("tensorrt", Phase.COMPILING, 0.42), "compiling the engine tensorrt (42%) for fake 7"),
            (Step("onnx-cpu", Phase.LOADING), "loading the engine onnx-cpu"),
            (Step("onnx-cpu", Phase.WARMING), "warming the engine onnx-cpu"),
            (Step("onnx-cpu", Phase.VERIFYING), "verifying the engine onnx-cpu"),
        ):
            await server.reach(step)
            assert [phase for phase in Phase if await server.status(phase_service(phase)) == SERVING] == [step.phase]
            assert await server.status(VISION_SERVICE) == NOT_SERVING
            refusal = await server.refusal()
            assert isinstance(refusal, Starting)
            assert text in refusal.message
            assert refusal.retry_after_s is not None
        assert not server.ready.done()
        server.opening.send(None)
        assert await service() == await whole() == SERVING
        await server.ready
        assert [phase for phase in Phase if await server.status(phase_service(phase)) == SERVING] == [Phase.READY]
        stub = VisionServiceStub(server.channel)
        assert (await stub.Classify(classify_request(3))).classes[0].index == 3
        engine = (await stub.DescribeModel(pb.DescribeModelRequest())).engine
        assert (engine.name, engine.device, engine.instances) == ("onnx-cpu", "CPU", 1)
        assert [(entry.name, entry.reason) for entry in engine.not_taken] == [("tensorrt", "no GPU")]
        assert engine.startup_seconds > 0
    lines = [vars(record) for record in caplog.records if record.message.startswith("start-up")]
    assert [line["message"].split()[-1] for line in lines if "percent" not in line] == [*Phase]
    assert all(line["since_start_s"] >= 0 for line in lines)
    assert {"compiling_s", "loading_s", "warming_s", "verifying_s"} <= lines[-1].keys()
    assert server.opening.engine.closed


async def test_an_engine_that_failed_to_open_ends_the_server_with_its_error() -> None:
    """The error is not wrapped in an exception group, so that the command can print it in one line."""
    async with starting_server() as server:
        await server.reach(Step("tensorrt", Phase.LOADING))
        async with server.watch(VISION_SERVICE) as next_status:
            assert await next_status() == NOT_SERVING
            server.opening.send(EngineUnavailable("no engine can serve"))
            with pytest.raises(EngineUnavailable, match="no engine can serve"):
                await server.ended


async def test_a_device_lost_while_the_engine_opens_ends_the_server_with_engine_lost() -> None:
    async with starting_server() as server:
        server.opening.send(EngineLost("the card fell off the bus"))
        with pytest.raises(EngineLost):
            await server.ended


async def test_a_stop_during_the_start_ends_the_opening_at_its_next_report() -> None:
    async with starting_server() as server:
        await server.reach(Step("tensorrt", Phase.COMPILING, 0.1))
        async with server.watch(VISION_SERVICE) as next_status:
            assert await next_status() == NOT_SERVING
            server.stop.ask("SIGTERM")
            assert await next_status() is None
            server.opening.send(Step("tensorrt", Phase.COMPILING, 0.2))
            await server.ended
        assert server.opening.cancelled
        assert not server.ready.done()


async def test_an_engine_that_opens_after_the_stop_is_closed() -> None:
    async with starting_server() as server:
        server.stop.ask("SIGTERM")
        server.opening.send(None)
        await server.ended
        assert server.opening.engine.closed
        assert not server.ready.done()


async def test_an_opening_that_does_not_react_to_the_stop_is_left_behind() -> None:
    async with starting_server(drain_grace=0.1) as server:
        await server.reach(Step("tensorrt", Phase.COMPILING))
        server.stop.ask("SIGTERM")
        with pytest.raises(StillOpening):
            await server.ended
        server.opening.send(Step("tensorrt", Phase.COMPILING))  # lets the thread end


async def test_the_worker_pairs_during_the_start_and_projections_wait_for_the_engine(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/worker.sock"
    with logged("zfserve_server.worker.pairing", "the worker's pairing changed") as paired:
        async with FakeWorker().listening(address), starting_server(worker=True, worker_address=address) as server:
            assert (await paired)["pairing"] == "READY"
            async with server.watch(PROJECTION) as next_status:
                assert await next_status() == NOT_SERVING
                server.opening.send(None)
                assert await next_status() == SERVING


def test_metrics_show_the_phase_its_progress_and_its_seconds() -> None:
    metrics = Metrics()
    startup, found = StartupProgress(metrics, Health(*map(phase_service, Phase))), FakeModelRepository().put(MANIFEST)
    value = metrics.registry.get_sample_value
    for step in (Step("tensorrt", Phase.COMPILING, 0.25), Step("tensorrt", Phase.COMPILING, 0.5)):
        startup.enter(found, step)
    phases = {phase: value("zfserve_startup_phase", {"phase": phase}) for phase in Phase}
    assert phases == {**dict.fromkeys(Phase, 0), Phase.COMPILING: 1}
    assert value("zfserve_startup_progress", {"phase": "compiling"}) == 0.5
    startup.ready("tensorrt")
    assert value("zfserve_startup_progress", {"phase": "compiling"}) is None
    phases = {phase: value("zfserve_startup_phase", {"phase": phase}) for phase in Phase}
    assert phases == {**dict.fromkeys(Phase, 0), Phase.READY: 1}
    assert (value("zfserve_startup_seconds", {"phase": "compiling"}) or 0) > 0


def test_the_real_process_reports_the_chosen_engine_and_why_the_others_were_not_taken(
    colour_bundle: ColourBundle, tmp_path: Path
) -> None:
    """The test passes on a machine with a GPU too, because it only requires a reason for every other engine."""
    with running_service(colour_bundle().folder, tmp_path, "--no-worker", "--threads", "1") as service:
        described = zfserve("info", "--json", "--address", service.address)
    engine = json.loads(described.stdout)["engine"]
    assert {engine["name"], *(entry["name"] for entry in engine["not_taken"])} == {*get_args(EngineName)}
    assert all(entry["reason"] for entry in engine["not_taken"])
    log = service.log.read_text()
    phases = [line.split("start-up: ")[1].split()[0] for line in log.splitlines() if "start-up: " in line]
    assert phases[-4:] == ["loading", "warming", "verifying", "ready"]
    for entry in engine["not_taken"]:
        assert entry["reason"] in log


def test_a_process_whose_engine_never_opens_ends_at_sigterm(colour_bundle: ColourBundle) -> None:
    program = Path(__file__).parents[2] / "fakes" / "server_that_never_opens.py"
    flags = ("--no-worker", "--port", "0", "--metrics-port", "0", "--engine", "onnx-cpu", "--drain-grace", "0.1")
    command = [sys.executable, str(program), "serve", "--model", str(colour_bundle().folder), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("start-up: compiling" in line for line in process.stderr)
        process.terminate()
        assert process.wait(timeout=60) == -signal.SIGTERM
        assert "without waiting" in process.stderr.read()


async def test_an_error_of_on_ready_ends_the_server_with_that_error() -> None:
    repository = FakeModelRepository()
    repository.put(MANIFEST, FakeEngine())
    config = ServerConfig.model_validate({"port": 0, "metrics_port": 0, "worker": False, "drain_delay": 0.0})

    def on_ready(ports: Ports, model: ServedModel) -> None:
        raise PermissionError("the ready file cannot be written")

    with pytest.raises(PermissionError, match="ready file"):
        await serve(config, repository.source, StopRequest(), on_ready)
