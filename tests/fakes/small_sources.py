"""Builds sources around a network that is small enough to export in a second."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn
from zfserve_export.sources.source import Source
from zfserve_model.preprocessing import Preprocessing

CLASS_IDS = ("n01", "n02", "n03")
SIZE = 32
PREPROCESSING = Preprocessing(height=SIZE, width=SIZE)


def small_module(seed: int = 3) -> nn.Sequential:
    """Returns a network of two convolutions and two linear layers, with the same random weights at every call.

    float16 holds the weights exactly, like those that are shipped.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * (SIZE // 4) ** 2, 16), nn.ReLU()),
            nn.Linear(16, len(CLASS_IDS)),
        )
    return module.half().float().eval().requires_grad_(requires_grad=False)


def small_model(module: nn.Sequential, batch: int | str = "N", *, flatten_to: int = 0, name: str = "") -> ModelProto:
    """Returns the ONNX model of `small_module`, from `x` to `y`.

    Args:
        module: the network.
        batch: the batch axis of the input.
        flatten_to: the first number in the target of the Reshape before the linear layers. 0 keeps the batch.
        name: the name of the tensor after the first convolution. "" stands for "conv1".
    """
    first = name or "conv1"
    weights = {key.replace(".", "_"): value.numpy() for key, value in module.state_dict().items()}
    weights["flat"] = np.array([flatten_to, -1], np.int64)
    nodes = [
        helper.make_node("Conv", ["x", "0_weight", "0_bias"], [first], "first", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", [first], ["relu1"]),
        helper.make_node("MaxPool", ["relu1"], ["pool1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pool1", "3_weight", "3_bias"], ["conv2"], pads=[1] * 4),
        helper.make_node("Relu", ["conv2"], ["relu2"]),
        helper.make_node("Reshape", ["relu2", "flat"], ["flattened"]),
        helper.make_node("Gemm", ["flattened", "6_weight", "6_bias"], ["linear"], transB=1),
        helper.make_node("Relu", ["linear"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "8_weight", "8_bias"], ["y"], "last", transB=1),
    ]
    return model_of(nodes, [batch, 3, SIZE, SIZE], [batch, len(CLASS_IDS)], weights)


def model_of(
    nodes: Sequence[NodeProto],
    input_shape: Sequence[int | str],
    output_shape: Sequence[int | str],
    weights: Mapping[str, Any],
    *,
    element: int = TensorProto.FLOAT,
    opset: int = 18,
) -> ModelProto:
    """Returns a model from `x` to the last node's output."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", element, input_shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def source_of(model: onnx.ModelProto, **changes: Any) -> Source:
    """Returns a source of a model from `x` to its only output. Keyword arguments replace fields."""
    fields: dict[str, Any] = {
        "model": model,
        "input_name": "x",
        "layout": "NCHW",
        "dtype": "float32",
        "scores": model.graph.output[0].name,
        "softmax": False,
        "fixed_batch": model.graph.input[0].type.tensor_type.shape.dim[0].dim_value,
        "preprocessing": PREPROCESSING,
        "class_ids": CLASS_IDS,
        "labels": ("one", "two", "three"),
        "description": "small.onnx",
        "name": "small",
    }
    return Source(**fields | changes)


def small_source(**changes: Any) -> Source:
    """Returns the source of `small_module`, with the module for parity. Keyword arguments replace fields."""
    module = small_module()
    fields: dict[str, Any] = {"model": small_model(module), "module": module}
    return source_of(**fields | changes)
