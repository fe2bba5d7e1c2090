"""Backward steps of a projection: each carries signals from the output of an operation to one of its inputs.

All but `rectify`, `pass_over` and `scale_norm` are exact transposes of the forward operation, which is linear once the
switches of max-pools and the values of gates are fixed. A step gets signals whose boxes lie inside of the output. It
may return boxes that reach into the padding of the input. `zfserve_model.explanation.rules` says which operation has
which step.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from zfserve_model.explanation.signals import Signal, cut
from zfserve_model.graph.execution import run_node
from zfserve_model.layers.boxes import Step

BackwardStep = Callable[[Step, Signal, Tensor | None], Signal]
"""The last argument is what the forward pass kept for the node: switches, the gate, or the mask of the maxima."""


def pass_over(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Sends the signal on as it is. "Contrast normalization operations are not used" on the way down (section 2.1)."""
    return signal


def rectify(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Sets negative values to zero."""
    return Signal(signal.values.relu(), signal.starts)


def add(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Sends the signal to each term of a sum."""
    return _sum_broadcast(step, signal)


def subtract(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    return _sum_broadcast(step, signal if step.index == 0 else Signal(-signal.values, signal.starts))


def negate(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    return Signal(-signal.values, signal.starts)


def average_terms(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    return _sum_broadcast(step, Signal(signal.values / len(step.node.inputs), signal.starts))


def multiply(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Scales the signal by the other factor: a constant, or a gate with its value of the forward pass."""
    factor = step.constant(1 - step.index) if kept is None else kept
    assert factor is not None
    return _sum_broadcast(step, Signal(signal.values * cut(factor, signal), signal.starts))


def divide(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    divisor = step.constant(1) if kept is None else kept
    assert divisor is not None
    return _sum_broadcast(step, Signal(signal.values / cut(divisor, signal), signal.starts))


def scale_batch_norm(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Scales each channel as batch norm does at inference."""
    gamma, variance = step.constant(1), step.constant(4)
    assert gamma is not None
    assert variance is not None
    scale = gamma / torch.sqrt(variance + _number(step, "epsilon", 1e-5))
    scale = scale.view(-1, *[1] * (len(step.shape) - 2))
    return Signal(signal.values * cut(scale, signal), signal.starts)


def scale_norm(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Passes over the normalisation, and multiplies by the norm's scale, which is a constant of the network.

    Where an exporter takes a norm apart, its scale is a multiplication of its own. Both forms give the same projection.
    """
    scale = step.constant(1)
    assert scale is not None
    if step.node.operation != "LayerNormalization":  # That has a scale for each place of the last axes.
        scale = scale.view(-1, *[1] * (len(step.shape) - 2))
    return Signal(signal.values * cut(scale, signal), signal.starts)


def _sum_broadcast(step: Step, signal: Signal) -> Signal:
    """Sums over the axes along which the forward operation broadcast this input."""
    axes = [axis for axis, (size, below) in enumerate(zip(step.output_shape, step.shape, strict=True)) if size > below]
    if not axes:
        return signal
    starts = signal.starts.copy()
    starts[:, axes] = 0
    return Signal(signal.values.sum(axes, keepdim=True), starts)


def spread_mean(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Spreads each value evenly over the axes that a global average pool or a ReduceMean averages."""
    spread = spread_sum(step, signal, kept)
    count = math.prod(step.shape) / math.prod(step.output_shape)
    return Signal(spread.values / count, spread.starts)


def spread_sum(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Repeats each value along the axes that were summed. They are the axes that have another length or are missing."""
    axes = reduced_axes(step)
    values, starts = signal.values, signal.starts
    if len(step.output_shape) < len(step.shape):
        for axis in axes:
            values, starts = values.unsqueeze(axis), np.insert(starts, axis, 0, axis=1)
    sizes = [step.shape[axis] if axis in axes else -1 for axis in range(len(step.shape))]
    return Signal(values.expand(sizes), starts)


def place_maximum(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Sends each value to the first maximum of those that a global max-pool or a ReduceMax compared."""
    assert kept is not None
    spread = spread_sum(step, signal, None)
    return Signal(spread.values * cut(kept, spread), spread.starts)


def reduced_axes(step: Step) -> list[int]:
    """Returns the axes that a ReduceMean, or another reduction, or a global pool leaves out, in ascending order."""
    rank = len(step.shape)
    default = list(range(2 if step.node.operation.startswith("Global") else 0, rank))
    return sorted(axis % rank for axis in step.integers("axes", default, index=1))


def concatenated(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Moves the signal to the place of one part of a Concat."""
    axis = step.integer("axis", 0) % len(step.shape)
    before = sum(_shape_of(step, name)[axis] for name in step.node.inputs[: step.index])
    return signal.shifted(axis, -before)


def split(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Moves the signal of one output of a Split to its place in the input."""
    axis = step.integer("axis", 0) % len(step.shape)
    outputs = step.node.outputs[: step.node.outputs.index(step.output)]
    return signal.shifted(axis, sum(_shape_of(step, name)[axis] for name in outputs))


def transpose(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    source = np.argsort(step.integers("perm", list(range(len(step.shape)))[::-1]))
    return Signal(signal.values.permute(source.tolist()), signal.starts[:, source])


def reshape(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Restores the shape of the input. The last axes keep their boxes where the operation leaves them as they are."""
    above, below = step.output_shape, step.shape
    same = 0
    while same < min(len(above), len(below)) - 1 and above[-1 - same] == below[-1 - same]:
        same += 1
    signal = signal.spanning(above, range(1, len(above) - same))
    starts = np.zeros((len(signal), len(below)), np.int64)
    if same:
        starts[:, -same:] = signal.starts[:, -same:]
    sizes = below[1 : len(below) - same] + tuple(signal.values.shape[len(above) - same :])
    return Signal(signal.values.reshape(len(signal), *sizes), starts)


def multiply_matrix(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Applies the transpose of a constant matrix, the second factor, along the last axis."""
    matrix = step.constant(1)
    if step.index != 0 or matrix is None or matrix.ndim != 2 or step.integer("transA", 0):
        return transpose_by_autograd(step, signal, kept)
    if step.integer("transB", 0):
        matrix = matrix.mT
    rank = len(step.shape)
    signal = signal.spanning(step.output_shape, [rank - 1])
    starts = signal.starts.copy()
    starts[:, -1] = 0
    return Signal(_number(step, "alpha", 1.0) * (signal.values @ matrix.mT), starts)


def place_slice(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Moves the signal to the place that a Slice was taken from."""
    begins = step.integers("starts", [], index=1)
    axes = step.integers("axes", list(range(len(begins))), index=3)
    paces = step.integers("steps", [1] * len(begins), index=4)
    if any(pace != 1 for pace in paces):
        return transpose_by_autograd(step, signal, kept)
    for begin, axis in zip(begins, axes, strict=True):
        size = step.shape[axis]
        signal = signal.shifted(axis % len(step.shape), min(begin, size) if begin >= 0 else max(begin + size, 0))
    return signal


def crop_padding(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Moves the signal by the padding. What lies in the padding reaches no place of the input."""
    if step.node.attributes.get("mode", "constant") != "constant":
        return transpose_by_autograd(step, signal, kept)
    pads = step.integers("pads", [], index=1)
    axes = step.integers("axes", list(range(len(pads) // 2)), index=3)
    for axis, pad in zip(axes, pads, strict=False):
        signal = signal.shifted(axis % len(step.shape), -pad)
    return signal


def transpose_by_autograd(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Transposes an operation that is linear, or linear but for a constant, through the derivative of its forward pass.

    The boxes become whole tensors.
    """
    values = signal.spanning(step.output_shape, range(1, len(step.output_shape))).values
    with torch.inference_mode(False), torch.enable_grad():
        # A batch of one, as sizes among the constants may contain the batch.
        point = torch.zeros(step.shape, dtype=values.dtype, device=values.device, requires_grad=True)
        inputs = [point if index == step.index else step.constant(index) for index in range(len(step.node.inputs))]
        output = run_node(step.node, inputs)[step.node.outputs.index(step.output)]
        below = [torch.autograd.grad(output, point, value[None], retain_graph=True)[0] for value in values.clone()]
    return Signal(torch.cat(below), np.zeros((len(values), len(step.shape)), np.int64))


def _number(step: Step, name: str, default: float) -> float:
    value = step.node.attributes.get(name, default)
    assert isinstance(value, int | float)
    return value


def _shape_of(step: Step, name: str) -> tuple[int, ...]:
    """Returns the shape of an input or an output of the node, for a batch of one."""
    shapes, constants = step.graph.shapes, step.graph.constants
    return shapes[name] if name in shapes else tuple(constants[name].shape)
