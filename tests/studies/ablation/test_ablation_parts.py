"""Tests groups of maps, and the counts of `zfserve ablate`, by hand."""

import numpy as np
import pytest
from zfserve_studies.ablation.effects import PhotoAnswer, count_effects
from zfserve_studies.ablation.groups import GroupsUnusable, choose_groups, parse_maps
from zfserve_studies.figures.ablation_figure import group_name


def test_maps_are_numbers_and_ranges() -> None:
    assert parse_maps("40, 0-2,1") == (0, 1, 2, 40)
    assert choose_groups(None, None, 3) == ((0,), (1,), (2,))
    assert choose_groups("2,0", None, 3) == ((0,), (2,))
    assert choose_groups(None, "0-1;2", 3) == ((0, 1), (2,))


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(GroupsUnusable, match="is no list of maps; write maps such as 0-15,40"):
        parse_maps(text)


def test_a_map_beyond_the_layer_is_refused() -> None:
    with pytest.raises(GroupsUnusable, match="there is no map 3; the layer has the maps 0 to 2"):
        choose_groups("0-3", None, 3)


def test_accuracies_are_whole_and_by_class() -> None:
    effects = count_effects(
        [
            PhotoAnswer(0, (True, True, False), (0.5, 0.5, 0.25)),
            PhotoAnswer(0, (True, False, False), (1.0, 0.5, 0.25)),
            PhotoAnswer(2, (False, True, False), (0.0, 0.5, 0.25)),
        ],
        classes=3,
    )
    assert effects.photos.tolist() == [2, 0, 1]
    assert effects.whole.tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert effects.by_class[:, 0].tolist() == [1, 0.5, 0]
    assert effects.by_class[:, 2].tolist() == [0, 1, 0]
    assert np.isnan(effects.by_class[:, 1]).all()
    assert effects.probability.tolist() == pytest.approx([0.5, 0.5, 0.25])
    assert effects.ranked() == [1, 0]


def test_groups_have_short_names() -> None:
    assert [group_name(maps) for maps in ((7,), (3, 9), (0, 1, 2), (3, 9, 12))] == [
        "7",
        "3, 9",
        "0 to 2",
        "3, 9 and 1 more",
    ]
