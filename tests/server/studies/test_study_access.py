"""Studies need their permission, are traced by batches, and answer a client of the library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.callers import bearer, write_callers
from fakes.cells_network import BundlesOnDisk, photo, raw_photo, write_cells_bundle
from fakes.collector import Collector
from fakes.serving import Running, running_server
from fakes.study_calls import messages_of
from zfserve import AsyncClient
from zfserve_protos.v1 import zfserve_pb2 as pb

PHOTO = photo(11)
OCCLUDE = "zfserve.v1.VisionService/Occlude"


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def endpoint(collector: Collector) -> Iterator[str]:
    with collector.listening() as endpoint:
        yield endpoint


async def test_all_studies_need_the_permission_explain(tmp_path: Path) -> None:
    tokens = write_callers(tmp_path / "tokens.json", student="explain", shop="classify,project")
    bundles = BundlesOnDisk(write_cells_bundle(tmp_path))
    async with running_server(repository=bundles, tokens=tmp_path / "tokens.json") as server:
        image, vision = raw_photo(PHOTO), server.vision

        def calls(token: str) -> list[Any]:
            known: Any = {"metadata": bearer(token)}
            return [
                vision.Activations(pb.ActivationsRequest(images=[image], layers=["last"]), **known),
                vision.Occlude(pb.OccludeRequest(image=image, size=4), **known),
                vision.Ablate(pb.AblateRequest(image=image), **known),
                vision.Transform(pb.TransformRequest(image=image, kind=pb.TRANSFORM_KIND_HUE, steps=[9]), **known),
            ]

        for call in calls(tokens["student"]):
            assert await messages_of(call)
        for call in calls(tokens["shop"]):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await messages_of(call)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_trace_has_a_span_for_each_batch_and_none_for_each_image(
    tmp_path: Path, collector: Collector, endpoint: str
) -> None:
    bundles = BundlesOnDisk(write_cells_bundle(tmp_path))
    async with running_server(repository=bundles, otlp_endpoint=endpoint) as server:
        await messages_of(server.vision.Occlude(pb.OccludeRequest(image=raw_photo(PHOTO), size=4, stride=2)))
    call = collector.only(OCCLUDE)
    batches = collector.named("study batch")
    assert [span.attributes["zfserve.images"] for span in batches] == [1, 4, 4, 1]
    assert {span.attributes["zfserve.study"] for span in batches} == {"occlude"}
    assert {span.name for span in collector.spans} == {OCCLUDE, "study batch"}
    assert all(span.parent == call.id for span in batches)


async def test_the_client_of_the_library(cells: Running) -> None:
    async with AsyncClient(f"127.0.0.1:{cells.ports.grpc}") as client:
        occlusion = await client.occlusion(PHOTO, size=4, stride=2)
        assert (len(occlusion.probabilities), len(occlusion.probabilities[0])) == (3, 3)
        assert occlusion.summary.probability == min(map(min, occlusion.probabilities))
        photos = [each async for each in client.activations([PHOTO, PHOTO], ["cells", "features"], form="maps")]
        assert [each.image for each in photos] == [0, 1]
        assert (photos[0].layers["cells"].maps, photos[0].layers["features"].height) == (3, 1)
        steps = [each async for each in client.transform(PHOTO, "rotation", steps=[0, 90])]
        assert steps[0].low is not None
        assert steps[0].low.distance == 0
        groups = [each async for each in client.ablate(PHOTO, "lit", groups=[0, (1, 2)], replacement="mean")]
        assert [each.maps for each in groups] == [(0,), (1, 2)]
