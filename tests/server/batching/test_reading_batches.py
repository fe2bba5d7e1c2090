"""Tests that images of a reading engine are run by it, and that each gets its own row of the readings."""

import asyncio

import numpy as np
from fakes.reading_engine import FakeReadingEngine, fake_maps
from fakes.serving import SIDE, FakeEngine, pixels_of
from zfserve_engines.readings.plan import Reading, ReadingPlan, Replacement
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.batching.batcher import Batcher

NEVER = Deadline()
MAPS = Reading("conv1", 6, 4, 4, "maps")
STRONGEST = Reading("conv1", 6, 4, 4, "strongest")


async def test_each_image_gets_its_own_readings(engine: FakeEngine) -> None:
    batcher = Batcher([engine], (SIDE, SIDE, 3), Metrics().of_model("fake", "7"), lambda: None)
    batcher.start()
    reading = FakeReadingEngine(ReadingPlan((MAPS, STRONGEST), "conv1", 6))
    without = Replacement(np.array([[0, 1, 1, 1, 1, 0]], np.float32), np.zeros((1, 6), np.float32))
    results = await asyncio.gather(
        *(batcher.submit(pixels_of(number), NEVER, reading=reading) for number in (3, 5)),
        batcher.submit(pixels_of(7), NEVER, reading=reading, replacement=without),
        batcher.submit(pixels_of(9), NEVER),
    )
    await batcher.close()
    for number, result in zip((3, 5, 7), results, strict=False):
        maps, strongest = result.readings
        assert np.array_equal(maps.values, fake_maps(number, MAPS))
        assert strongest.values.tolist() == [number + index for index in range(6)]
        assert strongest.rows is not None
        assert strongest.columns is not None
        assert (strongest.rows * 4 + strongest.columns).tolist() == [(number + index) % 16 for index in range(6)]
    assert np.isclose(results[2].probabilities[7], 0.548)
    assert results[3].readings == ()
    assert engine.batches == [[9]]
