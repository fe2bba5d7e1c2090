"""Imports a network of the zoo, holds it against ONNX Runtime, and writes the table of all networks.

`make test-zoo` calls it: the tests write one record for each file beside the file, and then this module, run by itself,
writes `docs/measurements/zoo.md` from the records.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from zfserve_bench.reports.machine import cpu_model
from zfserve_model.explanation.rules import forward_obstacle, projection_rule
from zfserve_model.graph.execution import run
from zfserve_model.graph.graph import Graph
from zfserve_model.importing.importer import import_graph
from zoo.networks import EXPORTERS, FOLDER, LIGHT, PYTORCHCV
from zoo.projections import ProjectionRecord, projection_records

PAGE = Path(__file__).parents[2] / "docs" / "measurements" / "zoo.md"

TEMPLATE = """# The zoo

*Which networks were imported, and do they compute the same as in ONNX Runtime?*

`make test-zoo` exports 25 networks of pytorchcv with both of torch's exporters and random weights, and puts random
weights into the nine architectures of the `onnx` package's test data. It imports each file and compares the logits with
those of ONNX Runtime, at batch sizes 1 and 3. The logits are compared because a softmax hides differences.

Measured on {days}: {machine},
{versions}.

| network | exporter | nodes in the file | nodes in the graph | operations | largest difference | largest logit | \
classify | project | rule |
|---|---|---|---|---|---|---|---|---|---|
{table}

The exporters are torch's current one (`new`, `dynamo=True`) and the older one (`old`). The files called `light` are
those of the `onnx` package. The columns *project* and *rule* are of the last map with more than one place. The rule
`extended` rectifies where the paper has no rule, as [the deconvnet](../deconvnet.md#the-rule-of-each-operation) says.

## Projections

*Are projections right?* `make test-zoo` projects twelve of the networks, written by torch's current exporter, at five
depths each: the strongest map of the layer, from its strongest unit and as a whole. It holds them against automatic
differentiation, a mechanism that shares no code with the deconvnet, in float64. The difference is relative to the
largest value of the reference, and the largest of all ten projections. It is exactly zero where torch sums the same
products in the same order.

Measured on {projection_days}, on the same machine.

| network | rule | largest difference | layers |
|---|---|---|---|
{projections}
"""


@dataclass(frozen=True)
class Record:
    """Holds what was measured on one file.

    Attributes:
        network: the name of the network.
        exporter: "new" or "old" for torch's two exporters, "light" for a file of the `onnx` package.
        nodes_before, nodes: the number of nodes in the file and in the graph.
        operations: the number of different operations in the graph.
        scale: the largest logit.
        difference: the largest difference of a logit to ONNX Runtime, at batch sizes 1 and 3.
        obstacle: the first operation that the worker cannot run, or "".
        rule: the rule of a projection of the last map, "paper" or "extended". "" if the map cannot be projected.
        day: when it was measured, as 2026-12-31.
    """

    network: str
    exporter: str
    nodes_before: int
    nodes: int
    operations: int
    scale: float
    difference: float
    obstacle: str
    rule: str
    day: str


def measure(network: str, exporter: str, file: Path) -> Record:
    """Imports a file and compares its logits with those of ONNX Runtime at batch sizes 1 and 3.

    The logits are compared, because a softmax hides differences.
    """
    model = onnx.load(file)
    before = len(model.graph.node)
    graph = import_graph(file)
    images = np.random.default_rng(1).standard_normal((3, *graph.shapes[graph.input][1:])).astype(np.float32)
    expected, got = run_onnx_runtime(model, graph.logits, images), run_graph(graph, images)
    rule = projection_rule(graph, last_map(graph))
    return Record(
        network=network,
        exporter=exporter,
        nodes_before=before,
        nodes=len(graph.nodes),
        operations=len({node.operation for node in graph.nodes}),
        scale=float(np.abs(expected).max()),
        difference=float(np.abs(got - expected).max()),
        obstacle=forward_obstacle(graph, None),
        rule="" if rule.obstacle else rule.rule,
        day=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def run_onnx_runtime(model: onnx.ModelProto, logits: str, images: np.ndarray) -> np.ndarray:
    """Returns the logits (N, K), one image at a time where the file fixes the batch, without graph optimisations."""
    computed = {name for node in model.graph.node for name in node.output}
    name = logits if logits in computed else logits.removesuffix("/flat")
    if name not in {output.name for output in model.graph.output}:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    size = len(images) if isinstance(source.shape[0], str) else 1
    parts = [session.run([name], {source.name: images[at : at + size]})[0] for at in range(0, len(images), size)]
    return np.concatenate(parts).reshape(len(images), -1)


def run_graph(graph: Graph, images: np.ndarray) -> np.ndarray:
    """Returns the logits (N, K) of a batch, after it has checked that a batch of one gives the same."""
    with torch.inference_mode():
        batch = run(graph, {graph.input: torch.from_numpy(images)}, [graph.logits])[graph.logits].numpy()
        lone = run(graph, {graph.input: torch.from_numpy(images[:1])}, [graph.logits])[graph.logits].numpy()
    np.testing.assert_allclose(lone, batch[:1], rtol=1e-4, atol=1e-4 * float(np.abs(batch).max()))
    result: np.ndarray = batch
    return result


def last_map(graph: Graph) -> str:
    """Returns the last tensor (1, C, H, W) with more than one place."""
    names = [name for node in graph.nodes for name in node.outputs]
    shapes = [(name, graph.shapes.get(name, ())) for name in names]
    return [name for name, shape in shapes if len(shape) == 4 and shape[2] * shape[3] > 1][-1]


def save(record: Record) -> None:
    """Writes the record beside the network's file."""
    (FOLDER / f"{record.network}-{record.exporter}.json").write_text(json.dumps(asdict(record)))


def records() -> Iterator[Record]:
    """Yields the records of all networks in the order of the list. Skips those that were not measured."""
    names = [(network, exporter) for network in PYTORCHCV for exporter in EXPORTERS]
    for network, exporter in [*names, *((network, "light") for network in LIGHT)]:
        file = FOLDER / f"{network}-{exporter}.json"
        if file.exists():
            yield Record(**json.loads(file.read_text()))


def page(rows: list[Record], projected: list[ProjectionRecord]) -> str:
    """Returns the page with both tables."""
    versions = f"torch {torch.__version__}, onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}"
    table = [
        f"| {row.network} | {row.exporter} | {row.nodes_before} | {row.nodes} | {row.operations} | "
        f"{row.difference:.1e} | {row.scale:.2g} | {'no' if row.obstacle else 'yes'} | {'yes' if row.rule else 'no'} | "
        f"{row.rule or '-'} |"
        for row in rows
    ]
    projections = [
        f"| {row.network} | {row.rule} | {row.difference:.1e} | {', '.join(row.layers)} |".replace("0.0e+00", "0")
        for row in projected
    ]
    processor = cpu_model(Path("/proc/cpuinfo").read_text())
    return TEMPLATE.format(
        days=_days([row.day for row in rows]),
        machine=f"{os.cpu_count()} cores of an {processor}, Python {platform.python_version()}",
        versions=versions,
        table="\n".join(table),
        projection_days=_days([row.day for row in projected]),
        projections="\n".join(projections),
    )


def _days(days: list[str]) -> str:
    return " to ".join(dict.fromkeys((min(days), max(days))))


if __name__ == "__main__":
    measured, measured_projections = list(records()), list(projection_records())
    if not measured or not measured_projections:
        sys.exit(f"{FOLDER} holds no records; run `make test-zoo`")
    PAGE.write_text(page(measured, measured_projections))
