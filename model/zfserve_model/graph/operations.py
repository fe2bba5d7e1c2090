"""Lists the operations that a graph may have: the closed table `OPERATIONS`.

`folding` computes shapes and constants with it, and `execution` runs a graph with it. To add an operation, add a row.
The deconvnet refuses what has no rule in `zfserve_model.explanation.rules`, so a new row needs one there too.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from zfserve_model.graph import activations, norms, reductions, shaping, windows
from zfserve_model.graph.windows import Attributes

Compute = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Operation:
    """Describes one row of the table.

    Attributes:
        compute: the function from the node's attributes and inputs to its output, or a tuple of outputs. An input that
            is left out is None. It works on torch's `meta` device too, where it computes shapes only.
        parameters: the positions of inputs whose values the function reads as numbers, such as sizes and limits. They
            are on the CPU.
        keeps_shape: True if the output always has the shape and the type of the first input.
    """

    compute: Compute
    parameters: tuple[int, ...] = ()
    keeps_shape: bool = False


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    product = a @ b
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _divide(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _modulo(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if attributes.get("fmod") else torch.remainder(a, b)


def _chain(function: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    def compute(attributes: Attributes, *tensors: Tensor) -> Tensor:
        return functools.reduce(function, tensors)

    return compute


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    def compute(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)

    return Operation(compute)


def _unary(function: Callable[[Tensor], Tensor]) -> Operation:
    def compute(attributes: Attributes, x: Tensor) -> Tensor:
        return function(x)

    return Operation(compute, keeps_shape=True)


def _first(attributes: Attributes, x: Tensor, *rest: Tensor | None) -> Tensor:
    return x


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(
        list(x.shape)[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64, device="cpu"
    )


def _size(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device="cpu")


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    value = attributes.get("value")
    sizes = shaping.integers(shape)
    if value is None:
        return torch.zeros(sizes)
    return torch.full(sizes, value.item(), dtype=value.dtype)


def _range(attributes: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    return x.to(attributes["to"])


def _cast_like(attributes: Attributes, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def _where(attributes: Attributes, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def _triangle(attributes: Attributes, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    offset = 0 if diagonal is None else int(diagonal)
    return x.triu(offset) if attributes.get("upper", 1) else x.tril(offset)


def _mean_of_all(attributes: Attributes, *tensors: Tensor) -> Tensor:
    return functools.reduce(torch.add, tensors) / len(tensors)


OPERATIONS: Mapping[str, Operation] = {
    # Windows.
    "Conv": Operation(windows.convolution),
    "ConvTranspose": Operation(windows.transposed_convolution),
    "MaxPool": Operation(windows.max_pool),
    "AveragePool": Operation(windows.average_pool),
    "GlobalAveragePool": Operation(reductions.over_places(reductions.mean)),
    "GlobalMaxPool": Operation(reductions.over_places(reductions.largest)),
    # Linear layers.
    "Gemm": Operation(_gemm),
    "MatMul": _binary(torch.matmul),
    # Norms.
    "BatchNormalization": Operation(norms.batch_norm),
    "LRN": Operation(norms.local_response_norm),
    "InstanceNormalization": Operation(norms.instance_norm),
    "GroupNormalization": Operation(norms.group_norm),
    "LayerNormalization": Operation(norms.layer_norm),
    # Rectifiers and their smooth relatives.
    "Relu": _unary(torch.relu),
    "Clip": Operation(activations.clip, parameters=(1, 2), keeps_shape=True),
    "LeakyRelu": Operation(activations.leaky_relu, keeps_shape=True),
    "PRelu": Operation(activations.p_relu),
    "Elu": Operation(activations.elu, keeps_shape=True),
    "Selu": Operation(activations.selu, keeps_shape=True),
    "Celu": Operation(lambda attributes, x: F.celu(x, attributes.get("alpha", 1.0)), keeps_shape=True),
    "ThresholdedRelu": Operation(activations.thresholded_relu, keeps_shape=True),
    "Gelu": Operation(activations.gelu, keeps_shape=True),
    "Silu": _unary(F.silu),
    "Swish": Operation(activations.swish, keeps_shape=True),
    "Mish": _unary(F.mish),
    "HardSwish": _unary(F.hardswish),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    # Gates.
    "Sigmoid": _unary(torch.sigmoid),
    "HardSigmoid": Operation(activations.hard_sigmoid, keeps_shape=True),
    "Tanh": _unary(torch.tanh),
    "Softmax": Operation(activations.softmax),
    "LogSoftmax": Operation(activations.log_softmax),
    # Arithmetic.
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": Operation(_divide),
    "Mod": Operation(_modulo),
    "Pow": _binary(torch.pow),
    "Sum": Operation(_chain(torch.add)),
    "Mean": Operation(_mean_of_all),
    "Max": Operation(_chain(torch.maximum)),
    "Min": Operation(_chain(torch.minimum)),
    "Sqrt": _unary(torch.sqrt),
    "Reciprocal": _unary(torch.reciprocal),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Abs": _unary(torch.abs),
    "Neg": _unary(torch.neg),
    "Sign": _unary(torch.sign),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Round": _unary(torch.round),
    # Reductions.
    "ReduceMean": Operation(reductions.over_axes(reductions.mean), parameters=(1,)),
    "ReduceSum": Operation(reductions.over_axes(reductions.total), parameters=(1,)),
    "ReduceMax": Operation(reductions.over_axes(reductions.largest), parameters=(1,)),
    "ReduceMin": Operation(reductions.over_axes(reductions.smallest), parameters=(1,)),
    "ReduceProd": Operation(reductions.over_axes(reductions.product), parameters=(1,)),
    "ReduceL1": Operation(reductions.over_axes(reductions.l1_norm), parameters=(1,)),
    "ReduceL2": Operation(reductions.over_axes(reductions.l2_norm), parameters=(1,)),
    "ReduceSumSquare": Operation(reductions.over_axes(reductions.sum_of_squares), parameters=(1,)),
    "ReduceLogSumExp": Operation(reductions.over_axes(torch.logsumexp), parameters=(1,)),
    "ArgMax": Operation(reductions.place_of(torch.argmax)),
    "ArgMin": Operation(reductions.place_of(torch.argmin)),
    # Movement of values.
    "Identity": Operation(_first),
    "Dropout": Operation(_first),
    "Flatten": Operation(shaping.flatten),
    "Reshape": Operation(shaping.reshape, parameters=(1,)),
    "Squeeze": Operation(shaping.squeeze, parameters=(1,)),
    "Unsqueeze": Operation(shaping.unsqueeze, parameters=(1,)),
    "Transpose": Operation(shaping.transpose),
    "Concat": Operation(shaping.concat),
    "Split": Operation(shaping.split, parameters=(1,)),
    "Slice": Operation(shaping.slice_axes, parameters=(1, 2, 3, 4)),
    "Gather": Operation(shaping.gather),
    "Pad": Operation(shaping.pad, parameters=(1, 2, 3)),
    "Resize": Operation(shaping.resize, parameters=(1, 2, 3)),
    "Expand": Operation(shaping.expand, parameters=(1,)),
    "Tile": Operation(shaping.tile, parameters=(1,)),
    "DepthToSpace": Operation(shaping.depth_to_space),
    "SpaceToDepth": Operation(shaping.space_to_depth),
    # Arithmetic on shapes and masks. Folding removes nearly all of it.
    "Shape": Operation(_shape),
    "Size": Operation(_size),
    "ConstantOfShape": Operation(_constant_of_shape, parameters=(0,)),
    "Range": Operation(_range, parameters=(0, 1, 2)),
    "Cast": Operation(_cast),
    "CastLike": Operation(_cast_like),
    "Where": Operation(_where),
    "Equal": _binary(torch.eq),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "Xor": _binary(torch.logical_xor),
    "Not": _unary(torch.logical_not),
    "Trilu": Operation(_triangle, parameters=(1,)),
}
"""The operations by their ONNX name. `Silu` is the one name that ONNX does not have: it is Swish with alpha 1."""
