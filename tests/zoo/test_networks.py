"""Tests that networks of the field are imported whole, and compute what ONNX Runtime does. See `make test-zoo`."""

from pathlib import Path

import pytest
from zoo.measurement import measure, save
from zoo.networks import EXPORTERS, LIGHT, PYTORCHCV, exported, filled

pytestmark = pytest.mark.timeout(1200)  # An export takes up to some minutes on a busy machine.

LARGEST_RELATIVE_DIFFERENCE = 1e-4


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("network", PYTORCHCV)
def test_a_network_of_pytorchcv(network: str, exporter: str) -> None:
    hold(network, exporter, exported(network, exporter))


@pytest.mark.parametrize("network", LIGHT)
def test_a_light_architecture(network: str) -> None:
    hold(network, "light", filled(network))


def hold(network: str, exporter: str, file: Path) -> None:
    record = measure(network, exporter, file)
    save(record)
    assert not record.obstacle
    assert record.rule
    assert record.scale > 1e-3, "logits that vanish would agree with anything"
    assert record.difference <= LARGEST_RELATIVE_DIFFERENCE * record.scale
