"""Calls one operation of the table, for its result or for the shapes of it alone. `folding` uses it."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from zfserve_model.graph.errors import GraphError
from zfserve_model.graph.graph import Node
from zfserve_model.graph.operations import OPERATIONS
from zfserve_model.graph.shape_rules import empty_result


def call_operation(node: Node, inputs: Sequence[Tensor | None], shapes_only: bool) -> tuple[Tensor, ...] | None:
    """Calls the operation. Returns None if the table does not have it in this form.

    Raises:
        GraphError: the inputs do not fit the operation.
    """
    operation = OPERATIONS[node.operation]
    given: list[Tensor | None] = list(inputs)
    for position, tensor in enumerate(given):
        if tensor is None:
            continue
        if position in operation.parameters:
            if tensor.is_meta:
                return None  # A size or a limit depends on the photo's content.
        elif shapes_only and node.operation not in ("Shape", "Size"):
            given[position] = tensor.to("meta")
    if shapes_only and operation.keeps_shape and given and given[0] is not None:
        return (given[0],)
    try:
        if shapes_only and (result := empty_result(node.operation, node.attributes, given)) is not None:
            return (result,)
        # Within the mode, an operation without tensors to read makes `meta` tensors too. The mode is slow.
        needs_mode = shapes_only and not any(tensor is not None and tensor.is_meta for tensor in given)
        with torch.device("meta") if needs_mode else contextlib.nullcontext():
            outputs = operation.compute(node.attributes, *given)
    except NotImplementedError:
        return None
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, OverflowError) as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs if tensor is not None)
        raise GraphError(
            f"the operation {operation_name(node)} cannot work on tensors of the shapes {shapes}; "
            "check that the weights belong to this network, and export it again"
        ) from error
    return outputs if isinstance(outputs, tuple) else (outputs,)


def operation_name(node: Node) -> str:
    """Returns the operation and the name of a node, for an error."""
    return f"{node.operation} {node.name or node.outputs[0]!r}" if node.outputs else node.operation
