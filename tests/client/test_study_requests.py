"""Tests the requests of activations, occlusion, ablation and transformation, and what they refuse before sending."""

import math
from typing import Any

import pytest
from zfserve import Blur, InvalidInput
from zfserve.study_requests import (
    ablate_request,
    activations_request,
    occlude_request,
    transform_request,
    with_photos,
    with_rules,
)
from zfserve_protos.v1 import zfserve_pb2 as pb

OCCLUDE: dict[str, Any] = {
    "size": None,
    "stride": None,
    "fill": (0, 0, 0),
    "class_name": "",
    "layer": "last",
    "map_index": None,
}
ABLATE: dict[str, Any] = {
    "layer": "last",
    "strongest": 9,
    "groups": None,
    "for_class": None,
    "replacement": "zero",
}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (([], "strongest", None), "layers"),
        ((["conv1"], "weakest", None), "form"),
        ((["conv1"], "grid", None), "grid_height"),
        ((["conv1"], "maps", (2, 2)), "grid_height"),
        ((["conv1"], "grid", (0, 2)), "grid_height"),
        ((["conv1"], "grid", (2, -1)), "grid_width"),
    ],
    ids=str,
)
def test_wrong_arguments_of_activations(arguments: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        activations_request(*arguments)
    assert caught.value.field == field


def test_one_layer_needs_no_list() -> None:
    assert list(activations_request("conv1", "maps", None).layers) == ["conv1"]


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([], "at least one photo"),
        ("photo.jpg", "a list of photos"),
        (b"jpeg", "a list of photos"),
        ([b"123", bytes(600), bytes(600)], "the first 3 photos take 1,2.. bytes.* send fewer"),
        ([bytes(2000)], "scale it down"),
    ],
    ids=["none", "path", "bytes", "all too large", "one too large"],
)
def test_photos_that_are_refused(images: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        with_photos(activations_request("conv1", "maps", None), images, pb.ModelSelector(), 1000)
    assert caught.value.field in ("images", "image")


def test_photos_may_come_from_a_generator() -> None:
    request = with_photos(
        activations_request("conv1", "maps", None), (bytes([at]) for at in range(3)), pb.ModelSelector(name="m"), 1000
    )
    assert [image.encoded for image in request.images] == [b"\0", b"\1", b"\2"]
    assert request.model.name == "m"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"size": 0}, "size"),
        ({"size": -3}, "size"),
        ({"stride": 0}, "stride"),
        ({"map_index": -1}, "map"),
        ({"fill": "median"}, "fill"),
        ({"fill": (0, 0)}, "fill"),
        ({"fill": (0, 0, 256)}, "fill"),
        ({"fill": (0.5, 0, 0)}, "fill"),
        ({"fill": Blur(0)}, "blur.sigma"),
        ({"fill": Blur(math.nan)}, "blur.sigma"),
    ],
    ids=str,
)
def test_wrong_arguments_of_an_occlusion(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        occlude_request(*(OCCLUDE | changes).values())
    assert caught.value.field == field


def test_the_fills_of_an_occlusion() -> None:
    def filled(fill: Any) -> pb.OccludeRequest:
        return occlude_request(*(OCCLUDE | {"fill": fill}).values())

    assert filled((0, 0, 0)).WhichOneof("fill") == "colour", "black is no default"
    assert filled([1, 2, 3]).colour == pb.Colour(red=1, green=2, blue=3)
    assert filled("mean").WhichOneof("fill") == "photo_mean"
    assert filled(Blur()).blur.sigma == 10
    assert filled(Blur(2.5)).blur.sigma == 2.5


def test_map_0_is_not_taken_for_the_default() -> None:
    assert occlude_request(*(OCCLUDE | {"map_index": 0}).values()).HasField("map")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"strongest": -1}, "strongest"),
        ({"groups": [[0], [-1]]}, "groups.indices"),
        ({"groups": [0], "for_class": ""}, "for_class"),
        ({"for_class": "bee", "strongest": 0}, "for_class.count"),
        ({"replacement": "median"}, "replacement"),
        ({"replacement": [0.0, math.inf]}, "values"),
    ],
    ids=str,
)
def test_wrong_arguments_of_an_ablation(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ablate_request(*(ABLATE | changes).values())
    assert caught.value.field == field


def test_no_groups_are_not_taken_for_the_default() -> None:
    assert ablate_request(*(ABLATE | {"groups": []}).values()).WhichOneof("maps") == "groups"


@pytest.mark.parametrize(
    ("kind", "steps", "field"),
    [("shear", None, "kind"), ("scale", [], "steps"), ("scale", [1.0, math.nan], "steps")],
    ids=["kind", "no steps", "nan"],
)
def test_wrong_arguments_of_a_transformation(kind: Any, steps: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        transform_request(kind, steps, "", "", False)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("border", "resampling", "field"), [("white", "nearest", "border"), ("grey", "cubic", "resampling")]
)
def test_wrong_rules_of_a_transformation(border: Any, resampling: Any, field: str) -> None:
    with pytest.raises(InvalidInput, match=r"give one of 'grey', 'black'|give one of 'bilinear', 'nearest'") as caught:
        with_rules(pb.TransformRequest(), border, resampling)
    assert caught.value.field == field
