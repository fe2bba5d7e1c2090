"""Projects networks of the zoo at five depths, and holds each projection against automatic differentiation.

`make test-zoo` calls it. All numbers are float64, so that a difference is an error and no rounding.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from fakes.autograd_projection import reference_projection
from torch import Tensor
from zfserve_model.explanation.deconvnet import StrongestUnit, Trace, WholeMap, project, strongest_maps, trace
from zfserve_model.explanation.rules import projection_rule
from zfserve_model.graph.execution import move_graph
from zfserve_model.importing.importer import import_graph
from zfserve_model.layers.layer_table import LayerRow, layer_table
from zoo.networks import FOLDER

PROJECTED = (
    *("zfnet", "alexnet", "resnet50", "preresnet18", "seresnet50", "densenet121", "inceptionv3", "mobilenetv2_w1"),
    *("mobilenetv3_large_w1", "efficientnet_b0", "shufflenetv2_w1", "hrnet_w18_small_v1"),
)
"""Twelve networks of pytorchcv, one for each kind of block."""
DEPTHS = 5


@dataclass(frozen=True)
class ProjectionRecord:
    """Holds what was measured on the projections of one network.

    Attributes:
        network, exporter: the name of the network, and "new" or "old" for torch's two exporters.
        layers: the names of the projected layers, in forward order.
        rule: the rule of the last layer, "paper" or "extended".
        difference: the largest difference to the reference, relative to its largest value, over all layers.
        day: when it was measured, as 2026-12-31.
    """

    network: str
    exporter: str
    layers: tuple[str, ...]
    rule: str
    difference: float
    day: str


def measure_projections(network: str, exporter: str, file: Path) -> ProjectionRecord:
    """Projects the strongest map of five layers, from its strongest unit and as a whole."""
    graph = move_graph(import_graph(file), "cpu", torch.float64)
    rows = five_depths(layer_table(graph))
    image = torch.randn(graph.shapes[graph.input][1:], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    traced = trace(graph, image, [row.tensor for row in rows])
    return ProjectionRecord(
        network=network,
        exporter=exporter,
        layers=tuple(row.name for row in rows),
        rule=projection_rule(graph, rows[-1].tensor).rule,
        difference=max(difference for row in rows for difference in differences(traced, row.tensor)),
        day=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def five_depths(rows: tuple[LayerRow, ...]) -> list[LayerRow]:
    """Returns five layers at even distances, with the first and the last."""
    return [rows[round(part * (len(rows) - 1) / (DEPTHS - 1))] for part in range(DEPTHS)]


def differences(traced: Trace, tensor: str) -> Iterator[float]:
    """Yields the difference to automatic differentiation for the strongest unit of the layer, and for its whole map."""
    for rule in (StrongestUnit(), WholeMap()):
        (found,) = project(traced, tensor, strongest_maps(traced, tensor, 1), rule)
        place = None if found.unit is None else (found.unit.row, found.unit.column)
        expected = reference_projection(traced.graph, traced.image, tensor, found.map, place)
        yield relative_difference(
            on_whole_image(traced.image, found.pixels, found.window.top, found.window.left), expected
        )


def on_whole_image(image: Tensor, pixels: Tensor, top: int, left: int) -> Tensor:
    whole = torch.zeros_like(image)
    whole[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return whole


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    largest = float(expected.abs().max())
    assert largest > 0, "a projection that vanishes would agree with anything"
    return float((actual - expected).abs().max()) / largest


def save_projections(record: ProjectionRecord) -> None:
    """Writes the record beside the network's file."""
    _file(record.network, record.exporter).write_text(json.dumps(asdict(record)))


def projection_records() -> Iterator[ProjectionRecord]:
    """Yields the records of all networks in the order of the list. Skips those that were not measured."""
    for network in PROJECTED:
        file = _file(network, "new")
        if file.exists():
            yield ProjectionRecord(**json.loads(file.read_text()))


def _file(network: str, exporter: str) -> Path:
    return FOLDER / f"{network}-{exporter}-projections.json"
