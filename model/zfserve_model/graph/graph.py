"""Defines a network as a graph of operations from a closed table.

`importer` builds a graph from an ONNX model. The deconvnet, the attribution and the layer table work on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Node:
    """Describes one operation.

    Attributes:
        operation: the name of the operation in the table `zfserve_model.graph.operations`. It is ONNX's name, such as
            "Conv", or the name of a pattern that the importer recognised, such as "LRN" or "Silu". An operation outside
            of the table keeps its ONNX name, and has `supported` False.
        inputs: the names of the tensors that it reads, in the order of the ONNX operator. "" stands for an optional
            input that is left out.
        outputs: the names of the tensors that it computes.
        attributes: the operator's attributes as Python numbers, strings, lists and tensors.
        name: the name in the source: the path of the module, such as "features.stage1.unit1.conv", or the node's name.
        scopes: the path and the class of each module that contains the node, the outermost first, such as
            (("features", "torch.nn.modules.container.Sequential"), ...). Empty where the file does not name them.
        supported: False where the operation is not in the table, so no forward or backward pass can go through it.
    """

    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    scopes: tuple[tuple[str, str], ...] = ()
    supported: bool = True


@dataclass(frozen=True, eq=False)
class Graph:
    """Holds a network from the normalised input to the probabilities.

    Attributes:
        nodes: the operations in topological order.
        constants: weights and other constants by name. Floating-point constants are float32.
        input: the name of the input tensor, float32 (N, 3, H, W), RGB, normalised.
        probabilities: the name of the tensor of probabilities, float32 (N, K).
        logits: the name of the tensor of scores before the softmax, float32 (N, K).
        features: the name of the tensor that enters the last linear layer, float32 (N, F). None where there is none.
        shapes: the shape of each tensor that depends on the input, for a batch of one, by name. A tensor whose shape is
            unknown, above an unsupported operation, is missing.
        fixed_batch: the only number of images that the nodes take at once. 0 if they take any number.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    input: str
    probabilities: str
    logits: str
    features: str | None
    shapes: Mapping[str, tuple[int, ...]]
    fixed_batch: int = 0

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that computes each tensor, by the tensor's name. The input and the constants have none."""
        return {output: node for node in self.nodes for output in node.outputs}
