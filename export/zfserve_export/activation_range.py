"""This module checks whether float16 can hold the activations of a network. `exporter` calls it."""

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper
from zfserve_runtime.bundle import GRAPH_INPUT

from zfserve_export.half_precision import LARGEST_ACTIVATION, LARGEST_HALF, HalfPlan
from zfserve_export.onnx_session import open_session, run_session
from zfserve_export.parity import ParityError, Reference, batched


def require_half_range(model: ModelProto, reference: Reference, batch_size: int) -> None:
    """Checks every activation of the reference's inputs that float16 would hold against `LARGEST_ACTIVATION`.

    Running the fp16 graph would not show an overflow: ONNX Runtime's CPU kernels keep float32 between its nodes.

    Args:
        model: the optimised fp32 model.
        reference: the inputs.
        batch_size: the number of images in each run.

    Raises:
        ParityError: an activation is too close to the limit of float16, or is not a number.
    """
    measured = ModelProto()
    measured.CopyFrom(model)
    tensors = HalfPlan(model).tensors
    makers = [(node.name, name) for node in model.graph.node for name in node.output if name in tensors]
    del measured.graph.output[:]
    for _, name in makers:
        # The graph returns one number for each tensor, so that it can free the tensor itself.
        size, largest = f"{name}.size", f"{name}.largest"
        measured.graph.node.append(helper.make_node("Abs", [name], [size]))
        measured.graph.node.append(helper.make_node("ReduceMax", [size], [largest], keepdims=0))
        measured.graph.output.append(helper.make_empty_tensor_value_info(largest))
    outputs = [output.name for output in measured.graph.output]
    session = open_session(measured, outputs)
    for batch in batched(reference.pixels, batch_size):
        _require(run_session(session, outputs, {GRAPH_INPUT: batch}), [node for node, _ in makers], reference)


def _require(largest: list[NDArray[np.float32]], nodes: list[str], reference: Reference) -> None:
    for node, value in zip(nodes, largest, strict=True):
        # Written so that a NaN fails.
        if not float(value) <= LARGEST_ACTIVATION:
            raise ParityError(
                f"{node} gives activations of {float(value):.3g} for {reference.kind}, too close to the largest "
                f"float16, {LARGEST_HALF:.0f} (at most {LARGEST_ACTIVATION:.0f} is allowed); leave out the fp16 file "
                "with --no-fp16"
            )
