"""Runs a real server on port 0 with a fake engine and a fake worker."""

import asyncio
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import grpc
import numpy as np
import numpy.typing as npt
from fakes.model_repository import FakeModelRepository
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from zfserve_engines.contract import EngineInfo, EngineOutputs
from zfserve_protos.channel_options import Options
from zfserve_protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from zfserve_protos.methods import PROJECTION, WORKER_SERVICE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_protos.worker.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from zfserve_runtime.access.tls import TlsFiles
from zfserve_runtime.bundle import (
    AccuracyEntry,
    Artefact,
    ClassEntry,
    InputSpec,
    LayerEntry,
    Manifest,
    ParityEntry,
)
from zfserve_runtime.grpc.health import SERVER, Health, add_health_and_reflection
from zfserve_runtime.grpc.listener import open_port
from zfserve_runtime.grpc.request_id import current_request_id
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.grpc.shutdown import StopRequest, drain
from zfserve_runtime.release import RELEASE
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.app import serve
from zfserve_server.config import ServerConfig
from zfserve_server.grpc_server import Ports
from zfserve_server.models.source import ModelSource

if TYPE_CHECKING:
    from zfserve_protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceAsyncStub
    from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceAsyncStub

SIDE = 8
"""The height and width of the fake network's input."""

CLASSES = 10

FINGERPRINT = "f" * 64


class FakeEngine:
    """Identifies an image by an id: the big-endian 16-bit number in its first two bytes.

    The id is the first feature. The second byte modulo 10 is the class.

    Args:
        max_batch_size: the largest number of images in one run.
        feature_width: the number of features, 0 to 2.

    Attributes:
        open: while it is cleared, each run waits until it is set again.
        runs: gets one permit for each run that has begun.
        failures: each run raises one of them, as long as there are any.
        poison: ids of images that fail every run that contains them.
        not_finite: ids of images whose probabilities contain NaN.
        batches: the ids of each batch, in order.
    """

    def __init__(self, max_batch_size: int = 4, feature_width: int = 2) -> None:
        self._feature_width = feature_width
        self.info = EngineInfo("fake", "FakeProvider", "fp32", max_batch_size, 1)
        self.open = threading.Event()
        self.open.set()
        self.runs = threading.Semaphore(0)
        self.failures: list[BaseException] = []
        self.poison: set[int] = set()
        self.not_finite: set[int] = set()
        self.batches: list[list[int]] = []
        self.closed = False

    def run(self, pixels: npt.NDArray[np.uint8]) -> EngineOutputs:
        assert len(pixels) <= self.info.max_batch_size
        ids = pixels[:, 0, 0, :2].astype(np.int64) @ np.array([256, 1])
        self.batches.append(ids.tolist())
        self.runs.release()
        assert self.open.wait(timeout=30)
        if self.failures:
            raise self.failures.pop(0)
        if self.poison.intersection(ids.tolist()):
            raise RuntimeError("an image of this batch is bad")
        probabilities = np.full((len(pixels), CLASSES), 0.05, np.float32)
        probabilities[np.arange(len(pixels)), ids % 256 % CLASSES] = 0.55
        probabilities[np.isin(ids, list(self.not_finite)), 0] = np.nan
        features = np.stack([ids, ids * 2], axis=1).astype(np.float32)
        return EngineOutputs(probabilities, features[:, : self._feature_width])

    def close(self) -> None:
        self.closed = True

    async def begun(self) -> None:
        """Waits until one more run has begun."""
        assert await asyncio.to_thread(self.runs.acquire, timeout=30)


def pixels_of(identity: int) -> npt.NDArray[np.uint8]:
    """Returns the image that FakeEngine identifies as `identity`: uint8 (SIDE, SIDE, 3)."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[0, 0, :2] = divmod(identity, 256)
    return pixels


def raw_image(identity: int) -> pb.Image:
    return pb.Image(raw=pb.RawPixels(width=SIDE, height=SIDE, data=pixels_of(identity).tobytes()))


def classify_request(identity: int) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(image=raw_image(identity), include_features=True)


MANIFEST = Manifest(
    name="fake",
    version="7",
    architecture="zfnet",
    feature_width=2,
    classes=tuple(ClassEntry(class_id=f"n{index}", label=f"class {index}") for index in range(CLASSES)),
    input=InputSpec(
        height=SIDE, width=SIDE, resize="squash", shorter_side=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    ),
    layers=(
        LayerEntry(
            name="conv1",
            tensor="conv1",
            kind="conv",
            stage="stage1",
            channels=6,
            height=4,
            width=4,
            receptive_field=3,
            stride=2,
            offset=-1,
        ),
        LayerEntry(
            name="pool1",
            tensor="pool1",
            kind="pool",
            stage="stage1",
            channels=6,
            height=2,
            width=3,
            receptive_field=5,
            stride=4,
            offset=-1,
        ),
    ),
    artefacts={"fp32": Artefact(file="model.onnx", golden_tolerance=1e-3)},
    fingerprint=FINGERPRINT,
    files={},
    parity=(ParityEntry(precision="fp32", inputs="noise", count=4, max_difference=1e-6, top1_agreement=1.0),),
    accuracy=(AccuracyEntry(precision="fp32", count=8, top1=0.875, top5=1.0),),
)


@dataclass
class FakeWorker(WorkerServiceServicer):
    """Answers each map with a projection whose activation, and each explanation with one whose score, is the sum of the
    pixels in the request.

    Attributes:
        fingerprint: the network that it holds; None: it holds every network that it is asked for.
        release: the release that it tells.
        error: raised by each Project and Explain call; None: it answers.
        hangs_after: the number of messages after which a stream hangs. Explain hangs too. None: no call hangs.
        requests, explain_requests: the requests of Project and of Explain.
        remaining_s, request_ids: the remaining time of each request, and its request id.
        announced: the fingerprints of the last Describe call.
        traceparents: the `traceparent` headers of the requests.
        asked, cancelled: set when a call arrives, and when its caller cancels it while it hangs.
    """

    fingerprint: str | None = FINGERPRINT
    release: str = RELEASE
    error: Exception | None = None
    hangs_after: int | None = None
    health: Health = field(default_factory=lambda: Health(SERVER, WORKER_SERVICE))
    requests: list[worker_pb2.ProjectRequest] = field(default_factory=list)
    explain_requests: list[worker_pb2.ExplainRequest] = field(default_factory=list)
    remaining_s: list[float | None] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)
    traceparents: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> worker_pb2.DescribeResponse:
        self.announced = list(request.fingerprints)
        held = self.announced if self.fingerprint is None else [self.fingerprint]
        models = [pb.ModelIdentity(fingerprint=fingerprint) for fingerprint in held]
        return worker_pb2.DescribeResponse(models=models, release=self.release)

    async def Explain(  # noqa: N802
        self, request: worker_pb2.ExplainRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> worker_pb2.ExplainResponse:
        self.explain_requests.append(request)
        self._note(context)
        if self.error is not None:
            raise self.error
        if self.hangs_after is not None:
            await self._hang()
        index = next((at for at, entry in enumerate(MANIFEST.classes) if request.class_name == entry.label), 0)
        entry = MANIFEST.layer(request.layer)
        assert entry is not None
        values = np.full((entry.height, entry.width), 0.25, "<f4")
        return worker_pb2.ExplainResponse(
            explanation=pb.ExplainResponse(
                for_class=pb.ClassScore(label=MANIFEST.classes[index].label, index=index, probability=0.625),
                method=request.method,
                heatmap=pb.HeatMap(height=entry.height, width=entry.width, data=values.tobytes()),
                score=float(np.frombuffer(request.pixels, np.uint8).sum()),
                baseline_score=-1.5,
                completeness_gap=0.125,
                overlay_png=b"png",
                scale=0.25,
            )
        )

    async def Project(  # noqa: N802
        self, request: worker_pb2.ProjectRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[worker_pb2.ProjectResponse]:
        self.requests.append(request)
        self._note(context)
        if self.error is not None:
            raise self.error
        maps = list(request.selection.indices) or list(range(request.strongest or request.for_class.count))
        for rank, index in enumerate(maps):
            if rank == self.hangs_after:
                await self._hang()
            yield worker_pb2.ProjectResponse(
                projection=pb.ProjectResponse(
                    map=index,
                    activation=float(np.frombuffer(request.pixels, np.uint8).sum()),
                    box=pb.Box(left=2, top=0, right=4, bottom=8),
                    png=b"png",
                    rank=rank,
                    total=len(maps),
                    rule=pb.PROJECTION_RULE_PAPER,
                    attribution=float(len(maps) - rank) if request.HasField("for_class") else 0.0,
                    for_class=pb.ClassScore(index=3) if request.HasField("for_class") else None,
                )
            )

    def _note(self, context: grpc.aio.ServicerContext[object, object]) -> None:
        self.remaining_s.append(context.time_remaining())
        self.request_ids.append(current_request_id())
        metadata = context.invocation_metadata() or ()
        self.traceparents += [str(value) for key, value in metadata if key == "traceparent"]
        self.asked.set()

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    @asynccontextmanager
    async def listening(
        self,
        address: str,
        tls: TlsFiles | None = None,
        options: Options | None = None,
        drain_delay_s: float | None = None,
    ) -> AsyncIterator[int]:
        """Serves on `address` and yields the port. At the end it stops at once, or drains after `drain_delay_s`."""
        server = InterceptingServer(Metrics(), options)
        add_WorkerServiceServicer_to_server(self, server)
        add_health_and_reflection(server, self.health, WORKER_SERVICE)
        port = open_port(server, address, tls, callers_known=False, flag="--listen")
        await server.start()
        self.health.serving(SERVER, WORKER_SERVICE)
        try:
            yield port
        finally:
            if drain_delay_s is None:
                await server.stop(None)
            else:
                await drain(server, self.health, 30.0, StopRequest(), drain_delay_s)


class HasSource(Protocol):
    """Anything that has models to serve."""

    @property
    def source(self) -> ModelSource: ...


@dataclass
class Running:
    """Holds a server that is ready.

    Attributes:
        ports: the server's ports.
        channel: a channel to the server.
        stop: asks the server to stop.
        ended: the task that serves. It is done once the server has ended.
        rescan: set it to have the model repository scanned at once.
    """

    ports: Ports
    channel: grpc.aio.Channel
    stop: StopRequest
    ended: "asyncio.Task[None]"
    rescan: asyncio.Event

    @property
    def vision(self) -> "VisionServiceAsyncStub":
        return VisionServiceStub(self.channel)

    @property
    def inference(self) -> "GRPCInferenceServiceAsyncStub":
        return GRPCInferenceServiceStub(self.channel)

    async def wait_for_queue_depth(self, images: int) -> None:
        """Waits until this number of images is in the queue."""
        await self.wait_for_metric(f'zfserve_queue_depth{{model="fake",version="7"}} {images}.0')

    async def scrape(self) -> str:
        """Returns the metrics as Prometheus reads them."""

        def read() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.metrics}/metrics") as answer:
                return str(answer.read(), "utf-8")

        return await asyncio.to_thread(read)

    async def wait_for_metric(self, line: str) -> str:
        """Waits until the metrics contain `line`, and returns all of them."""
        async with asyncio.timeout(60):
            while line not in (text := await self.scrape()):
                pass
        return text


@asynccontextmanager
async def running_server(
    *engines: FakeEngine, repository: HasSource | None = None, **settings: object
) -> AsyncIterator[Running]:
    """Runs a server and yields it once it is ready. Stops and drains it at the end.

    Args:
        engines: run the fake network `MANIFEST`.
        repository: the models to serve in place of the fake network.
        settings: fields of ServerConfig. By default the server has no worker.
    """
    chosen: dict[str, object] = {"port": 0, "metrics_port": 0, "worker": False, "drain_grace": 10.0, "drain_delay": 0.0}
    chosen.update(settings)
    config = ServerConfig.model_validate(chosen)
    stop = StopRequest()
    ready: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    rescan = asyncio.Event()
    if repository is None:
        versions = repository = FakeModelRepository()
        versions.put(MANIFEST, *engines)
    serving = serve(config, repository.source, stop, lambda ports, _: ready.set_result(ports), rescan)
    task = asyncio.create_task(serving)
    await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    ports = ready.result()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        try:
            yield Running(ports, channel, stop, task, rescan)
        finally:
            for engine in engines:
                engine.open.set()
            if not task.done():  # a test that ends the server checks its end itself
                stop.ask("the test is over")
                await task


async def projection_is(server: Running, serving: bool) -> None:
    """Waits until the server's health reports SERVING or NOT_SERVING for projections."""
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(service=PROJECTION), timeout=60)
    async for health in watch:
        if (health.status == HealthCheckResponse.SERVING) is serving:
            watch.cancel()
            return
    raise AssertionError("the watch ended")
