"""Tests that each operation of the table computes what ONNX Runtime does, in the forms of old and new operator sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from model.onnx_models import make_model, node, run_onnx_runtime
from numpy.typing import NDArray
from zfserve_model.graph.execution import run
from zfserve_model.importing.importer import import_graph

RANDOM = np.random.default_rng(7)


def floats(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


@dataclass
class Case:
    """Describes a model of one operation on x, float32 (N, 3, 8, 9)."""

    name: str
    node: onnx.NodeProto
    weights: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    opset: int = 20


def case(
    name: str,
    operation: str,
    opset: int = 20,
    weights: Sequence[NDArray[Any] | np.float32 | None] = (),
    **attributes: Any,
) -> Case:
    given = {f"w{position}": np.asarray(array) for position, array in enumerate(weights) if array is not None}
    inputs = ["x", *(f"w{position}" if array is not None else "" for position, array in enumerate(weights))]
    return Case(f"{operation} {name}", node(operation, inputs, ("y",), **attributes), given, opset)


CASES = [
    case("plain", "Conv", weights=[floats(4, 3, 3, 3), floats(4)]),
    case("strided, asymmetric pads", "Conv", weights=[floats(4, 3, 3, 2)], pads=[0, 1, 2, 1], strides=[2, 1]),
    case("dilated, grouped", "Conv", weights=[floats(6, 1, 3, 3)], group=3, dilations=[2, 2]),
    case("same upper", "Conv", weights=[floats(2, 3, 3, 4)], auto_pad="SAME_UPPER", strides=[2, 2]),
    case("same lower", "Conv", weights=[floats(2, 3, 4, 3)], auto_pad="SAME_LOWER", strides=[2, 2]),
    case("valid", "Conv", weights=[floats(2, 3, 3, 3)], auto_pad="VALID"),
    case("plain", "ConvTranspose", weights=[floats(3, 4, 3, 3), floats(4)], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("output padding", "ConvTranspose", weights=[floats(3, 2, 3, 3)], strides=[2, 2], output_padding=[1, 1]),
    case("asymmetric", "ConvTranspose", weights=[floats(3, 2, 3, 3)], strides=[2, 2], pads=[0, 1, 2, 0]),
    case("output shape", "ConvTranspose", weights=[floats(3, 2, 3, 3)], strides=[2, 2], output_shape=[16, 18]),
    case("grouped, dilated", "ConvTranspose", weights=[floats(3, 2, 2, 2)], group=3, dilations=[2, 1]),
    case("plain", "MaxPool", kernel_shape=[3, 3], strides=[2, 2]),
    case("ceil", "MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("ceil and pads", "MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=1),
    case("dilated", "MaxPool", kernel_shape=[2, 2], dilations=[2, 3]),
    case("same upper", "MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("plain", "AveragePool", kernel_shape=[3, 3], strides=[2, 2]),
    case("pads excluded", "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("pads included", "AveragePool", kernel_shape=[3, 3], pads=[1, 0, 2, 1], count_include_pad=1),
    case("ceil", "AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("ceil, pads included", "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1,
         count_include_pad=1),
    case("dilated", "AveragePool", kernel_shape=[2, 2], dilations=[2, 2]),
    case("all", "GlobalAveragePool"),
    case("all", "GlobalMaxPool"),
    case("plain", "BatchNormalization", weights=[floats(3), floats(3), floats(3), np.abs(floats(3))], epsilon=1e-3),
    case("odd", "LRN", size=3, alpha=0.3, beta=0.6, bias=1.5),
    case("plain", "InstanceNormalization", weights=[floats(3), floats(3)]),
    case("per channel", "GroupNormalization", opset=21, weights=[floats(3), floats(3)], num_groups=3),
    case("last axis", "LayerNormalization", weights=[floats(9), floats(9)]),
    case("two axes", "LayerNormalization", weights=[floats(8, 9)], axis=-2, epsilon=1e-3),
    case("plain", "Relu"),
    case("inputs", "Clip", weights=[np.float32(0), np.float32(0.5)]),
    case("no minimum", "Clip", weights=[None, np.float32(0.5)]),
    case("attributes", "Clip", opset=9, min=-0.1, max=0.7),
    case("plain", "LeakyRelu", alpha=0.2),
    case("plain", "PRelu", weights=[floats(3, 1, 1)]),
    case("plain", "Elu", alpha=0.7),
    case("plain", "Selu"),
    case("other constants", "Selu", alpha=1.2, gamma=0.8),
    case("plain", "Celu", alpha=0.7),
    case("plain", "ThresholdedRelu", alpha=0.3),
    case("exact", "Gelu"),
    case("tanh", "Gelu", approximate="tanh"),
    case("plain", "Mish"),
    case("plain", "HardSwish"),
    case("plain", "Softplus"),
    case("plain", "Softsign"),
    case("plain", "Sigmoid"),
    case("plain", "HardSigmoid", alpha=0.3, beta=0.4),
    case("plain", "Tanh"),
    case("last axis", "Softmax"),
    case("axis 1", "Softmax", axis=1),
    case("flattened from axis 2", "Softmax", opset=9, axis=2),
    case("flattened by default", "Softmax", opset=11),
    case("flattened", "LogSoftmax", opset=9),
    case("axis 1", "LogSoftmax", axis=1),
    case("broadcast", "Add", weights=[floats(3, 1, 1)]),
    case("broadcast", "Sub", weights=[floats(9)]),
    case("broadcast", "Mul", weights=[floats(1, 3, 8, 1)]),
    case("broadcast", "Div", weights=[floats(3, 1, 1) + 5]),
    case("square", "Pow", weights=[np.float32(2)]),
    case("two", "Sum", weights=[floats(3, 8, 9)]),
    case("two", "Mean", weights=[floats(3, 8, 9)]),
    case("three", "Max", weights=[floats(9), floats(3, 1, 1)]),
    case("two", "Min", weights=[floats(9)]),
    *(case("plain", operation)
      for operation in ("Exp", "Erf", "Sin", "Cos", "Abs", "Neg", "Sign", "Floor", "Ceil", "Round")),
    case("matrix", "MatMul", weights=[floats(9, 5)]),
    *(case("inputs", operation, weights=[integers(2, 3)])
      for operation in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
                        "ReduceLogSumExp", "ReduceSum")),
    case("attributes", "ReduceMean", opset=11, axes=[1, -1], keepdims=0),
    case("attributes", "ReduceSum", opset=11, axes=[1]),
    case("copies and infers", "Reshape", weights=[integers(0, -1, 4)]),
    case("axis 2", "Flatten", axis=2),
    case("negative axis", "Flatten", axis=-1),
    case("inputs", "Unsqueeze", weights=[integers(1, -1)]),
    case("attributes", "Unsqueeze", opset=11, axes=[0, 3]),
    case("plain", "Transpose", perm=[0, 2, 3, 1]),
    case("reversed", "Transpose"),
    case("inputs", "Slice", weights=[integers(1, 0), integers(7, 1000), integers(2, 3), integers(2, 1)]),
    case("backwards", "Slice", weights=[integers(-1), integers(-1000), integers(3), integers(-2)]),
    case("attributes", "Slice", opset=9, starts=[1, -4], ends=[3, 1000], axes=[1, 3]),
    case("channel flip", "Gather", weights=[integers(2, 1, 0)], axis=1),
    case("negative scalar", "Gather", weights=[np.array(-1)], axis=2),
    case("inputs", "Pad", weights=[integers(0, 0, 1, 2, 0, 1, 0, 3), np.float32(0.5)]),
    case("axes", "Pad", weights=[integers(1, 2), None, integers(3)]),
    case("attributes", "Pad", opset=9, pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.25),
    case("crop", "Pad", weights=[integers(0, 0, -1, 0, 0, 0, 0, 2)]),
    case("reflect", "Pad", weights=[integers(0, 0, 1, 2, 0, 0, 2, 1)], mode="reflect"),
    case("edge", "Pad", weights=[integers(0, 0, 1, 0, 0, 0, 0, 2)], mode="edge"),
    case("plain", "Expand", weights=[integers(2, 1, 3, 1, 1)]),
    case("plain", "Tile", weights=[integers(1, 2, 1, 2)]),
    case("plain", "DepthToSpace", blocksize=1),
    case("nearest", "Resize", weights=[None, np.array([1, 1, 2, 1.5], np.float32)]),
    case("nearest, floor, asymmetric", "Resize", weights=[None, None, integers(1, 3, 5, 13)], mode="nearest",
         nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
    case("linear", "Resize", weights=[None, None, integers(1, 3, 12, 7)], mode="linear"),
    case("linear, corners", "Resize", weights=[None, None, integers(1, 3, 12, 7)], mode="linear",
         coordinate_transformation_mode="align_corners"),
    case("linear, pytorch", "Resize", weights=[None, None, integers(1, 3, 1, 20)], mode="linear",
         coordinate_transformation_mode="pytorch_half_pixel"),
    case("cubic", "Resize", weights=[None, None, integers(1, 3, 12, 20)], mode="cubic"),
    case("cubic, outside excluded", "Resize", weights=[None, None, integers(1, 3, 12, 20)], mode="cubic",
         exclude_outside=1, cubic_coeff_a=-0.5),
    case("operator set 10", "Resize", opset=10, weights=[np.array([1, 1, 2, 3], np.float32)]),
    case("attributes", "Upsample", opset=9, weights=[np.array([1, 1, 2, 2], np.float32)]),
    case("linear", "Upsample", opset=9, weights=[np.array([1, 1, 2, 2], np.float32)], mode="linear"),
    case("plain", "Identity"),
    case("plain", "Dropout"),
    case("lower", "Trilu", upper=0),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}, {case.opset}")
def test_an_operation_equals_onnx_runtime(case: Case) -> None:
    # A Resize by sizes names the batch, so these models have a batch of one.
    model = make_model([case.node], case.weights, (1, 3, 8, 9), case.opset)
    images = floats(1, 3, 8, 9)
    expected = run_onnx_runtime(model, images)
    graph = import_graph(model)
    assert all(each.supported for each in graph.nodes)
    result = run(graph, {graph.input: torch.from_numpy(images)}, [graph.probabilities])[graph.probabilities]
    # The scores of a graph are a vector, so a last map of one place loses its height and width.
    np.testing.assert_allclose(result.numpy().reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)
