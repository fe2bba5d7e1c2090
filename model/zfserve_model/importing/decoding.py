"""Turns the nodes and weights of an ONNX graph into `Node`s and tensors, in the form of the newest operators.

`folding` calls it for the model's graph and for each branch of an `If` that it inlines. Older operator sets, from 9 on,
keep in attributes what newer ones read as inputs: the limits of Clip, the amounts of Pad and so on. After this module
there is only the newer form.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from zfserve_model.graph.errors import GraphError
from zfserve_model.graph.graph import Node
from zfserve_model.importing.weights import read_array

_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
"""The metadata in which torch's exporter names the modules around a node, as Python lists of strings."""

_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
_LISTS_AS_INPUTS = {  # Operation: the input's position, and the attribute that older operator sets have instead.
    "Squeeze": ((1, "axes"),),
    "Unsqueeze": ((1, "axes"),),
    "ReduceMean": ((1, "axes"),),
    "ReduceSum": ((1, "axes"),),
    "ReduceMax": ((1, "axes"),),
    "ReduceMin": ((1, "axes"),),
    "ReduceProd": ((1, "axes"),),
    "ReduceL1": ((1, "axes"),),
    "ReduceL2": ((1, "axes"),),
    "ReduceSumSquare": ((1, "axes"),),
    "ReduceLogSumExp": ((1, "axes"),),
    "Split": ((1, "split"),),
    "Slice": ((1, "starts"), (2, "ends"), (3, "axes")),
    "Pad": ((1, "pads"), (2, "value")),
    "Clip": ((1, "min"), (2, "max")),
    "Upsample": ((2, "scales"),),
}


@dataclass
class Decoder:
    """Decodes nodes, and collects the constants that it meets.

    Attributes:
        opset: the version of ONNX's own operators that the model uses.
        constants: weights and other constants by name. Floating-point constants become float32, integers int64.
    """

    opset: int
    constants: dict[str, Tensor]

    def decode(self, graph: onnx.GraphProto) -> list[Node]:
        """Adds the graph's weights to the constants, and returns its other nodes in the order of the file.

        Raises:
            GraphError: a weight cannot be read.
        """
        for tensor in graph.initializer:
            self.constants[tensor.name] = to_tensor(tensor)
        nodes = []
        for proto in graph.node:
            if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx") and proto.output:
                self.constants[proto.output[0]] = _constant(proto)
            else:
                nodes.append(self._checked_node(proto))
        return nodes

    def _checked_node(self, proto: onnx.NodeProto) -> Node:
        try:
            return self._node(proto)
        except GraphError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise GraphError(
                f"the operation {proto.op_type} {proto.name!r} lacks an input, an output or an attribute; "
                "export the file again"
            ) from error

    def _node(self, proto: onnx.NodeProto) -> Node:
        standard = proto.domain in ("", "ai.onnx")
        attributes = {attribute.name: _value(attribute) for attribute in proto.attribute}
        operation, inputs = proto.op_type, list(proto.input)
        operation = self._modernise(operation, inputs, attributes, proto) if standard else f"{proto.domain}.{operation}"
        while inputs and not inputs[-1]:
            inputs.pop()
        for value in attributes.values():
            if isinstance(value, onnx.GraphProto):
                inputs += [name for name in captured(value) if name not in inputs]
        return Node(operation, tuple(inputs), tuple(proto.output), attributes, proto.name, _scopes(proto))

    def _modernise(self, operation: str, inputs: list[str], attributes: dict[str, Any], proto: onnx.NodeProto) -> str:
        """Changes the inputs and attributes to the form of the newest operator. Returns its name."""
        for position, name in _LISTS_AS_INPUTS.get(operation, ()):
            if name in attributes:
                inputs += [""] * (position + 1 - len(inputs))
                inputs[position] = self._new_constant(f"{proto.output[0]}/{name}", attributes.pop(name))
        match operation:
            case "Upsample" | "Resize" if operation == "Upsample" or self.opset < 11:
                if inputs[1:2] and inputs[1]:
                    inputs[:] = [inputs[0], "", inputs[1]]
                attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                return "Resize"
            case "Split" if len(inputs) < 2 and "num_outputs" not in attributes:
                attributes["num_outputs"] = len(proto.output)
            case "Softmax" | "LogSoftmax" if self.opset < 13:
                attributes.setdefault("axis", 1)
                attributes["flattened"] = True
            case "Cast":
                attributes["to"] = _dtype(attributes["to"])
            case "Swish" if attributes.get("alpha", 1.0) == 1:
                return "Silu"
        return operation

    def _new_constant(self, name: str, value: object) -> str:
        dtype = torch.float32 if isinstance(value, float) or name.endswith("/scales") else torch.int64
        self.constants[name] = torch.tensor(value, dtype=dtype)
        return name


def to_tensor(proto: onnx.TensorProto) -> Tensor:
    """Returns a tensor of the file as float32, int64 or bool.

    Raises:
        GraphError: the tensor's values are not in the model, or do not fit its shape, or are of no such type.
    """
    array = read_array(proto)
    if proto.data_type in _FLOATS:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            return torch.from_numpy(np.array(array, dtype=np.float32))
    if array.dtype == np.bool_:
        return torch.from_numpy(np.array(array))
    return torch.from_numpy(np.array(array, dtype=np.int64))


def captured(graph: onnx.GraphProto) -> Iterator[str]:
    """Yields the names that the branches and loop bodies of a graph read from around it. May repeat names."""
    waiting = [(graph, frozenset[str]())]
    while waiting:
        inner, around = waiting.pop()
        made = {output for node in inner.node for output in node.output}
        made |= {tensor.name for tensor in inner.initializer} | {value.name for value in inner.input}
        known = around | made
        for node in inner.node:
            yield from (name for name in node.input if name and name not in known)
            waiting += [(attribute.g, known) for attribute in node.attribute if attribute.HasField("g")]
        yield from (value.name for value in inner.output if value.name not in known)


def _constant(proto: onnx.NodeProto) -> Tensor:
    for attribute in proto.attribute:
        match attribute.name:
            case "value":
                return to_tensor(attribute.t)
            case "value_float" | "value_floats":
                return torch.tensor(_value(attribute), dtype=torch.float32)
            case "value_int" | "value_ints":
                return torch.tensor(_value(attribute), dtype=torch.int64)
    raise GraphError(f"the constant {proto.output[0]!r} holds no numbers; export the network without it")


def _value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return to_tensor(value)
    if isinstance(value, (int, float, onnx.GraphProto)):
        return value
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode(errors="replace") for item in value]
    return value


def _dtype(number: int) -> torch.dtype:
    """Returns the dtype that the graph uses for a type of ONNX: float32 for all floating-point types."""
    if number in _FLOATS:
        return torch.float32
    return torch.bool if number == onnx.TensorProto.BOOL else torch.int64


def _scopes(proto: onnx.NodeProto) -> tuple[tuple[str, str], ...]:
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    paths, classes = _strings(metadata.get(_SCOPES, "")), _strings(metadata.get(_CLASSES, ""))
    pairs = list(zip(paths, classes, strict=False))[:-1]  # The last pair is the operation itself.
    return tuple((path, kind) for path, kind in pairs if path)


def _strings(text: str) -> list[str]:
    """Returns the strings of a Python list such as "['', 'features']". Returns none if the text is no such list."""
    try:
        values = json.loads(text.replace("'", '"')) if text else []
    except (ValueError, RecursionError):
        return []
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []
