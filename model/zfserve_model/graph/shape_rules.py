"""Computes the shapes of common operations without PyTorch. `folding` asks here first.

PyTorch computes shapes by its own operations on tensors without values. The first such call imports its compiler and
sympy. Measured in a worker: 1.2 s and 75 MB. A network of the operations below needs neither.

A rule returns None for every form that it does not know and for shapes that do not fit. PyTorch then decides.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zfserve_model.graph.windows import Attributes, window

Shape = tuple[int, ...]
ShapeRule = Callable[..., Shape | None]


def empty_result(operation: str, attributes: Attributes, inputs: Sequence[Tensor | None]) -> Tensor | None:
    """Returns the result of an operation as a tensor without values, or None if no rule gives its shape.

    Args:
        inputs: the inputs. Their values are read only where they are sizes, such as the axes of a reduction.
    """
    rule, first = SHAPE_RULES.get(operation), inputs[0] if inputs else None
    if rule is None or first is None:
        return None
    if not first.is_floating_point() and (operation not in _INTEGERS_TOO or first.dtype == torch.bool):
        return None
    shape = rule(attributes, *inputs)
    return None if shape is None else torch.empty(shape, dtype=first.dtype, device="meta")


def _same(attributes: Attributes, x: Tensor, *others: Tensor | None) -> Shape:
    return tuple(x.shape)


def _along_axis(attributes: Attributes, x: Tensor) -> Shape | None:
    return tuple(x.shape) if -x.dim() <= attributes.get("axis", -1) < x.dim() else None


def _per_channel(attributes: Attributes, x: Tensor, *others: Tensor | None) -> Shape | None:
    fits = x.dim() > 1 and all(other is not None and tuple(other.shape) == (x.shape[1],) for other in others)
    return tuple(x.shape) if fits else None


def _broadcast(attributes: Attributes, *tensors: Tensor) -> Shape | None:
    if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        return None
    axes = max(tensor.dim() for tensor in tensors)
    padded = [(1,) * (axes - tensor.dim()) + tuple(tensor.shape) for tensor in tensors]
    sizes = [{size for size in column if size != 1} or {1} for column in zip(*padded, strict=True)]
    return tuple(size for (size,) in sizes) if all(len(each) == 1 for each in sizes) else None


def _convolution(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    fits = x.dim() == weight.dim() and 2 < x.dim() < 6 and x.shape[1] == weight.shape[1] * attributes.get("group", 1)
    if (
        not fits
        or weight.shape[0] % attributes.get("group", 1)
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        return None
    spatial = _windows(attributes, x, weight.shape[2:])
    return None if spatial is None else (x.shape[0], weight.shape[0], *spatial)


def _pool(attributes: Attributes, x: Tensor) -> Shape | None:
    spatial = _windows(attributes, x) if 2 < x.dim() < 6 and len(attributes["kernel_shape"]) == x.dim() - 2 else None
    return None if spatial is None else (*x.shape[:2], *spatial)


def _windows(attributes: Attributes, x: Tensor, kernel: Sequence[int] | None = None) -> Shape | None:
    frame = window(attributes, x.shape[2:], kernel)
    counts = []
    for axis, size in enumerate(x.shape[2:]):
        extent = (frame.kernel[axis] - 1) * frame.dilations[axis] + 1
        room = size + frame.before[axis] + frame.after[axis] + frame.overhang[axis] - extent
        if room < 0 or frame.strides[axis] < 1 or min(frame.before[axis], frame.after[axis]) < 0:
            return None
        counts.append(room // frame.strides[axis] + 1)
    return tuple(counts)


def _global(attributes: Attributes, x: Tensor) -> Shape | None:
    return (*x.shape[:2], *(1,) * (x.dim() - 2)) if x.dim() > 2 else None


def _reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Shape | None:
    chosen = [] if axes is None else axes.flatten().tolist()
    if not chosen or not all(-x.dim() <= axis < x.dim() for axis in chosen):
        return None
    reduced = {axis % x.dim() for axis in chosen}
    if attributes.get("keepdims", 1):
        return tuple(1 if axis in reduced else size for axis, size in enumerate(x.shape))
    return tuple(size for axis, size in enumerate(x.shape) if axis not in reduced)


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Shape | None:
    if a.dim() != 2 or b.dim() != 2 or (c is not None and c.dim() > 1):
        return None
    rows, inner = reversed(a.shape) if attributes.get("transA") else a.shape
    inner_of_b, columns = reversed(b.shape) if attributes.get("transB") else b.shape
    fits = inner == inner_of_b and (c is None or c.shape.numel() in (1, columns))
    return (rows, columns) if fits else None


def _concat(attributes: Attributes, *tensors: Tensor) -> Shape | None:
    axes, axis = tensors[0].dim(), attributes.get("axis", 1)
    alike = all(tensor.dim() == axes and tensor.dtype == tensors[0].dtype for tensor in tensors)
    if not alike or not -axes <= axis < axes:
        return None
    axis %= axes
    rest = {(*tensor.shape[:axis], *tensor.shape[axis + 1 :]) for tensor in tensors}
    total = sum(tensor.shape[axis] for tensor in tensors)
    return (*tensors[0].shape[:axis], total, *tensors[0].shape[axis + 1 :]) if len(rest) == 1 else None


def _gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Shape | None:
    axis = attributes.get("axis", 0)
    if not -x.dim() <= axis < x.dim():
        return None
    axis %= x.dim()
    return (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


SHAPE_RULES: dict[str, ShapeRule] = {
    "Conv": _convolution,
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _reduce),
    **dict.fromkeys(("Gemm", "MatMul"), _gemm),
    "BatchNormalization": _per_channel,
    **dict.fromkeys(("LRN", "Dropout", "Identity"), _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min"), _broadcast),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _along_axis),
    "Concat": _concat,
    "Gather": _gather,
}
"""The rules, by operation. Operations that keep the shape (`Operation.keeps_shape`) need none, nor do those that move
values: PyTorch imports nothing for a reshape or a slice."""

_INTEGERS_TOO = ("Add", "Sub", "Mul", "Div", "Concat", "Gather", "Identity")
"""These operations have integers as a result where their inputs are integers, as in the arithmetic of shapes."""
