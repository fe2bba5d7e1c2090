"""This module wraps a user's ONNX network, so that it takes raw pixels. `exporter` calls it.

    pixels uint8 (N, H, W, 3) -> Cast -> Mul -> Sub -> Transpose = images float32 (N, 3, H, W), RGB, normalised
        -> adapter to the user's input: channels in BGR order, channels last, uint8
        -> the user's network -> Softmax, if the scores are logits
        -> probabilities float32 (N, K), and features float32 (N, F) if the network ends in a linear layer

Cast comes first because TensorRT's parser refuses a uint8 Transpose. The importer of the worker finds the normalised
input by the name `images`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from zfserve_model.graph.errors import GraphError
from zfserve_model.importing.interface import FEATURES, IMAGES, PROBABILITIES
from zfserve_model.importing.model_file import opset_version
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import GRAPH_INPUT

from zfserve_export.batch_axis import BATCH_AXIS, BatchedModel, with_dynamic_batch
from zfserve_export.onnx_edits import keep_needed, name_nodes, remove_origin, rename_tensors, set_shape, tensor_names
from zfserve_export.onnx_head import Head, find_head
from zfserve_export.sources.source import Source

IR_VERSION = 10
"""The lowest version of ONNX's file format in which nodes have metadata. All runtimes that serve read it."""

_ADAPTED = "images.adapted"
_USER_PREFIX = "network."
_RESERVED = (GRAPH_INPUT, IMAGES, PROBABILITIES, FEATURES)
_RESERVED_PREFIXES = ("pixels.", "images.", "scores.")
"""The beginnings of the names that the wrapping adds. The user's tensors with such a name get `_USER_PREFIX`."""


@dataclass(frozen=True, eq=False)
class WrappedNetwork:
    """Holds a wrapped model.

    Attributes:
        model: the model, from `pixels` to `probabilities` and `features`.
        logits: the name of the tensor before the last softmax. Without a softmax it names the probabilities.
        last_layer: the name of the node of the last linear layer. None if there is none.
        feature_width: F. 0 if the model has no output `features`.
        fixed_batch_size: the only batch size that the model takes, which is 1. 0 if it takes any.
    """

    model: ModelProto
    logits: str
    last_layer: str | None
    feature_width: int
    fixed_batch_size: int


def wrap(source: Source) -> WrappedNetwork:
    """Returns the wrapped network of a source. The same source gives the same bytes.

    Raises:
        GraphError: ONNX Runtime cannot run the network, its batch size is fixed to more than 1, or its scores do not
            fit the labels.
    """
    cleaned, scores = _cleaned(source)
    head = find_head(cleaned, scores)
    examined = list(dict.fromkeys([scores, head.logits, *([head.features] if head.features else [])]))
    batched = with_dynamic_batch(cleaned, examined, source.fixed_batch)
    model = batched.model
    ends = _ends(batched, scores, head, softmax=source.softmax)
    if (found := ends.widths[PROBABILITIES]) != len(source.labels):
        raise GraphError(
            f"the network has {found} scores, and there are {len(source.labels)} labels; give one for each"
        )
    rename_tensors(model.graph, ends.names)
    nodes = [
        *_normalisation(source.preprocessing, model.graph),
        *_adapter(source, model),
        *model.graph.node,
        *ends.nodes,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    batch: int | str = batched.batch_size or BATCH_AXIS
    _set_ends(model.graph, batch, source.preprocessing, ends.widths)
    return WrappedNetwork(
        onnx.shape_inference.infer_shapes(model, data_prop=True),
        ends.names.get(ends.logits, ends.logits),
        head.last_layer,
        ends.widths.get(FEATURES, 0),
        batched.batch_size,
    )


def _cleaned(source: Source) -> tuple[ModelProto, str]:
    """Returns a copy of the user's model with one input and one output, and the name of that output.

    The input has its final name, and the shape that the preprocessing gives it.
    """
    model = onnx.inliner.inline_local_functions(source.model)
    graph = model.graph
    model.ir_version = max(model.ir_version, IR_VERSION)
    stored = {tensor.name for tensor in graph.initializer}
    others = [value.name for value in graph.input if value.name not in stored | {source.input_name}]
    if others:
        raise GraphError(
            f"the network has more inputs than its image: {', '.join(others[:5])}; export it with one input"
        )
    for values, name in ((graph.input, source.input_name), (graph.output, source.scores)):
        kept = next(value for value in values if value.name == name)
        del values[:]
        values.append(kept)
    height, width = source.preprocessing.height, source.preprocessing.width
    image = (height, width, 3) if source.layout == "NHWC" else (3, height, width)
    set_shape(graph.input[0], (source.fixed_batch or BATCH_AXIS, *image))
    if _casts_at_once(graph, source):
        graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    remove_origin(model)
    keep_needed(graph, {source.scores})
    name_nodes(graph)
    clashes = (name for name in tensor_names(graph) if name in _RESERVED or name.startswith(_RESERVED_PREFIXES))
    names = {name: _USER_PREFIX + name for name in clashes}
    names[source.input_name] = _ADAPTED if _needs_adapter(source, graph) else IMAGES
    rename_tensors(graph, names)
    return model, names.get(source.scores, source.scores)


@dataclass(frozen=True, eq=False)
class _Ends:
    """Describes how the outputs come from the network's tensors.

    Attributes:
        names: the new names of the network's tensors that are outputs themselves.
        nodes: the nodes that make the other outputs.
        widths: the width of each output.
        logits: the name of the logits, before the renaming.
    """

    names: Mapping[str, str]
    nodes: Sequence[NodeProto]
    widths: Mapping[str, int]
    logits: str


def _ends(batched: BatchedModel, scores: str, head: Head, *, softmax: bool) -> _Ends:
    shapes = batched.shapes
    names, nodes, logits = {}, [], head.logits
    if softmax:
        if len(shapes[scores]) == 1:
            names[scores] = PROBABILITIES
        else:
            nodes.append(_node("Flatten", [scores], PROBABILITIES, axis=1))
        logits = logits if logits != scores else PROBABILITIES
    else:
        logits = scores
        if len(shapes[scores]) != 1:
            logits = "scores.flat"
            nodes.append(_node("Flatten", [scores], logits, axis=1))
        nodes.append(_node("Softmax", [logits], PROBABILITIES, axis=1))
    widths = {PROBABILITIES: math.prod(shapes[scores])}
    if head.features:
        features = head.features
        if batched.types[features] != np.float32:  # a network may compute in float16 and have float32 scores
            nodes.append(_node("Cast", [features], features := "scores.features", to=TensorProto.FLOAT))
        if len(shapes[head.features]) != 1:
            nodes.append(_node("Flatten", [features], FEATURES, axis=1))
        elif nodes and nodes[-1].output[0] == features:
            nodes[-1].output[0] = FEATURES
        else:
            names[features] = FEATURES
        widths[FEATURES] = math.prod(shapes[head.features])
    return _Ends(names, nodes, widths, logits)


def _normalisation(preprocessing: Preprocessing, graph: GraphProto) -> list[NodeProto]:
    """Returns the nodes that make `images`, and adds their constants to the graph.

    They compute (x / 255 - mean) / std as one multiplication and one subtraction.
    """
    mean, std = (np.array(values, np.float64) for values in (preprocessing.mean, preprocessing.std))
    for name, values in (("pixels.scale", 1 / (255 * std)), ("pixels.shift", mean / std)):
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return [
        _node("Cast", [GRAPH_INPUT], "pixels.float", to=TensorProto.FLOAT),
        _node("Mul", ["pixels.float", "pixels.scale"], "pixels.scaled"),
        _node("Sub", ["pixels.scaled", "pixels.shift"], "pixels.normalised"),
        _node("Transpose", ["pixels.normalised"], IMAGES, perm=[0, 3, 1, 2]),
    ]


def _casts_at_once(graph: GraphProto, source: Source) -> bool:
    """Returns True if all readers of a uint8 input cast it. They take whole numbers in float32 then.

    TensorRT's parser refuses a Cast to uint8 inside of a network.
    """
    readers = [node for node in graph.node if source.input_name in node.input]
    return source.dtype == "uint8" and all(node.op_type == "Cast" for node in readers)


def _reads_uint8(graph: GraphProto) -> bool:
    return graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def _needs_adapter(source: Source, graph: GraphProto) -> bool:
    return source.preprocessing.channel_order == "bgr" or source.layout == "NHWC" or _reads_uint8(graph)


def _adapter(source: Source, model: ModelProto) -> list[NodeProto]:
    """Returns the nodes from `images` to the input of the user's network, and adds their constants to the graph."""
    nodes: list[NodeProto] = []
    tensor = IMAGES
    if source.preprocessing.channel_order == "bgr":
        red, green, blue = (f"images.{colour}" for colour in ("red", "green", "blue"))
        # Before opset 13 the sizes are an attribute.
        sizes: dict[str, Any] = {"split": [1, 1, 1]} if opset_version(model) < 13 else {}
        inputs = [tensor] if sizes else [tensor, "images.channels"]
        nodes.append(helper.make_node("Split", inputs, [red, green, blue], "images.split", axis=1, **sizes))
        if not sizes:
            model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.int64), "images.channels"))
        nodes.append(_node("Concat", [blue, green, red], tensor := "images.bgr", axis=1))
    if source.layout == "NHWC":
        nodes.append(_node("Transpose", [tensor], tensor := "images.nhwc", perm=[0, 2, 3, 1]))
    if _reads_uint8(model.graph):
        nodes.append(_node("Cast", [tensor], tensor := "images.uint8", to=TensorProto.UINT8))
    if nodes:
        nodes[-1].output[0] = _ADAPTED
    return nodes


def _set_ends(graph: GraphProto, batch: int | str, preprocessing: Preprocessing, widths: Mapping[str, int]) -> None:
    graph.name = "zfserve"
    pixels = [batch, preprocessing.height, preprocessing.width, 3]
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(GRAPH_INPUT, TensorProto.UINT8, pixels))
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]) for name, width in widths.items()
    )


def _node(operation: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operation, inputs, [output], output, **attributes)
