"""This module finds the last linear layer of an ONNX network, by the structure of the graph. `onnx_wrap` calls it."""

import math
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from zfserve_export.onnx_edits import constant_names, infer_types

_RESHAPING = ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Head:
    """Names the tensors around the last linear layer.

    Attributes:
        logits: the tensor before the last softmax. Without a softmax, the scores themselves.
        features: the tensor that enters the last linear layer. None if the scores do not come from such a layer.
        last_layer: the name of the node of the last linear layer. None if there is none.
    """

    logits: str
    features: str | None = None
    last_layer: str | None = None


def find_head(model: ModelProto, scores: str) -> Head:
    """Returns the head of a network.

    A linear layer is a Gemm, or a MatMul or a convolution on a map of 1 x 1, with constant weights. Between it and the
    scores stand only reshapes, the bias, and the softmax. SqueezeNet, for example, pools after its last convolution, so
    it has no such layer.

    Args:
        model: the model. The shape of its input is known, except for the batch.
        scores: the name of the output with one score for each class.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    constant = constant_names(graph)
    logits = tensor = scores
    while node := producers.get(tensor):
        if node.op_type in _RESHAPING and node.input[0] not in constant:
            tensor = node.input[0]
        elif node.op_type == "Softmax" and logits == scores:
            logits = tensor = node.input[0]
        elif node.op_type == "Add" and len(varying := [name for name in node.input if name not in constant]) == 1:
            tensor = varying[0]
        else:
            break
    if node is None or not _is_linear(node, constant):
        return Head(logits)
    features = next(name for name in node.input if name not in constant)
    if node.op_type == "Conv":
        found = infer_types(model).get(features)
        if found is None or math.prod(dim.dim_value for dim in found.shape.dim[2:]) != 1:
            return Head(logits)
    return Head(logits, features, node.name)


def _is_linear(node: NodeProto, constant: set[str]) -> bool:
    if node.op_type not in ("Gemm", "MatMul", "Conv"):
        return False
    return len([name for name in node.input if name not in constant]) == 1
