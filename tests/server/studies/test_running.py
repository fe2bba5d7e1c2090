"""Studies stop when their calls end, keep to their limits, and leave interactive calls alone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest
from fakes.model_repository import FakeModelRepository
from fakes.reading_engine import FakeReadingEngine
from fakes.serving import MANIFEST, SIDE, FakeEngine, Running, classify_request, raw_image, running_server
from fakes.study_calls import error_of, messages_of
from zfserve_engines.readings.plan import ReadingPlan
from zfserve_protos.methods import OCCLUDE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import EngineFailed, Overloaded
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.admission.admission import Admission
from zfserve_server.admission.caller_identity import ANONYMOUS
from zfserve_server.batching.batcher import Batcher
from zfserve_server.models.engine_choice import EngineChoice
from zfserve_server.models.served_model import ServedModel
from zfserve_server.studies.limits import MAX_STUDIES
from zfserve_server.studies.running import CHUNKS_IN_FLIGHT, Chunk, StudyCall, open_runner

EVERYWHERE = pb.OccludeRequest(image=raw_image(3), size=1, stride=1)  # 64 places, 4 in a batch


class Readers:
    """Opens fake reading engines and keeps them.

    Attributes:
        opened: all engines that were opened.
        gated: while True, an engine starts with its gate closed.
    """

    def __init__(self) -> None:
        self.opened: list[FakeReadingEngine] = []
        self.gated = False
        self._runs = threading.Semaphore(0)

    def open(self, plan: ReadingPlan) -> FakeReadingEngine:
        engine = FakeReadingEngine(plan)
        engine.runs = self._runs
        if self.gated:
            engine.open.clear()
        self.opened.append(engine)
        return engine

    async def begun(self) -> FakeReadingEngine:
        """Waits until one more run has begun, and returns the first engine."""
        assert await asyncio.to_thread(self._runs.acquire, timeout=30)
        return self.opened[0]

    def release(self) -> None:
        for engine in self.opened:
            engine.open.set()


@pytest.fixture
def readers() -> Iterator[Readers]:
    readers = Readers()
    yield readers
    readers.release()


@pytest.fixture
async def server(engine: FakeEngine, readers: Readers, repository: FakeModelRepository) -> AsyncIterator[Running]:
    repository.open_reading = readers.open
    repository.put(MANIFEST, engine)
    async with running_server(repository=repository) as running:
        yield running
        readers.release()


async def none_in_flight(server: Running, method: str = OCCLUDE) -> None:
    await server.wait_for_metric(f'zfserve_in_flight{{method="{method}"}} 0.0')


async def test_a_client_that_leaves_stops_the_work_within_one_batch(server: Running, readers: Readers) -> None:
    readers.gated = True
    call = server.vision.Occlude(EVERYWHERE)
    messages = aiter(call)
    reader = await readers.begun()  # the photo without a square
    reader.open.set()
    assert (await anext(messages)).HasField("plan")
    reader.open.clear()
    await readers.begun()  # the first four places
    call.cancel()
    await none_in_flight(server)
    await server.wait_for_queue_depth(0)
    reader.open.set()
    # The engine is free again once this is answered, so places that were left in the queue would have run.
    assert (await server.vision.Classify(classify_request(3))).features[0] == 3
    assert [len(batch) for batch in reader.batches[:2]] == [1, 4]
    assert len(reader.batches) <= 3  # the gate was open for a moment


async def test_a_study_ends_at_its_deadline(server: Running, readers: Readers) -> None:
    readers.gated = True
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await messages_of(server.vision.Occlude(EVERYWHERE, timeout=1))
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await none_in_flight(server)
    await server.wait_for_queue_depth(0)


async def test_only_so_many_studies_are_in_flight_and_classification_goes_on(
    server: Running, readers: Readers, engine: FakeEngine
) -> None:
    assert (await server.vision.Classify(classify_request(3))).features[0] == 3
    engine.open.clear()
    request = pb.ActivationsRequest(images=[raw_image(3)], layers=["features"])
    stuck = [asyncio.ensure_future(messages_of(server.vision.Activations(request))) for _ in range(MAX_STUDIES)]
    await server.wait_for_metric(f'method="/zfserve.v1.VisionService/Activations"}} {MAX_STUDIES}.0')
    error = await error_of(
        server.vision.Transform(pb.TransformRequest(image=raw_image(3), kind=pb.TRANSFORM_KIND_SCALE))
    )
    assert type(error) is Overloaded
    assert error.message.startswith(f"{MAX_STUDIES} studies are waiting already; try again in ")
    assert error.retry_after_s
    classifying = asyncio.ensure_future(server.vision.Classify(classify_request(5)))
    engine.open.set()
    assert (await classifying).features[0] == 5
    for answer in await asyncio.gather(*stuck):
        assert [message.photo_ends for message in answer] == [True]


async def test_a_failure_of_the_engine_ends_the_study(server: Running, readers: Readers) -> None:
    readers.gated = True
    studying = asyncio.ensure_future(error_of(server.vision.Occlude(EVERYWHERE)))
    reader = await readers.begun()
    reader.poison = {128 * 256 + 128}  # the photo with a grey corner
    reader.open.set()
    assert type(await studying) is EngineFailed
    await none_in_flight(server)


async def test_studies_with_the_same_layers_share_an_engine(server: Running, readers: Readers) -> None:
    for layers in (["conv1", "pool1"], ["pool1", "conv1"], ["stage1", "pool1"]):
        await messages_of(server.vision.Activations(pb.ActivationsRequest(images=[raw_image(4)], layers=layers)))
    assert len(readers.opened) == 1


@pytest.fixture
async def call(engine: FakeEngine) -> AsyncIterator[StudyCall]:
    metrics = Metrics().of_model("fake", "7")
    batcher = Batcher([engine], (SIDE, SIDE, 3), metrics, on_engine_lost=lambda: None)
    batcher.start()
    admission = Admission(8, batcher.service_rate)
    model = ServedModel(MANIFEST, EngineChoice("onnx-cpu", [engine]), batcher, admission, metrics, 0.0)
    yield StudyCall("test", model, ANONYMOUS, Deadline())
    engine.open.set()
    await batcher.close()


async def test_at_most_two_chunks_are_made_before_they_are_needed(call: StudyCall, engine: FakeEngine) -> None:
    made: list[int] = []

    def make(number: int) -> Chunk:
        made.append(number)
        return Chunk(np.full((4, SIDE, SIDE, 3), number, np.uint8))

    async with open_runner(call, ReadingPlan()) as runner:
        results = runner.run((lambda number=number: make(number)) for number in range(6))  # type: ignore[misc]
        seen = []
        async for chunk, answers in results:
            number = int(chunk.pixels[0, 0, 0, 0])
            seen.append(number)
            assert [answer.features[0] for answer in answers] == [257 * number] * 4
            await asyncio.sleep(0.05)  # more chunks would be made now
            assert len(made) <= len(seen) + CHUNKS_IN_FLIGHT - 1
    assert seen == list(range(6))


async def test_closing_the_results_drops_what_waits(call: StudyCall, engine: FakeEngine) -> None:
    engine.open.clear()
    async with open_runner(call, ReadingPlan()) as runner:
        results = runner.run(lambda: Chunk(np.zeros((4, SIDE, SIDE, 3), np.uint8)) for _ in range(6))
        waiting = asyncio.ensure_future(anext(results))
        await engine.begun()
        waiting.cancel()
        await asyncio.wait((waiting,))
        await results.aclose()
        assert call.model.batcher.queue_depth == 0
    engine.open.set()
    assert len(engine.batches) == 1
