"""This module converts a wrapped network to float16. `exporter` calls it.

Normalisation, softmax, local response norm and layer norm stay in float32, because their squares and exponentials may
exceed the range of float16. Pixels, probabilities and features keep their types.

`onnxruntime.transformers.float16` could convert the graph too. But the nodes of its result are not in topological
order, it clamps weights beyond the range of float16 silently, and it rounds the normalisation and the probabilities to
float16, in spite of the list of nodes to spare.
"""

from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from zfserve_model.graph.errors import GraphError
from zfserve_runtime.bundle import GRAPH_INPUT

from zfserve_export.onnx_edits import infer_types, subgraphs

LARGEST_HALF = float(np.finfo(np.float16).max)

_FIRST_INFINITE_HALF = 65520.0

LARGEST_ACTIVATION = LARGEST_HALF / 4
"""The largest activation that a network may have if it is exported to float16. It is below the limit of float16,
because other photos may cause larger activations."""

FLOAT32_OPERATIONS = frozenset(
    (
        *("LRN", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
        *("MeanVarianceNormalization", "LpNormalization", "Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt"),
        *("Reciprocal", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "CumSum", "Einsum"),
    )
)
"""The operations that compute in float32."""

_NORMALISING = frozenset(("Cast", "Mul", "Sub", "Add", "Div", "Transpose", "Split", "Concat"))
"""The operations between the pixels and the first layer. They compute in float32, because some networks normalise the
pixels once more, and subtract means from values up to 255."""


class HalfPlan:
    """Decides which tensors of a model become float16.

    A node computes in float16 if its operator allows that, and if it is not one of `FLOAT32_OPERATIONS` or of the
    normalisation. Its float32 outputs then become float16, if they have the type of such an input.

    Attributes:
        types: the element type of each tensor of the model.
        tensors: the names of the activations that become float16.
    """

    def __init__(self, model: ModelProto) -> None:
        self.types = {name: found.elem_type for name, found in infer_types(model).items()}
        self.tensors: set[str] = set()
        self._opsets = {opset.domain: opset.version for opset in model.opset_import}
        self._normalisation = {GRAPH_INPUT}
        stored = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            weights = {name for name in node.input if name in stored}
            if node.op_type in _NORMALISING and self._normalisation.issuperset(set(node.input) - weights):
                self._normalisation.update(node.output)
            parameters = self._half_parameters(node)
            for index, name in enumerate(node.output):
                if self.is_float(name) and parameters and self._parameter(node, index, "outputs") in parameters:
                    self.tensors.add(name)

    def is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT

    def reads_half(self, node: NodeProto, index: int) -> bool:
        """Returns True if the node reads its float32 input number `index` in float16."""
        parameters = self._half_parameters(node)
        return bool(parameters) and self._parameter(node, index, "inputs") in parameters

    def _half_parameters(self, node: NodeProto) -> set[str]:
        """Returns the type parameters of the node's operator that become float16, such as "T"."""
        schema = self._schema(node)
        if schema is None or node.op_type in FLOAT32_OPERATIONS or self._normalisation.issuperset(node.output):
            return set()
        allowed = [
            self._parameter(node, index, "inputs")
            for index, name in enumerate(node.input)
            if self.is_float(name) and "tensor(float16)" in schema.inputs[min(index, len(schema.inputs) - 1)].types
        ]
        return set(allowed)

    def _parameter(self, node: NodeProto, index: int, side: Literal["inputs", "outputs"]) -> str:
        """Returns the type of an input or output as the schema writes it. The last entry may stand for several."""
        entries = getattr(self._schema(node), side)
        parameter: str = entries[min(index, len(entries) - 1)].type_str
        return parameter

    def _schema(self, node: NodeProto) -> onnx.defs.OpSchema | None:
        if node.op_type == "Cast" or not onnx.defs.has(node.op_type, node.domain):
            return None
        return onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)


def convert_to_half(model: ModelProto) -> ModelProto:
    """Returns a copy of a wrapped, optimised fp32 model that computes in float16.

    Raises:
        GraphError: a weight is too large for float16, or the network has a branch or a loop.
    """
    converter = _Converter(model)
    for node in model.graph.node:
        converter.add(node)
    return converter.finish()


class _Converter:
    """Rebuilds a graph node by node. It casts a tensor before the first reader that wants another type."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._plan = HalfPlan(model)
        self._old = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {output.name for output in model.graph.output}
        self._weights: dict[str, TensorProto] = {}
        self._nodes: list[NodeProto] = []
        self._casts: set[str] = set()

    def add(self, node: NodeProto) -> None:
        if any(True for _ in subgraphs(node)):
            raise GraphError(
                f"{node.name} is a branch or a loop, which has no float16 form; leave out the fp16 file with --no-fp16"
            )
        new = NodeProto()
        new.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in self._old:
                is_bound = node.op_type == "Clip" and index > 0
                new.input[index] = self._weight(name, self._plan.reads_half(node, index), is_bound)
            elif self._plan.is_float(name):
                new.input[index] = self._activation(name, self._plan.reads_half(node, index))
        for index, name in enumerate(node.output):
            new.output[index] = self._stored(name)
        self._nodes.append(new)

    def finish(self) -> ModelProto:
        """Returns the model, whose outputs are float32 and have their names."""
        for name in (output.name for output in self._model.graph.output):
            self._activation(name, in_half=False)
        result = ModelProto()
        result.CopyFrom(self._model)
        graph = result.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._weights.values())
        return onnx.shape_inference.infer_shapes(result, data_prop=True)

    def _stored(self, name: str) -> str:
        """Returns the name of a tensor where it is computed. An output gets its own name by its cast to float32."""
        return f"{name}.float16" if name in self._outputs and name in self._plan.tensors else name

    def _activation(self, name: str, in_half: bool) -> str:
        """Returns the name of a tensor in float16 or float32. Adds a cast if the tensor has the other type."""
        if (name in self._plan.tensors) == in_half:
            return self._stored(name)
        cast = f"{name}.float16" if in_half else name if name in self._outputs else f"{name}.float32"
        if cast not in self._casts:
            self._casts.add(cast)
            to = TensorProto.FLOAT16 if in_half else TensorProto.FLOAT
            self._nodes.append(helper.make_node("Cast", [self._stored(name)], [cast], f"{cast}.cast", to=to))
        return cast

    def _weight(self, name: str, in_half: bool, is_bound: bool) -> str:
        """Returns the name of a weight in float16 or in its own type.

        The bounds of a Clip may be infinite or beyond float16, where they mean that there is no bound.
        """
        weight = self._old[name]
        if in_half:
            values = numpy_helper.to_array(weight)
            largest = float(np.abs(values).max(initial=0))
            if is_bound:
                values = np.clip(values, -LARGEST_HALF, LARGEST_HALF)
            # float16 rounds values up to 65520 down to 65504. Written so that a NaN fails.
            elif not largest < _FIRST_INFINITE_HALF:
                raise GraphError(
                    f"{name} holds a weight of {largest:.3g}, and the largest float16 is {LARGEST_HALF:.0f}; "
                    "leave out the fp16 file with --no-fp16"
                )
            weight = numpy_helper.from_array(values.astype(np.float16), f"{name}.float16")
        self._weights[weight.name] = weight
        return weight.name
