"""The places of a sliding square cover the image, and every level of them is a grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zfserve_server.studies.places import COARSE_PLACES, coarse_to_fine, count_places, edges


@pytest.mark.parametrize(
    ("side", "size", "stride", "expected"),
    [
        (8, 2, 2, (0, 2, 4, 6)),
        (8, 3, 2, (0, 2, 4, 5)),  # the last place lies at the edge, one pixel after the place before
        (8, 8, 1, (0,)),
        (8, 1, 1, tuple(range(8))),
        (8, 2, 100, (0, 6)),
        (9, 3, 3, (0, 3, 6)),
    ],
)
def test_the_edges_of_the_square(side: int, size: int, stride: int, expected: tuple[int, ...]) -> None:
    assert edges(side, size, stride) == expected


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400), st.data())
def test_the_square_stays_inside_and_ends_at_the_edge(
    height: int, width: int, stride: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, min(height, width)))
    tops, lefts = edges(height, size, stride), edges(width, size, stride)
    for side, places in ((height, tops), (width, lefts)):
        assert places[0] == 0
        assert places[-1] == side - size
        steps = np.diff(places)
        assert (steps > 0).all()
        assert (steps[:-1] == stride).all()
        assert (steps <= stride).all()
    assert count_places(height, width, size, stride) == len(tops) * len(lefts)


@given(st.integers(1, 110), st.integers(1, 110))
def test_every_place_comes_once_and_every_level_is_a_grid(rows: int, columns: int) -> None:
    known: set[tuple[int, int]] = set()
    spacings = []
    for spacing, places in coarse_to_fine(rows, columns):
        new = set(map(tuple, places.tolist()))
        assert len(new) == len(places) > 0
        assert not known & new
        known |= new
        assert known == {(row, column) for row in range(0, rows, spacing) for column in range(0, columns, spacing)}
        spacings.append(spacing)
        if len(spacings) == 1:
            assert len(known) <= COARSE_PLACES
    assert len(known) == rows * columns
    assert spacings == [spacings[0] >> level for level in range(len(spacings))]
    assert spacings[-1] == 1
