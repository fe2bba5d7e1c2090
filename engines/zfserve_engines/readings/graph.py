"""Edits a bundle's ONNX graph: adds an output for each reading, and inputs for an ablation. `opening` calls it.

In an INT8 graph a layer is rounded by a QuantizeLinear behind it. Its value is what the next layer sees: the rounded
numbers, dequantised. So the runtime can still fuse the layer with its rounding. ONNX Runtime's quantiser removes a ReLU
or Clip whose rounding does the same, and gives the name of its tensor to the layer before it. That layer's own tensor
is then missing, and only the float graphs have its value.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zfserve_engines.readings.names import KEEP, VALUES, output_names
from zfserve_engines.readings.plan import Reading, ReadingPlan


class LayerMissing(Exception):
    """The graph has no tensor that holds the value of a layer. The message is the tensor's name in `model.onnx`."""


def with_readings(model: ModelProto, plan: ReadingPlan) -> None:
    """Adds the outputs and inputs of `plan` to `model`.

    Args:
        model: the graph of one precision.
        plan: what to read and what may be replaced. Readings of the replaced layer show it before the replacement.

    Raises:
        LayerMissing: `model` does not compute a layer of the plan, because its export rounded or fused it away.
    """
    edit = _Edit(model)
    # The readings come first, so that none of them reads replaced maps of its own layer.
    values = {reading.tensor: edit.value(reading.tensor) for reading in plan.readings}
    if plan.ablated:
        edit.ablate(edit.value(plan.ablated), plan.ablated_channels)
    for reading, names in zip(plan.readings, output_names(plan), strict=True):
        edit.read(values[reading.tensor], reading, names)
    edit.finish()


class _Edit:
    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._readers = _readers(model)
        self._types = {entry.name: entry.type.tensor_type.elem_type for entry in self._graph.value_info}
        """The types of the tensors, where the file holds them. The export writes them into float16 graphs."""
        self._added: list[NodeProto] = []

    def value(self, tensor: str) -> list[str]:
        """Returns the tensors that hold the value of a layer. Several hold the same, each for its own reader."""
        if tensor in self._producers:
            readers = self._readers[tensor]
            rounded = readers and all(node.op_type == "QuantizeLinear" for node in readers)
            return (list(self._dequantised(readers)) if rounded else []) or [tensor]
        raise LayerMissing(tensor)

    def ablate(self, values: list[str], channels: int) -> None:
        """Lets all readers of a layer read `value * keep + values` in its place."""
        batch = self._graph.input[0].type.tensor_type.shape.dim[0]
        for name in (KEEP, VALUES):
            entry = helper.make_tensor_value_info(name, TensorProto.FLOAT, (None, channels, 1, 1))
            entry.type.tensor_type.shape.dim[0].CopyFrom(batch)
            self._graph.input.append(entry)
        for index, value in enumerate(values):
            readers = list(self._readers[value])
            prefix = f"zfserve.ablated.{index}"
            kept = self._add("Mul", [self._as_float(value, f"{prefix}.before"), KEEP], f"{prefix}.kept")
            replaced = self._add("Add", [kept, VALUES], f"{prefix}.float32")
            replaced = self._add("Cast", [replaced], f"{prefix}.after", to=self._types.get(value, TensorProto.FLOAT))
            for node in readers:
                if value not in node.input:
                    raise LayerMissing(value)  # a branch or a loop reads it
                node.input[:] = [replaced if name == value else name for name in node.input]

    def read(self, values: list[str], reading: Reading, names: list[str]) -> None:
        """Adds the outputs of one reading, called `names`."""
        prefix = names[0].removesuffix(".values")
        value = self._as_float(values[0], names[0] if reading.form == "maps" else f"{prefix}.maps")
        channels, units = reading.channels, reading.height * reading.width
        if reading.form == "maps":
            shape: tuple[int, ...] = (channels, reading.height, reading.width)
        elif reading.form == "sums":
            axes = np.array([2, 3])
            if self._opset < 13:
                self._add("ReduceSum", [value], names[0], axes=axes.tolist(), keepdims=0)
            else:
                self._add("ReduceSum", [value, self._constant(f"{prefix}.axes", axes)], names[0], keepdims=0)
            shape = (channels,)
        else:
            flat_shape = self._constant(f"{prefix}.shape", np.array([0, channels, units]))
            flat = self._add("Reshape", [value, flat_shape], f"{prefix}.flat")
            # Of equal values, TopK takes the first.
            if self._opset < 10:
                self._add("TopK", [flat], *names, axis=2, k=1)
            else:
                self._add("TopK", [flat, self._constant(f"{prefix}.count", np.array([1]))], *names, axis=2)
            shape = (channels, 1)
        self._output(names[0], TensorProto.FLOAT, shape)
        for name in names[1:]:
            self._output(name, TensorProto.INT64, shape)

    def finish(self) -> None:
        """Sorts the nodes, so that each stands behind those that it reads."""
        nodes = [*self._graph.node, *self._added]
        made = {entry.name for entry in self._graph.input} | {entry.name for entry in self._graph.initializer}
        made.update(entry.values.name for entry in self._graph.sparse_initializer)
        ordered: list[NodeProto] = []
        while nodes:
            waiting = []
            for node in nodes:
                if made.issuperset(_all_inputs(node)):
                    ordered.append(node)
                    made.update(node.output)
                else:
                    waiting.append(node)
            assert len(waiting) < len(nodes), "the graph was checked when it was exported"
            nodes = waiting
        copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del self._graph.node[:]
        self._graph.node.extend(copies)

    def _dequantised(self, readers: list[NodeProto]) -> Iterator[str]:
        for quantise in readers:
            for node in self._readers[quantise.output[0]]:
                if node.op_type == "DequantizeLinear":
                    yield node.output[0]

    def _as_float(self, value: str, name: str) -> str:
        """Adds a float32 copy of a layer's value, called `name`, and returns the name.

        A rounded value is dequantised once more. The runtime fuses a DequantizeLinear with its only reader.
        """
        producer = self._producers[value]
        if producer.op_type == "DequantizeLinear":
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in producer.attribute}
            return self._add("DequantizeLinear", list(producer.input), name, **attributes)
        return self._add("Cast", [value], name, to=TensorProto.FLOAT)

    def _add(self, operation: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        node = helper.make_node(operation, inputs, outputs, name=outputs[0], **attributes)
        self._added.append(node)
        return outputs[0]

    def _constant(self, name: str, values: np.ndarray) -> str:
        self._graph.initializer.append(numpy_helper.from_array(values.astype(np.int64), name))
        return name

    def _output(self, name: str, element: int, shape: tuple[int, ...]) -> None:
        batch = self._graph.input[0].type.tensor_type.shape.dim[0]
        entry = helper.make_tensor_value_info(name, element, (None, *shape))
        entry.type.tensor_type.shape.dim[0].CopyFrom(batch)
        self._graph.output.append(entry)


def _readers(model: ModelProto) -> dict[str, list[NodeProto]]:
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in _all_inputs(node):
            readers[name].append(node)
    return readers


def _all_inputs(node: NodeProto) -> set[str]:
    """Returns the tensors that a node reads, also those that its branches and loops read from outside."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            made = {name for inner in graph.node for name in inner.output}
            made |= {entry.name for entry in graph.input} | {entry.name for entry in graph.initializer}
            names |= {name for inner in graph.node for name in _all_inputs(inner)} - made
    return names
