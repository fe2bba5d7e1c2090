"""Reads the input tensors of the Open Inference Protocol. Called by `inference_service`.

It checks the whole request before any image goes to the engine.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_runtime.bundle import GRAPH_INPUT, InputSpec
from zfserve_runtime.errors import InvalidInput, Unimplemented

FILE_INPUT = "image"
"""The name of the input that takes image files. The other input is the graph's own, `bundle.GRAPH_INPUT`."""

Rows = npt.NDArray[np.uint8] | list[bytes]
"""The images of a request: pixels, uint8 (N, H, W, 3), or N image files."""

Tensor = pb.ModelInferRequest.InferInputTensor

_SLICE = 16_384
"""Values that are copied at a time."""

SHARED_MEMORY = "shared_memory_region"
"""The parameter of a tensor that lies in shared memory."""


def is_typed(request: pb.ModelInferRequest) -> bool:
    """Returns True if the request has typed contents, which take milliseconds to read; False for raw contents."""
    return not request.raw_input_contents


def check_input(request: pb.ModelInferRequest, spec: InputSpec, max_images: int) -> int:
    """Returns the number of images that the request brings. Checks the name, type and shape of its one input.

    It does not read the values.

    Args:
        max_images: the largest number of images in one request.

    Raises:
        InvalidInput: the input is not as the model's metadata says. The message says what to send.
        Unimplemented: the input lies in shared memory.
    """
    if len(request.inputs) != 1:
        raise InvalidInput(
            f"the request has {len(request.inputs)} inputs; send one, {GRAPH_INPUT!r} or {FILE_INPUT!r}", field="inputs"
        )
    tensor = request.inputs[0]
    if SHARED_MEMORY in tensor.parameters:
        raise Unimplemented("shared memory is not supported; send the tensor's values in the request")
    if tensor.name == GRAPH_INPUT:
        _check_shape(tensor, "UINT8", ((spec.height, spec.width, 3),), max_images)
    elif tensor.name == FILE_INPUT:
        _check_shape(tensor, "BYTES", ((), (1,)), max_images)
    else:
        raise InvalidInput(
            f"there is no input {tensor.name!r}; send pixels as {GRAPH_INPUT!r} or image files as {FILE_INPUT!r}",
            field=_field(tensor),
        )
    return tensor.shape[0]


def read_rows(request: pb.ModelInferRequest) -> Rows:
    """Returns the images of a request that `check_input` accepted.

    Raises:
        InvalidInput: the number of values differs from the shape, or a value is not allowed.
    """
    tensor = request.inputs[0]
    contents = _contents(request, tensor)
    if tensor.name == GRAPH_INPUT:
        return _read_pixels(contents, list(tensor.shape), _field(tensor))
    return _read_files(contents, tensor.shape[0], _field(tensor))


def _field(tensor: Tensor) -> str:
    return f"inputs[{tensor.name}]"


def _check_shape(tensor: Tensor, datatype: str, image_shapes: Sequence[tuple[int, ...]], max_images: int) -> None:
    """Raises InvalidInput if a tensor has another data type or shape.

    Args:
        image_shapes: the shapes that one image may have.
        max_images: the largest number of images.
    """
    field = _field(tensor)
    if tensor.datatype != datatype:
        raise InvalidInput(
            f"the input {tensor.name!r} is {datatype}, not {tensor.datatype!r}", field=f"{field}.datatype"
        )
    shape = tuple(tensor.shape)
    if not shape or shape[1:] not in image_shapes or not 1 <= shape[0] <= max_images:
        allowed = " or ".join(str(["N", *dims]).replace("'", "") for dims in image_shapes)
        counts = f"N from 1 to {max_images}" if max_images > 1 else "N = 1, because this model runs one image at a time"
        raise InvalidInput(
            f"the input {tensor.name!r} has the shape {list(shape)}; send {allowed} with {counts}",
            field=f"{field}.shape",
        )


def _contents(request: pb.ModelInferRequest, tensor: Tensor) -> bytes | pb.InferTensorContents:
    """Returns the contents of the one input: bytes if they are raw, else the typed contents."""
    raw = len(request.raw_input_contents)
    if not raw:
        return tensor.contents
    if raw > 1 or tensor.contents.ByteSize():  # MLServer's client sends empty contents beside raw ones
        raise InvalidInput(
            "send the input's values once: in one entry of raw_input_contents, or typed in its contents",
            field="raw_input_contents",
        )
    return request.raw_input_contents[0]


def _read_pixels(contents: bytes | pb.InferTensorContents, shape: list[int], field: str) -> npt.NDArray[np.uint8]:
    """Returns uint8 (N, H, W, 3). Raw values are not copied."""
    values = contents if isinstance(contents, bytes) else contents.uint_contents
    if len(values) != math.prod(shape):
        raise InvalidInput(
            f"the shape {shape} takes {math.prod(shape):,} values and {len(values):,} were sent; send each as one byte "
            "of raw_input_contents, or one of uint_contents",
            field=field,
        )
    if not isinstance(values, bytes):
        try:
            # A slice is a list, which bytes() reads five times as fast. It copies in pieces, because each piece holds
            # the GIL and makes the event loop wait.
            values = b"".join(bytes(values[at : at + _SLICE]) for at in range(0, len(values), _SLICE))
        except ValueError:
            raise InvalidInput("values of UINT8 are from 0 to 255", field=field) from None
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_files(contents: bytes | pb.InferTensorContents, count: int, field: str) -> list[bytes]:
    files = _split(contents, count, field) if isinstance(contents, bytes) else contents.bytes_contents
    if len(files) != count:
        raise InvalidInput(
            f"the shape says {count} files and {len(files)} were sent; send each as one entry of bytes_contents, or in "
            "raw_input_contents after its length",
            field=field,
        )
    return list(files)


def _split(raw: bytes, count: int, field: str) -> list[bytes]:
    """Returns the elements of a raw BYTES tensor. The length of each precedes it: 4 bytes, little-endian."""
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        if len(elements) == count:
            raise InvalidInput(f"the shape says {count} files and more were sent", field=field)
        begin = at + 4
        at = begin + struct.unpack_from("<I", raw, at)[0] if begin <= len(raw) else begin
        if at > len(raw):
            raise InvalidInput(
                f"element {len(elements)} of the raw BYTES tensor is cut short; send the length of each before it, as "
                "4 bytes, little-endian",
                field=field,
            )
        elements.append(raw[begin:at])
    return elements
