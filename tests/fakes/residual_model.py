"""Writes a tiny residual network as a wrapped ONNX model, and a bundle around it. Its input is not square."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from zfserve_engines.golden import Golden, write_golden
from zfserve_model.explanation.rules import projection_rule
from zfserve_model.importing.fingerprint import graph_fingerprint
from zfserve_model.importing.importer import import_graph
from zfserve_model.layers.layer_table import layer_table
from zfserve_runtime.bundle import (
    GOLDEN,
    GRAPH,
    MANIFEST,
    Artefact,
    Bundle,
    ClassEntry,
    InputSpec,
    LayerEntry,
    Manifest,
    file_digest,
    load_bundle,
)

HEIGHT, WIDTH = 160, 192
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEM, MAPS = 6, 12
"""The number of maps in the stem, and in the two stages."""


class _Builder:
    """Collects nodes and random weights. Every method returns the name of the tensor that its node computes."""

    def __init__(self, seed: int, activation: str) -> None:
        self._random = np.random.default_rng(seed)
        self._activation = activation
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, values: Any, dtype: type = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def random(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:]))
        return self.constant(name, self._random.normal(0, np.sqrt(2 / fan_in), shape))

    def node(self, operation: str, name: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{name}_out"
        self.nodes.append(helper.make_node(operation, inputs, [output], name=name, **attributes))
        return output

    def conv(self, name: str, x: str, shape: tuple[int, int, int], stride: int = 1) -> str:
        out_maps, in_maps, kernel = shape
        weight = self.random(f"{name}.weight", out_maps, in_maps, kernel, kernel)
        bias = self.constant(f"{name}.bias", self._random.normal(0, 0.1, out_maps))
        pads = [kernel // 2] * 4
        return self.node("Conv", name, x, weight, bias, strides=[stride] * 2, pads=pads, kernel_shape=[kernel] * 2)

    def activated(self, name: str, x: str) -> str:
        """Adds a ReLU, or SiLU as exporters write it: x * sigmoid(x)."""
        if self._activation == "relu":
            return self.node("Relu", f"{name}.relu", x)
        return self.node("Mul", f"{name}.silu", x, self.node("Sigmoid", f"{name}.sigmoid", x))

    def unit(self, name: str, x: str, in_maps: int, out_maps: int, stride: int) -> str:
        """Adds two convolutions with a shortcut."""
        y = self.activated(f"{name}.inner", self.conv(f"{name}.conv1", x, (out_maps, in_maps, 3), stride))
        y = self.conv(f"{name}.conv2", y, (out_maps, out_maps, 3))
        if stride > 1 or in_maps != out_maps:
            x = self.conv(f"{name}.shortcut", x, (out_maps, in_maps, 1), stride)
        return self.activated(name, self.node("Add", f"{name}.add", y, x))


def residual_model(
    seed: int = 0, classes: int = 2, *, attention: bool = False, activation: str = "relu"
) -> onnx.ModelProto:
    """Returns a wrapped model: a stem, two stages of one unit, and a head. It has the output `features`.

    Args:
        seed: the seed of the weights.
        classes: the number of classes.
        attention: True puts a softmax over the maps between the two stages, on their way. No projection passes it.
        activation: that of the two stages, "relu" or "silu". The stem has a ReLU.
    """
    net = _Builder(seed, activation)
    values = net.node("Cast", "cast", "pixels", to=TensorProto.FLOAT)
    scale, shift = 1 / (255 * np.array(STD)), np.array(MEAN) / np.array(STD)
    values = net.node("Sub", "shift", net.node("Mul", "scale", values, net.constant("scale.value", scale)),
                      net.constant("shift.value", shift))  # fmt: skip
    x = net.node("Transpose", "to_nchw", values, output="images", perm=[0, 3, 1, 2])
    x = net.node("Relu", "stem.relu", net.conv("stem.conv", x, (STEM, 3, 5), stride=4))
    x = net.node("MaxPool", "stem.pool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = net.unit("stage1.unit1", x, STEM, MAPS, stride=1)
    if attention:
        x = net.node("Softmax", "stage2.attention", x, axis=1)
    x = net.unit("stage2.unit1", x, MAPS, MAPS, stride=2)
    x = net.node("Flatten", "flatten", net.node("GlobalAveragePool", "pool", x), output="features")
    weight, bias = net.random("output.weight", classes, MAPS), net.constant("output.bias", np.zeros(classes))
    x = net.node("Softmax", "softmax", net.node("Gemm", "output", x, weight, bias, transB=1), output="probabilities")
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        net.nodes,
        "tiny",
        [tensor("pixels", TensorProto.UINT8, ["batch", HEIGHT, WIDTH, 3])],
        [
            tensor("probabilities", TensorProto.FLOAT, ["batch", classes]),
            tensor("features", TensorProto.FLOAT, ["batch", MAPS]),
        ],
        net.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def write_residual_bundle(
    folder: Path,
    version: str = "1",
    seed: int = 0,
    *,
    attention: bool = False,
    activation: str = "relu",
    name: str = "tiny",
) -> Bundle:
    """Writes a bundle of the model that server and worker can serve."""
    model = residual_model(seed, attention=attention, activation=activation)
    graph = import_graph(model)
    top = graph.nodes[[node.name for node in graph.nodes].index(f"stage2.unit1.{activation}")].outputs[0]
    onnx.save(model, folder / GRAPH)
    pixels = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    probabilities = InferenceSession(folder / GRAPH).run(["probabilities"], {"pixels": pixels})[0]
    write_golden(Golden(pixels, {"fp32": probabilities}), folder)
    manifest = Manifest(
        name=name,
        version=version,
        source="residual_model.py",
        architecture="tiny",
        feature_width=MAPS,
        classes=(ClassEntry(class_id="n01", label="cat"), ClassEntry(class_id="n02", label="dog")),
        input=InputSpec(height=HEIGHT, width=WIDTH, resize="squash", shorter_side=WIDTH, mean=MEAN, std=STD),
        layers=tuple(
            LayerEntry(**asdict(row)) for row in layer_table(graph) if not projection_rule(graph, row.tensor).obstacle
        ),
        projection_obstacle=projection_rule(graph, top).obstacle,
        artefacts={"fp32": Artefact(file=GRAPH, golden_tolerance=1e-4)},
        fingerprint=graph_fingerprint(model),
        files={name: file_digest(folder / name) for name in (GRAPH, GOLDEN)},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return load_bundle(folder)
