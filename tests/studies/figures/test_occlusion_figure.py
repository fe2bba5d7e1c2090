"""Tests where the figure of an occlusion draws what, with places computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
from fakes.pictures import png
from fakes.study_answers import MODEL, occlusion_messages
from PIL import Image
from zfserve.occlusion import Occlusion
from zfserve.results import Box
from zfserve.study_replies import occlusion_update
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_studies.figures.occlusion_figure import occlusion_figure
from zfserve_studies.figures.places import areas_of, cell_edges, scaled
from zfserve_studies.figures.style import render
from zfserve_studies.occlusion.categories import categories
from zfserve_studies.occlusion.study import OccludedPhoto, OcclusionOptions, Reference, picture

PHOTO = Image.new("RGB", (64, 64), (200, 180, 90))


def occluded() -> OccludedPhoto:
    occlusion = Occlusion.from_updates(map(occlusion_update, occlusion_messages(pb.OccludeRequest())))
    assert MODEL.name == occlusion.plan.model.name
    return OccludedPhoto(
        name="a $photo$ 塔.jpg",
        options=OcclusionOptions(12, None, (128, 128, 128), "", "", None),
        occlusion=occlusion,
        labels=tuple(f"label {at}" for at in range(6)),
        input_size=(32, 32),
        projection=None,
        note="the node Softmax_1 is in the way",
        references=(),
    )


def test_cells_lie_around_the_centres_of_their_squares() -> None:
    # Squares of 12 at 0, 16 and 20 have the centres 6, 22 and 26. The photo is twice as large, and begins at 10.
    assert cell_edges((0, 16, 20), 12, first=10, scale=2).tolist() == [6, 38, 58, 66]
    assert cell_edges((4,), 12, first=0, scale=1).tolist() == [4, 16]


def test_boxes_are_scaled_to_the_region_that_the_input_covers() -> None:
    assert scaled(Box(8, 16, 16, 32), Box(100, 0, 164, 64), (32, 32)) == (116, 32, 16, 32)


def test_areas_share_sides_and_not_corners() -> None:
    assert sorted(map(sorted, areas_of(np.array([[1, 0, 1], [1, 0, 0], [0, 1, 1]], dtype=bool)))) == [
        [(0, 0), (1, 0)],
        [(0, 2)],
        [(2, 1), (2, 2)],
    ]


def test_the_class_of_the_study_comes_first_and_rare_labels_together() -> None:
    result = occluded()
    grid = ((1, 1, 0), (2, 3, 4), (5, 6, 7), (8, 9, 9))
    many = replace(
        result,
        occlusion=replace(result.occlusion, best_classes=grid),
        labels=tuple(f"label {at}" for at in range(10)),
    )
    found = categories(many)
    assert [(each.letter, each.label, each.count) for each in found[:3]] == [
        ("A", "label 1", 2),
        ("B", "label 9", 2),
        ("C", "label 0", 1),
    ]
    assert (found[-1].label, found[-1].indices, found[-1].count) == ("3 other labels", (6, 7, 8), 3)
    assert len({each.colour for each in found}) == 8


@pytest.mark.parametrize("references", [0, 2, 12])
def test_every_panel_is_drawn(references: int) -> None:
    many = tuple(Reference(f"{at}.jpg", 2.0, picture(png((9, 99, 9)))) for at in range(references))
    figure = occlusion_figure(replace(occluded(), references=many), PHOTO)
    titles = [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "(a) the photo, and the place that matters most"
    assert "(b) sum of map 5 of relu5" in titles
    assert "(d) probability of church" in titles
    assert "(e) most probable label" in titles
    assert ("(c) map 5 in other photos" in titles) is (references > 0)
    assert r"a \$photo\$ ?.jpg: church" in figure.get_suptitle()
    drawn = render(figure)
    assert drawn.size[0] == 1200
    assert len(drawn.getcolors(1 << 24) or []) > 100


def test_a_network_whose_layers_cannot_be_read_has_no_map() -> None:
    result = occluded()
    plan = replace(result.occlusion.plan, map=None, unit=None, layer="")
    figure = occlusion_figure(
        replace(result, occlusion=replace(result.occlusion, plan=plan, map_sums=()), note="no layer can be read"), PHOTO
    )
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "(b) no map: no layer can be read" in texts
    render(figure)
