"""Tests how long the cache keeps photos, and which requests add a photo to it."""

from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from fakes.clock import Clock
from fakes.serving import MANIFEST, FakeEngine, Running, classify_request, running_server
from zfserve_engines.images.input_image import InputImage
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import NotFound
from zfserve_server.requests.photo_cache import CachedPhoto, PhotoCache


def photo() -> CachedPhoto:
    return CachedPhoto(InputImage(np.zeros((2, 2, 3), np.uint8), 2, 2, (0.0, 0.0, 2.0, 2.0)), MANIFEST)


def test_a_reference_leads_to_its_own_photo() -> None:
    cache = PhotoCache(4, 10.0)
    first, second = photo(), photo()
    names = cache.add(first), cache.add(second)
    assert len(set(names)) == 2
    assert cache.get(names[0]) is first
    assert cache.get(names[1]) is second


def test_a_reference_is_unguessable() -> None:
    cache = PhotoCache(100, 10.0)
    names = {cache.add(photo()) for _ in range(100)}
    assert len(names) == 100
    assert min(map(len, names)) >= 22  # 128 bits in base64


def test_the_least_recently_used_makes_room() -> None:
    cache = PhotoCache(2, 10.0)
    oldest, other = cache.add(photo()), cache.add(photo())
    cache.get(oldest)
    newest = cache.add(photo())
    assert len(cache) == 2
    with pytest.raises(NotFound):
        cache.get(other)
    cache.get(oldest)
    cache.get(newest)


def test_a_reference_expires_unless_it_is_used() -> None:
    clock = Clock()
    cache = PhotoCache(4, 10.0, clock)
    used, unused = cache.add(photo()), cache.add(photo())
    clock.now_s = 6.0
    cache.get(used)
    clock.now_s = 12.0
    cache.get(used)
    with pytest.raises(NotFound, match="expired"):
        cache.get(unused)
    clock.now_s = 22.0
    with pytest.raises(NotFound):
        cache.get(used)
    assert len(cache) == 0


@pytest.fixture
async def server(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """Starts a server that keeps one photo."""
    monkeypatch.setattr("zfserve_server.grpc_server.MAX_CACHED_PHOTOS", 1)
    async with running_server(engine) as running:
        yield running


async def refer(server: Running, reference: str) -> float:
    """Returns the first feature of the photo that `reference` stands for."""
    request = pb.ClassifyRequest(image=pb.Image(reference=reference), include_features=True)
    return (await server.vision.Classify(request)).features[0]


async def test_a_photo_takes_a_place_once_it_is_answered(server: Running) -> None:
    first = await server.vision.Classify(classify_request(1))
    second = await server.vision.Classify(classify_request(2))
    assert await refer(server, second.image_reference) == 2
    with pytest.raises(grpc.aio.AioRpcError):
        await refer(server, first.image_reference)


async def test_a_photo_takes_no_place_where_the_engine_fails(server: Running, engine: FakeEngine) -> None:
    kept = (await server.vision.Classify(classify_request(1))).image_reference
    engine.failures.append(RuntimeError("out of memory"))
    with pytest.raises(grpc.aio.AioRpcError):
        await server.vision.Classify(classify_request(2))
    assert await refer(server, kept) == 1


async def test_a_photo_takes_no_place_where_its_probabilities_are_not_finite(
    server: Running, engine: FakeEngine
) -> None:
    kept = (await server.vision.Classify(classify_request(1))).image_reference
    engine.not_finite.add(2)
    with pytest.raises(grpc.aio.AioRpcError):
        await server.vision.Classify(classify_request(2))
    assert await refer(server, kept) == 1


async def test_a_photo_takes_no_place_where_the_deadline_passes(server: Running, engine: FakeEngine) -> None:
    kept = (await server.vision.Classify(classify_request(1))).image_reference
    engine.open.clear()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await server.vision.Classify(classify_request(2), timeout=0.5)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The client's clock may be ahead: the engine answers only once the server has ended the call too.
    await server.wait_for_metric('zfserve_in_flight{method="/zfserve.v1.VisionService/Classify"} 0.0')
    engine.open.set()
    assert await refer(server, kept) == 1


def test_an_unknown_reference_is_not_found() -> None:
    with pytest.raises(NotFound, match="send the image itself"):
        PhotoCache(4, 10.0).get("guess")
