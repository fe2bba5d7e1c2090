"""Tests that networks of the field are projected as automatic differentiation projects them. See `make test-zoo`."""

import pytest
from zoo.networks import exported
from zoo.projections import DEPTHS, PROJECTED, measure_projections, save_projections

pytestmark = pytest.mark.timeout(1200)

LARGEST_RELATIVE_DIFFERENCE = 1e-5


@pytest.mark.parametrize("network", PROJECTED)
def test_projections_equal_automatic_differentiation(network: str) -> None:
    record = measure_projections(network, "new", exported(network, "new"))
    save_projections(record)
    assert len(set(record.layers)) == DEPTHS
    assert record.difference <= LARGEST_RELATIVE_DIFFERENCE
