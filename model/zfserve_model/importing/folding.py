"""Computes the shape of every tensor, and replaces by constants what does not depend on the photo.

`importer` calls it. A network's file is full of arithmetic on shapes. Folding runs the graph for two batch sizes on
torch's `meta` device, which computes shapes and holds no values, so it needs neither the memory nor the time of a
forward pass. Numbers that come from shapes are computed. A number that is the same for both batch sizes is a constant.

A file may be hostile: 167 bytes can make ConstantOfShape ask for 40 GB. So each operation runs on `meta` first, and is
refused if its output is too large.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx
import torch
from torch import Tensor

from zfserve_model.graph.errors import GraphError
from zfserve_model.graph.graph import Node
from zfserve_model.graph.operations import OPERATIONS
from zfserve_model.graph.ordering import sort_nodes
from zfserve_model.importing.batch_axis import batch_free_target
from zfserve_model.importing.decoding import Decoder
from zfserve_model.importing.operation_call import call_operation, operation_name

LARGEST_TENSOR_BYTES = 2**30
"""The largest tensor that one image may make, and the largest constant that folding may make."""
FOLDED_BYTES = 2**30
"""The most that all constants made by folding may hold together, so that many of them cannot take hours."""
MOST_NODES = 200_000
"""The most nodes after branches are inlined. The largest network of the zoo has a few thousand."""
HEAVY = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "MaxPool", "AveragePool"})
"""Operations whose time the size of their output does not bound. Folding leaves them in the graph."""
_MOVES_OF_PIXELS = frozenset({"Identity", "Transpose", "Gather", "Concat", "Split", "Slice"})

ShapesOf = Callable[[Node, Mapping[str, Tensor]], Mapping[str, Tensor]]

Values = tuple[Tensor, ...]
"""One tensor for each batch size that folding tries: on the CPU if its value is known, else on `meta`."""


@dataclass
class Folded:
    """Holds a graph without arithmetic on constants.

    Attributes:
        nodes: the nodes that depend on the input.
        constants: all constants by name, those of the file and those that folding computed.
        shapes: the shape of each tensor that depends on the input, for one image. Unknown ones are missing.
    """

    constants: dict[str, Tensor]
    nodes: list[Node] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Folding:
    """Walks once over the nodes in their order, which must be topological."""

    def __init__(
        self,
        decoder: Decoder,
        input_name: str,
        image: tuple[int, ...],
        batches: Sequence[int],
        shapes_of: ShapesOf = lambda node, inputs: {},
    ) -> None:
        """Prepares the folding of a graph.

        Args:
            decoder: decodes the branches that are inlined. It holds the constants.
            input_name: the name of the graph's input, float32.
            image: the shape of the input without the batch axis.
            batches: the batch sizes to try: two, or one if the file fixes the batch.
            shapes_of: returns the outputs of an operation outside of the table, without values, from its inputs.
        """
        self._shapes_of = shapes_of
        self._decoder = decoder
        self._constants: dict[str, Tensor] = decoder.constants
        self._batches = tuple(batches)
        self._values: dict[str, Values] = {
            input_name: tuple(torch.empty((batch, *image), device="meta") for batch in batches)
        }
        self._pixels = {input_name}
        self._folded_bytes = 0
        self._result = Folded(self._constants)

    def run(self, nodes: Iterable[Node]) -> Folded:
        """Returns the folded graph.

        Raises:
            GraphError: shapes do not fit together, or the file asks for too much memory.
        """
        waiting = deque(nodes)
        count = 0
        with torch.no_grad():
            while waiting:
                count += 1
                if count > MOST_NODES:
                    raise GraphError(f"the network has more than {MOST_NODES} operations; export a smaller network")
                node = waiting.popleft()
                branch = self._branch(node)
                if branch is None:
                    self._fold(node)
                else:
                    waiting.extendleft(reversed(branch))
        self._result.shapes = self._shapes()
        return self._result

    def _branch(self, node: Node) -> list[Node] | None:
        """Returns the nodes of the branch that an `If` on a constant takes. None for all other nodes."""
        if node.operation != "If" or node.inputs[0] not in self._constants:
            return None
        condition = bool(self._constants[node.inputs[0]].reshape(-1)[0])
        graph = node.attributes.get("then_branch" if condition else "else_branch")
        if not isinstance(graph, onnx.GraphProto) or len(graph.output) < len(node.outputs):
            raise GraphError(f"the operation If {node.name!r} has no branches that can be taken; export the file again")
        results = zip(graph.output, node.outputs, strict=False)
        identities = [Node("Identity", (result.name,), (output,)) for result, output in results]
        known = self._constants.keys() | self._values.keys() | set(node.inputs)
        inner = self._decoder.decode(graph)
        return sort_nodes(inner, known | self._constants.keys()) + identities

    def _fold(self, node: Node) -> None:
        """Makes the node's outputs constants, or adds the node to the result."""
        if any(name and name not in self._constants and name not in self._values for name in node.inputs):
            # The node stands above an unsupported one. It can run, but nothing is known about its inputs.
            self._result.nodes.append(replace(node, supported=node.operation in OPERATIONS))
            return
        computed = self._compute(node) if node.operation in OPERATIONS else None
        if computed is None:
            self._result.nodes.append(replace(node, supported=False))
            self._values |= self._inferred(node)
            return
        if node.operation == "Cast" and self._keeps_values(node):
            node = replace(node, operation="Identity", attributes={})
            computed = [tuple(self._value(node.inputs[0], position) for position in range(len(self._batches)))]
        if node.operation in _MOVES_OF_PIXELS and node.inputs[0] in self._pixels:
            self._pixels.update(node.outputs)
        constant = True
        for name, values in zip(node.outputs, computed, strict=False):
            if _is_same_number(values):
                self._constants[name] = values[0].contiguous()
            elif name:
                self._values[name] = values
                constant = False
        if not constant:
            self._result.nodes.append(self._free_batch(node))

    def _inferred(self, node: Node) -> dict[str, Values]:
        """Returns the outputs of an unsupported node whose shapes ONNX knows."""
        runs = []
        for position in range(len(self._batches)):
            inputs = {name: self._value(name, position) for name in node.inputs if name}
            runs.append(self._shapes_of(node, inputs))
        names = [name for name in node.outputs if all(name in run for run in runs)]
        for name in names:
            size = max(_bytes(run[name]) // batch for run, batch in zip(runs, self._batches, strict=True))
            self._check_size(node, size)
        return {name: tuple(run[name] for run in runs) for name in names}

    def _keeps_values(self, node: Node) -> bool:
        """Returns True for a Cast between types that the graph does not tell apart.

        A network that takes uint8 pixels gets them as float32 here: the input holds whole numbers then, and a true cast
        to integers would stop the gradient.
        """
        name = node.inputs[0]
        return name in self._pixels or self._value(name, 0).dtype == node.attributes["to"]

    def _compute(self, node: Node) -> list[Values] | None:
        """Returns the values of each output. None if the operation is not in the table in this form.

        Raises:
            GraphError: the inputs do not fit the operation, or an output is too large.
        """
        constant = all(name in self._constants for name in node.inputs if name)
        runs: list[tuple[Tensor, ...]] = []
        for position in range(1 if constant else len(self._batches)):
            inputs = [self._value(name, position) if name else None for name in node.inputs]
            outputs = call_operation(node, inputs, shapes_only=True)
            if outputs is None or len(outputs) < len([name for name in node.outputs if name]):
                return None
            size = sum(_bytes(output) for output in outputs)
            self._check_size(node, size if constant else size // self._batches[position])
            if node.operation not in HEAVY and not any(x is not None and x.is_meta for x in inputs):
                self._check_total(node, sum(_cost(output) for output in outputs))
                outputs = call_operation(node, inputs, shapes_only=False)
                if outputs is None:
                    return None
            runs.append(outputs)
        runs *= len(self._batches) // len(runs)
        return [tuple(values) for values in zip(*runs, strict=True)]

    def _value(self, name: str, position: int) -> Tensor:
        return self._constants[name] if name in self._constants else self._values[name][position]

    def _check_size(self, node: Node, size: int) -> None:
        if size > LARGEST_TENSOR_BYTES:
            raise GraphError(
                f"the operation {operation_name(node)} makes a tensor of {size / 1e9:.1f} GB, and at most "
                f"{LARGEST_TENSOR_BYTES / 1e9:.1f} GB are allowed; export the network for smaller images"
            )

    def _check_total(self, node: Node, size: int) -> None:
        self._folded_bytes += size
        if self._folded_bytes > FOLDED_BYTES:
            raise GraphError(
                f"the constants that the file computes take more than {FOLDED_BYTES / 1e9:.1f} GB, at the operation "
                f"{operation_name(node)}; export the network with smaller constants"
            )

    def _free_batch(self, node: Node) -> Node:
        """Returns a Reshape with a target shape that suits every batch, if the node is one or does the same."""
        if not (node.operation == "Reshape" or self._reads_in_order(node)) or node.inputs[0] in self._constants:
            return node
        sizes = [tuple(values.shape) for values in self._values[node.inputs[0]]]
        target = batch_free_target(sizes, [tuple(values.shape) for values in self._values[node.outputs[0]]])
        if target is None:
            return node
        name = f"{node.outputs[0]}/shape"
        while name in self._constants or name in self._values:
            name += "'"
        self._constants[name] = torch.tensor(target)
        return replace(node, operation="Reshape", inputs=(node.inputs[0], name), attributes={})

    def _reads_in_order(self, node: Node) -> bool:
        """Returns True for a Gather that reads each element of a vector once, in order.

        Torch's exporter writes an adaptive average pool to 1 x 1 in this way, where the channels of its input are last
        in memory, as in ConvNeXt. The places depend on the batch size, so this Gather would join all layers to the
        shape of the image.
        """
        if node.operation != "Gather":
            return False
        for position in range(len(self._batches)):
            data, places = self._value(node.inputs[0], position), self._value(node.inputs[1], position)
            if data.ndim != 1 or places.is_meta or not torch.equal(places.flatten(), torch.arange(len(data))):
                return False
        return True

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes for one image: sizes grow evenly with the batch, so two batches give those of one."""
        shapes = {}
        for name, values in self._values.items():
            if len(values) == 1:
                shapes[name] = tuple(values[0].shape)
            else:
                few, more = values[0].shape, values[1].shape
                step = self._batches[1] - self._batches[0]
                below = self._batches[0] - 1
                shapes[name] = tuple(a - (b - a) * below // step for a, b in zip(few, more, strict=True))
        return shapes


def _is_same_number(values: Values) -> bool:
    first = values[0]
    if any(value.is_meta for value in values):
        return False
    return all(value is first or (value.shape == first.shape and torch.equal(value, first)) for value in values[1:])


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _cost(tensor: Tensor) -> int:
    """Returns the bytes that a constant costs. ONNX's shape inference, which follows integers, keeps each in an object
    of some fifty bytes."""
    return tensor.numel() * 64 if tensor.dtype == torch.int64 else _bytes(tensor)
