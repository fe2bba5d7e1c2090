"""The Python client reads the answers of the studies as the server sends them."""

import numpy as np
import pytest
from fakes.cells_network import ServeCells, cells_of, features_of, lit_of, photo, probabilities_of
from fakes.serving import Running
from zfserve import AsyncClient, InvalidInput, NotFound

PHOTO = photo(5)


def client_of(server: Running) -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{server.ports.grpc}")


async def test_activations(cells: Running) -> None:
    photos = [PHOTO, photo(6)]
    async with client_of(cells) as client:
        strongest = [each async for each in client.activations(photos, ["lit", "features"])]
        whole = [each async for each in client.activations(photos, "cells", form="maps")]
        pooled = [each async for each in client.activations(photos, "cells", form="grid", grid=(2, 2))]
    for at, pixels in enumerate(photos):
        assert [each[at].image for each in (strongest, whole, pooled)] == [at] * 3
        assert strongest[at].best.index == probabilities_of(pixels).argmax()
        assert list(strongest[at].layers) == ["lit", "features"]
        np.testing.assert_allclose(strongest[at].layers["features"].to_numpy().ravel(), features_of(pixels), rtol=1e-5)
        layer, lit = strongest[at].layers["lit"], lit_of(pixels)
        positions = layer.positions
        assert positions is not None
        for number, (value, place) in enumerate(zip(layer.values, positions, strict=True)):
            assert value == pytest.approx(lit[number].max())
            assert value == pytest.approx(lit[number, place.row, place.column])
        np.testing.assert_allclose(whole[at].layers["cells"].to_numpy(), cells_of(pixels), rtol=1e-5)
        means = cells_of(pixels).reshape(3, 2, 2, 2, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(pooled[at].layers["cells"].to_numpy(), means, rtol=1e-5)
    assert (whole[0].computation.engine, whole[0].computation.precision) == ("onnx-cpu", "fp32")
    assert whole[0].model.name == "cells"


async def test_an_occlusion(cells: Running) -> None:
    async with client_of(cells) as client:
        answer = await client.occlusion(PHOTO, size=4, stride=2, fill=(0, 0, 0), class_name="green", layer="lit", map=1)
        with pytest.raises(InvalidInput):
            await client.occlusion(PHOTO, size=9)
        with pytest.raises(NotFound):
            await client.occlusion(PHOTO, class_name="mauve")
    assert (answer.plan.tops, answer.plan.lefts, answer.plan.size) == ((0, 2, 4), (0, 2, 4), 4)
    assert (answer.plan.for_class.label, answer.plan.layer, answer.plan.map) == ("green", "lit", 1)
    for row, top in enumerate(answer.plan.tops):
        for column, left in enumerate(answer.plan.lefts):
            covered = PHOTO.copy()
            covered[top : top + 4, left : left + 4] = 0
            assert answer.probabilities[row][column] == pytest.approx(probabilities_of(covered)[1], rel=1e-4)
            assert answer.best_classes[row][column] == probabilities_of(covered).argmax()
            assert answer.map_sums[row][column] == pytest.approx(lit_of(covered)[1].sum(), rel=1e-4)
    assert answer.summary.probability == min(map(min, answer.probabilities))
    assert answer.summary.map_sum == min(map(min, answer.map_sums))


async def test_an_ablation(cells: Running) -> None:
    async with client_of(cells) as client:
        first, second = [step async for step in client.ablate(PHOTO, "lit", groups=[0, (1, 2)])]
    assert (first.maps, second.maps, second.layer, second.attribution) == ((0,), (1, 2), "lit", None)
    np.testing.assert_allclose(second.untouched, probabilities_of(PHOTO), rtol=1e-4)
    np.testing.assert_allclose(second.cumulative, [1 / 3] * 3, rtol=1e-4)
    assert first.alone == first.cumulative


async def test_a_transformation(cells: Running) -> None:
    async with client_of(cells) as client:
        steps = [step async for step in client.transform(PHOTO, "horizontal-flip", low_layer="cells", pictures=True)]
    untouched, flipped = steps
    assert untouched.low is not None
    assert flipped.low is not None
    assert (untouched.low.layer, untouched.low.distance) == ("cells", 0.0)
    assert flipped.low.distance == pytest.approx(
        np.linalg.norm(cells_of(PHOTO[:, ::-1]) - cells_of(PHOTO).astype(np.float64)), rel=1e-4
    )
    assert (flipped.kind, flipped.border, flipped.resampling) == ("horizontal-flip", "grey", "bilinear")
    assert flipped.untouched.probability == pytest.approx(probabilities_of(PHOTO).max(), rel=1e-4)
    assert flipped.picture_png


async def test_a_network_without_a_layer(serve_cells: ServeCells) -> None:
    async with serve_cells(layers=(), has_features=False) as server, client_of(server) as client:
        answer = await client.occlusion(PHOTO, size=4)
        assert (answer.plan.map, answer.plan.unit, answer.map_sums, answer.summary.map_box) == (None, None, (), None)
        step, *_ = [step async for step in client.transform(PHOTO, "horizontal-flip")]
        assert (step.low, step.high) == (None, None)
