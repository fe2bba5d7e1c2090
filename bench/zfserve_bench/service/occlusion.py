"""Benchmark `occlusion`: compares `Occlude` with the same images in in-process batches of the same engine.

It also measures the time to the first grid, and what an occlusion costs interactive calls beside it.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import numpy as np
import numpy.typing as npt
from zfserve_engines.contract import EngineInfo
from zfserve_engines.readings.opening import open_reading_engine
from zfserve_engines.readings.plan import ReadingEngine, ReadingPlan
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
from zfserve_runtime.bundle import Precision
from zfserve_server.studies.occluder import Occluder, make_fill
from zfserve_server.studies.occlusion_request import validate_occlude_request

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images, raw_request
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.paired import alternate, median_ratio
from zfserve_bench.service.interactive_calls import CALLS_A_BLOCK, InteractiveCalls, measure_calls
from zfserve_bench.services import classifying_service

MAX_RATIO = Limit("at most", 1.15)
"""The largest time of `Occlude`, in times of the same images in process."""

FIRST_GRID_IMAGES = Limit("at most", 64)
"""The first grid must come within the time of this many images in process."""

MAX_ADDED_MS = Limit("at most", 50)
"""The largest growth of the p99 of interactive calls, in milliseconds: one batch of bulk images."""

BATCH = 16
"""The largest batch of the service, and the batch size in process."""

PLACES_ACROSS, QUICK_PLACES_ACROSS = 13, 3
"""The number of places in each row and column."""

BLOCKS, QUICK_BLOCKS = 10, 1
"""The number of blocks of interactive calls alone, and of those beside occlusions."""

QUICK_CALLS = 5


def measure_occlusion(config: BenchmarkConfig) -> Report:
    findings = tuple(finding for precision in config.precisions for finding in _compare(config, precision))
    notes = (
        f"In process, the occluded images are made beforehand and run in batches of {BATCH}, with the same readings. "
        "The service makes them while it runs, and its engine that reads is open already.",
        f"Interactive calls come from one client, one after the other. Blocks of {CALLS_A_BLOCK} alone, and of as many "
        "while another client occludes without a pause, take turns.",
    )
    title = "Occlusion: Occlude of one photo, beside the same images in in-process batches of the same engine"
    return Report(title, "in process", "figure", findings, notes, measured="Occlude")


@dataclass(frozen=True, eq=False)
class _Occlusion:
    """Holds one call, and the images that it makes.

    Attributes:
        images: uint8 (N, H, W, 3): the photo, then the photo with a square at each place.
    """

    request: pb.OccludeRequest
    images: npt.NDArray[np.uint8]
    plan: ReadingPlan

    def times(self, vision: VisionServiceStub) -> tuple[float, float]:
        """Calls the service. Returns the seconds to the first grid, and to the end."""
        began = time.perf_counter()
        first_grid = 0.0
        for message in vision.Occlude(self.request, timeout=600):
            if message.done_places and not first_grid:
                first_grid = time.perf_counter() - began
        return first_grid, time.perf_counter() - began

    def seconds_in_process(self, engine: ReadingEngine) -> float:
        began = time.perf_counter()
        for first in range(0, len(self.images), BATCH):
            engine.run(self.images[first : first + BATCH])
        return time.perf_counter() - began


def _occlusion(config: BenchmarkConfig) -> _Occlusion:
    """Returns an occlusion of a random photo, whose square has a quarter of the input's shorter side."""
    manifest = config.bundle.manifest
    across = PLACES_ACROSS if config.effort.judged else QUICK_PLACES_ACROSS
    pixels = random_images(manifest.input, 1)[0]
    height, width = pixels.shape[:2]
    raw = pb.RawPixels(width=width, height=height, data=pixels.tobytes())
    size = max(1, min(height, width) // 4)
    request = pb.OccludeRequest(
        image=pb.Image(raw=raw), size=size, stride=max(1, (max(height, width) - size) // (across - 1))
    )
    settings = validate_occlude_request(request, manifest)
    assert settings.layer is not None, "the bundle of a benchmark names the tensors of its layers"
    plan = ReadingPlan((settings.layer.reading("strongest"), settings.layer.reading("sums")))
    occluder = Occluder(pixels, make_fill(pixels, request), settings.size)
    corners = np.array([(top, left) for top in settings.tops for left in settings.lefts])
    return _Occlusion(request, np.concatenate([pixels[None], occluder.cover(corners)]), plan)


class _Durations(NamedTuple):
    """Holds what was measured for one precision.

    Attributes:
        in_process, served: the seconds of all images, in process and by the service, in turns.
        first_grids: the seconds to the first grid of each call, without the first call.
        cold: the seconds to the first grid of the first call, which opens the engine that reads.
        calls: the durations of interactive calls alone, and beside occlusions.
    """

    in_process: list[float]
    served: list[float]
    first_grids: list[float]
    cold: float
    calls: InteractiveCalls


def _measure(config: BenchmarkConfig, precision: Precision, occlusion: _Occlusion) -> _Durations:
    info = EngineInfo("onnxruntime", "CPUExecutionProvider", precision, BATCH, config.threads)
    engine = open_reading_engine(config.bundle, occlusion.plan, like="onnx-cpu", info=info)
    folder = config.scratch(f"occlusion-{precision}")
    with (
        closing(engine),
        classifying_service(config, precision, folder) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        vision = VisionServiceStub(channel)
        cold, _ = occlusion.times(vision)
        first_grids: list[float] = []

        def occlude_s() -> float:
            first_grid, seconds = occlusion.times(vision)
            first_grids.append(first_grid)
            return seconds

        occlusion.seconds_in_process(engine)  # warm-up
        in_process, served = alternate(lambda: occlusion.seconds_in_process(engine), occlude_s, config.effort.rounds)
        requests = [raw_request(image) for image in random_images(config.bundle.manifest.input)]
        size = (BLOCKS, CALLS_A_BLOCK) if config.effort.judged else (QUICK_BLOCKS, QUICK_CALLS)
        calls = measure_calls(channel, requests, lambda: occlusion.times(vision), *size)
    return _Durations(in_process, served, first_grids, cold, calls)


def _compare(config: BenchmarkConfig, precision: Precision) -> Iterator[Finding]:
    occlusion = _occlusion(config)
    durations = _measure(config, precision, occlusion)
    images, judged = len(occlusion.images), config.effort.judged
    image_s = statistics.median(durations.in_process) / images
    first_grid_s = statistics.median(durations.first_grids)
    yield Finding(
        f"{precision}, {images} images",
        Quantity(statistics.median(durations.served), "s"),
        Quantity(statistics.median(durations.in_process), "s"),
        Quantity(median_ratio(durations.in_process, durations.served)),
        MAX_RATIO if judged else None,
    )
    yield Finding(
        f"{precision}, first grid",
        Quantity(first_grid_s * 1e3, "ms"),
        Quantity(image_s * 1e3, "ms an image"),
        Quantity(first_grid_s / image_s, "images"),
        FIRST_GRID_IMAGES if judged else None,
    )
    yield Finding(
        f"{precision}, first grid of the first call, which opens the engine",
        Quantity(durations.cold * 1e3, "ms"),
        None,
        Quantity(durations.cold / image_s, "images"),
    )
    for name, percent, limit in (("p99", 99, MAX_ADDED_MS if judged else None), ("median", 50, None)):
        alone_ms, beside_ms = durations.calls.percentiles(percent)
        yield Finding(
            f"{precision}, {name} of Classify beside an occlusion, over Classify alone",
            Quantity(beside_ms, "ms"),
            Quantity(alone_ms, "ms"),
            Quantity(beside_ms - alone_ms, "ms"),
            limit,
        )
