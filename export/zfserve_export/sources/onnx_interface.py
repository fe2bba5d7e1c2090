"""This module reads from an ONNX model what its image input and its scores are. The sources call it."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.source import InputType, Layout

_INPUT_TYPES: dict[int, InputType] = {TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8"}
_LARGEST_BATCH = 256
"""The largest batch that a file may fix. The check for another one runs a whole batch."""

_PASSED_ON = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operations that may follow a softmax without changing its values."""


@dataclass(frozen=True)
class ImageInput:
    """Describes the image input of a model.

    Attributes:
        batch: the only batch size that the model declares. 0 stands for any.
        height, width: the size in pixels. None where the model declares any size.
    """

    name: str
    layout: Layout
    dtype: InputType
    batch: int
    height: int | None
    width: int | None


def find_image_input(model: ModelProto, description: str) -> ImageInput:
    """Returns the only input of a model, if it is an image of three channels.

    Raises:
        SourceError: the model has several inputs, its input is no float32 or uint8 image of three channels, or it
            takes only very large batches.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = _few([value.name for value in inputs]) or "none"
        raise SourceError(
            f"{description} has {len(inputs)} inputs ({names}), and one image is needed; export a network that takes "
            "one image and nothing else"
        )
    (value,) = inputs
    kind, sizes = value.type.tensor_type.elem_type, _sizes(value)
    if kind not in _INPUT_TYPES:
        raise SourceError(
            f"the input {value.name} of {description} is {_type_name(kind)}; export the network with a float32 or "
            "uint8 input (zfserve makes the float16 file itself)"
        )
    if sizes is None or len(sizes) != 4 or 3 not in (sizes[1], sizes[3]):
        raise SourceError(
            f"the input {value.name} of {description} has shape {_shape_text(sizes)}; export the network with an input "
            "of (N, 3, H, W) or (N, H, W, 3)"
        )
    if (sizes[0] or 0) > _LARGEST_BATCH:
        raise SourceError(
            f"the input {value.name} of {description} takes only batches of {sizes[0]} images; export the network with "
            "a dynamic batch axis or with a batch of 1"
        )
    layout: Layout = "NCHW" if sizes[1] == 3 else "NHWC"
    height, width = sizes[2:] if layout == "NCHW" else sizes[1:3]
    return ImageInput(value.name, layout, _INPUT_TYPES[kind], sizes[0] or 0, height, width)


@dataclass(frozen=True)
class Scores:
    """Describes the output with one score for each class.

    Attributes:
        classes: the number of classes. None where the model does not declare it.
        softmax: True if the scores are probabilities already.
    """

    name: str
    classes: int | None
    softmax: bool


def find_scores(model: ModelProto, description: str, wanted: str | None = None) -> Scores:
    """Returns the output with the scores of the classes.

    Args:
        model: a model whose shapes were inferred.
        description: the source, for errors.
        wanted: the name of the output. None if the model must have only one output that fits.

    Raises:
        SourceError: no output fits, or several do, or `wanted` does not.
    """
    outputs = list(model.graph.output)
    if wanted is not None and wanted not in [value.name for value in outputs]:
        names = _few([value.name for value in outputs])
        raise SourceError(f"{description} has no output {wanted}; choose one of {names} with --scores")
    fitting = [value for value in outputs if _has_scores(value) and wanted in (None, value.name)]
    if not fitting:
        found = _few([f"{value.name} {_value_text(value)}" for value in outputs]) or "nothing"
        raise SourceError(
            f"{description} gives no scores of classes, float32 (N, K), but {found}; export a classifier, with its "
            "last layer, in float32"
        )
    if len(fitting) > 1:
        names = _few([f"{value.name} {_value_text(value)}" for value in fitting])
        raise SourceError(f"several outputs of {description} may be the scores: {names}; choose one with --scores")
    (value,) = fitting
    last = _last_operation(model, value.name)
    sizes = _sizes(value)
    classes = sizes[1] if sizes else None
    if last == "Sigmoid" or classes == 1:
        raise SourceError(
            f"{description} gives independent scores (its last operation is {last}), and zfserve classifies a photo as "
            "one of K classes; export a network with one score for each class, without the sigmoid if it was trained "
            "with a softmax"
        )
    return Scores(value.name, classes, softmax=last == "Softmax")


def infer_shapes(model: ModelProto, image: ImageInput, size: tuple[int, int] | None) -> ModelProto:
    """Returns a copy of a model with the shapes that ONNX can infer for an image of `size`, (height, width).

    Without a size ONNX does not follow the values of integers, because nothing has checked how many there are.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    value = next(value for value in copy.graph.input if value.name == image.name)
    axes = (2, 3) if image.layout == "NCHW" else (1, 2)
    for axis, pixels in zip(axes, size or (), strict=False):
        value.type.tensor_type.shape.dim[axis].dim_value = pixels
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=size is not None)
    except onnx.shape_inference.InferenceError:  # declared shapes contradict each other, which no runtime minds
        return copy


def forget_impossible_sizes(model: ModelProto) -> None:
    """Makes the sizes below 1 of inputs and outputs dynamic. Some exporters write 0 or -1 for a dynamic axis."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 1:
                dim.ClearField("dim_value")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _has_scores(value: ValueInfoProto) -> bool:
    sizes = _sizes(value)
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:
        return False
    return sizes is None or len(sizes) == 2 or (len(sizes) == 4 and sizes[2:] == [1, 1])


def _last_operation(model: ModelProto, tensor: str) -> str:
    """Returns the operation that computes the values of `tensor`, before changes of type and shape."""
    producers: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
    while (node := producers.get(tensor)) is not None and node.op_type in _PASSED_ON:
        tensor = node.input[0]
    return node.op_type if node is not None else "none"


def _sizes(value: ValueInfoProto) -> list[int | None] | None:
    """Returns the size of each axis, None for a dynamic axis. Returns None where the number of axes is unknown."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]


def _value_text(value: ValueInfoProto) -> str:
    return f"{_type_name(value.type.tensor_type.elem_type)} {_shape_text(_sizes(value))}"


def _shape_text(sizes: Sequence[int | None] | None) -> str:
    return "unknown" if sizes is None else f"({', '.join('?' if size is None else str(size) for size in sizes)})"


def _type_name(kind: int) -> str:
    if kind not in TensorProto.DataType.values():
        return "of an unknown type"
    name = str(TensorProto.DataType.Name(kind)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
