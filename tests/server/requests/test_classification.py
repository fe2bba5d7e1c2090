"""Tests the classification pipeline without gRPC: it finds models, classifies images, and records times."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from fakes.call_context import FakeContext
from fakes.inference_requests import batch_of, png
from fakes.serving import MANIFEST, FakeEngine, raw_image
from zfserve_engines.images.input_image import ImageLimits
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import EngineFailed, ImageUndecodable, NotFound, RateExceeded, ServiceError
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.admission.admission import Admission
from zfserve_server.admission.caller_identity import CallerIdentity
from zfserve_server.admission.rate_limit import RateLimit
from zfserve_server.batching.batcher import Batcher
from zfserve_server.models.engine_choice import EngineChoice
from zfserve_server.models.registry import ModelRegistry
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.classification import AdmittedRequest, ClassificationPipeline
from zfserve_server.requests.image_decoder import ImageDecoder
from zfserve_server.requests.photo_cache import PhotoCache


class Pipeline:
    """Holds a pipeline with one model. `request` classifies images as one counted request."""

    def __init__(self, engine: FakeEngine) -> None:
        self.metrics, self.models = Metrics(), ModelRegistry(lambda: ServiceError("no model"))
        metrics = self.metrics.of_model(MANIFEST.name, MANIFEST.version)
        self.batcher = Batcher([engine], (8, 8, 3), metrics, lambda: None)
        self.batcher.start()
        admission = Admission(8, self.batcher.service_rate)
        self.model = ServedModel(
            MANIFEST, EngineChoice("onnx-cpu", [engine]), self.batcher, admission, metrics, startup_s=0.0
        )
        self.models.add(self.model)
        self.decoder = ImageDecoder(ImageLimits(), PhotoCache(4, 60.0), threads=1)
        self.steps = ClassificationPipeline(self.models, RateLimit(0.001, 1), self.decoder, self.metrics)

    async def request(self, *images: Any) -> list[float]:
        """Returns the first feature of each image."""
        with self.model.metrics.statistics.request() as counted:
            admitted = AdmittedRequest(self.model, CallerIdentity("shop"), Deadline(), counted)
            classified = await self.steps.classify_each(admitted, images, field="photos")
            return [float(result.features[0]) for _, result in classified]

    def samples(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


@pytest.fixture
async def pipeline(engine: FakeEngine) -> AsyncIterator[Pipeline]:
    made = Pipeline(engine)
    with made.decoder:
        yield made
    await made.batcher.close()


async def test_files_pixels_and_messages_are_classified_alike(pipeline: Pipeline) -> None:
    assert await pipeline.request(png(3)) == [3]
    assert await pipeline.request(*batch_of(263, 4)) == [263, 4]
    assert await pipeline.request(raw_image(5), pb.Image(encoded=png(6))) == [5, 6]


async def test_a_reference_leads_to_the_model_that_gave_it_out(pipeline: Pipeline) -> None:
    photo = await pipeline.steps.decode(png(3), pipeline.model)
    reference = pipeline.steps.keep(photo, pipeline.model)
    assert pipeline.steps.find_model("", "", reference) is pipeline.model
    again = await pipeline.steps.decode(pb.Image(reference=reference), pipeline.model)
    assert np.array_equal(again.image.pixels, photo.image.pixels)
    assert pipeline.steps.keep(again, pipeline.model) == reference
    with pytest.raises(NotFound):
        pipeline.steps.find_model("", "", "unknown")
    assert pipeline.steps.find_model("fake", "", "unknown") is pipeline.model


async def test_a_bad_image_is_named_and_the_request_counts_as_failed(pipeline: Pipeline) -> None:
    with pytest.raises(ImageUndecodable, match=r"^image 1: ") as failed:
        await pipeline.request(png(1), b"no image")
    assert failed.value.field == "photos"
    assert pipeline.model.metrics.statistics.failed.count == 1
    assert pipeline.model.metrics.statistics.answered.count == 0


async def test_times_are_recorded_after_the_answer_and_for_each_image(pipeline: Pipeline) -> None:
    assert await pipeline.request(png(1), png(2)) == [1, 2]
    assert pipeline.samples("zfserve_decode_seconds_count") == 0
    await asyncio.sleep(0)
    assert pipeline.samples("zfserve_decode_seconds_count") == 2
    assert pipeline.model.metrics.statistics.answered.count == 1


async def test_a_failed_run_records_no_times(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.failures.append(RuntimeError("out of memory"))
    with pytest.raises(EngineFailed):
        await pipeline.request(png(1))
    await asyncio.sleep(0)
    assert pipeline.samples("zfserve_decode_seconds_count") == 0
    assert pipeline.model.metrics.statistics.failed.count == 1


async def test_each_identification_counts_for_the_rate_limit(pipeline: Pipeline) -> None:
    call: Any = FakeContext(("x-client-id", "shop"))
    assert pipeline.steps.identify(call) == CallerIdentity("shop")
    with pytest.raises(RateExceeded):
        pipeline.steps.identify(call)
