"""Reads what goes in and out of an ONNX model: its image input, and its outputs. `importer` calls it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from zfserve_model.graph.errors import GraphError
from zfserve_model.graph.graph import Node

PIXELS, IMAGES, PROBABILITIES, FEATURES = "pixels", "images", "probabilities", "features"
"""The names of tensors in a wrapped model."""

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class ImageInput:
    """Describes the image input of a model.

    Attributes:
        name: the name of the tensor.
        batch: the batch size that the file fixes. 0 stands for any.
        height, width: in pixels.
        wrapped: True for uint8 (N, H, W, 3), before the normalisation. False for float (N, 3, H, W), after it.
    """

    name: str
    batch: int
    height: int
    width: int
    wrapped: bool


def image_input(graph: onnx.GraphProto, constants: Collection[str]) -> ImageInput:
    """Returns the only input of the model, which must be an image of a fixed size.

    Raises:
        GraphError: there is no such input, or another input besides it.
    """
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs[:5]) or "none"
        raise GraphError(
            f"a network needs exactly one input, the image, and this has {names}; export it with one input"
        )
    value = inputs[0]
    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in kind.shape.dim]
    wrapped = kind.elem_type == onnx.TensorProto.UINT8
    if len(dims) != 4 or not (wrapped or kind.elem_type in _FLOATS) or dims[3 if wrapped else 1] not in (0, 3):
        shape = ", ".join(str(dim or "?") for dim in dims)
        form = "uint8 (N, H, W, 3)" if wrapped else "float (N, 3, H, W)"
        raise GraphError(f"the input {value.name!r} has the shape ({shape}) and is no image; it must be {form}")
    height, width = (dims[1], dims[2]) if wrapped else (dims[2], dims[3])
    if height < 1 or width < 1:
        raise GraphError(f"the input {value.name!r} has no fixed height and width; give them with --size")
    return ImageInput(value.name, max(dims[0], 0), height, width, wrapped)


def normalised_images(nodes: Sequence[Node], pixels: str) -> str:
    """Returns the normalised images (N, 3, H, W): the output of the first Transpose on the way from the pixels.

    Raises:
        GraphError: there is no such Transpose.
    """
    reached = {pixels}
    for node in nodes:
        if reached.isdisjoint(node.inputs):
            continue
        if node.operation == "Transpose" and node.attributes.get("perm") == [0, 3, 1, 2]:
            return node.outputs[0]
        if node.operation not in ("Cast", "Mul", "Sub", "Add", "Div", "Identity"):
            break
        reached.update(node.outputs)
    raise GraphError(
        f"nothing turns {pixels!r} into normalised images (N, 3, H, W); write the bundle again with zfserve export"
    )


def output_names(graph: onnx.GraphProto) -> list[str]:
    """Returns the name of the probabilities, and that of the features if the model has any.

    Raises:
        GraphError: the model has no output.
    """
    names = [value.name for value in graph.output]
    if not names:
        raise GraphError("the network has no output; export it with one score for each class")
    scores = PROBABILITIES if PROBABILITIES in names else names[0]
    return [scores, *(name for name in names if name == FEATURES and name != scores)]
