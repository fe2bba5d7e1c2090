"""Reads which outputs a request of the Open Inference Protocol asks for, and writes their tensors.

`inference_service` calls it for models, and `inference_companions` for companion models.
"""

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_runtime.bundle import ClassEntry, Manifest
from zfserve_runtime.errors import InvalidInput, Unimplemented

from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.requests.inference_tensors import SHARED_MEMORY

CLASSIFICATION = "classification"
"""The parameter of an output that asks for its largest values as text."""

TensorValues = npt.NDArray[np.float32] | npt.NDArray[np.int64] | list[bytes]
"""The values of an output. Its datatype follows from their type."""


@dataclass(frozen=True)
class RequestedOutput:
    """Names one output that a request asks for.

    Attributes:
        top_k: the number of largest values to answer as text "value:index:label" (Triton's classification extension);
            0 to answer the tensor itself.
    """

    name: str
    top_k: int


def check_outputs(request: pb.ModelInferRequest, names: Collection[str]) -> None:
    """Checks the outputs that a request asks for.

    Args:
        names: the outputs that exist.

    Raises:
        InvalidInput: an output does not exist or is asked for twice.
        Unimplemented: the request asks for an output in shared memory.
    """
    if len(request.outputs) > len(names):
        raise InvalidInput(f"the outputs are {', '.join(names)}; ask for each once", field="outputs")
    asked: set[str] = set()
    for output in request.outputs:
        field = f"outputs[{output.name}]"
        if output.name not in names:
            raise InvalidInput(f"there is no output {output.name!r}, only {', '.join(names)}", field=field)
        if SHARED_MEMORY in output.parameters:
            raise Unimplemented("shared memory is not supported; read the tensor's values from the answer")
        if output.name in asked:
            raise InvalidInput(f"the output {output.name!r} is asked for twice; ask once", field="outputs")
        asked.add(output.name)


def read_outputs(request: pb.ModelInferRequest, manifest: Manifest) -> list[RequestedOutput]:
    """Returns the outputs that a request asks for, in its order; all outputs if it names none.

    Raises:
        InvalidInput, Unimplemented: see `check_outputs`; or the parameters of an output are wrong.
    """
    widths = manifest.output_widths
    check_outputs(request, widths)
    outputs = [_read_output(output, widths[output.name]) for output in request.outputs]
    return outputs or [RequestedOutput(name, 0) for name in widths]


def _read_output(output: pb.ModelInferRequest.InferRequestedOutputTensor, width: int) -> RequestedOutput:
    if CLASSIFICATION not in output.parameters:
        return RequestedOutput(output.name, 0)
    parameter = output.parameters[CLASSIFICATION]
    top_k = parameter.int64_param
    if not parameter.HasField("int64_param") or top_k < 1:
        raise InvalidInput(
            "the parameter classification is the number of classes; send 1 or more as int64_param",
            field=f"outputs[{output.name}]",
        )
    return RequestedOutput(output.name, min(top_k, width))


def add_outputs(
    response: pb.ModelInferResponse,
    wanted: Sequence[RequestedOutput],
    answers: Sequence[InferenceResult],
    manifest: Manifest,
    typed: bool,
) -> None:
    """Adds the outputs of all rows to the response, in the order of the rows.

    Args:
        typed: True for typed contents, False for raw contents.
    """
    for output in wanted:
        of_classes = output.name == "probabilities"
        rows = [answer.probabilities if of_classes else answer.features for answer in answers]
        if output.top_k:
            classes = manifest.classes if of_classes else None
            texts = [text for row in rows for text in _top_values(row, output.top_k, classes)]
            add_tensor(response, output.name, (len(rows), output.top_k), texts, typed)
        else:
            add_tensor(response, output.name, (len(rows), len(rows[0])), np.stack(rows), typed)


def add_tensor(
    response: pb.ModelInferResponse, name: str, shape: Sequence[int], values: TensorValues, typed: bool
) -> None:
    """Adds one output to the response.

    Args:
        values: float32 (FP32), int64 (INT64) or a list of bytes (BYTES). They fill `shape` row by row.
        typed: True for typed contents, False for raw contents.
    """
    tensor = response.outputs.add(name=name, shape=shape)
    if isinstance(values, list):
        tensor.datatype = "BYTES"
        if typed:
            tensor.contents.bytes_contents.extend(values)
        else:
            response.raw_output_contents.append(b"".join(struct.pack("<I", len(value)) + value for value in values))
        return
    tensor.datatype, order = ("FP32", "<f4") if values.dtype == np.float32 else ("INT64", "<i8")
    if not typed:
        response.raw_output_contents.append(values.astype(order, copy=False).tobytes())
        return
    flat: list[Any] = values.ravel().tolist()
    (tensor.contents.fp32_contents if order == "<f4" else tensor.contents.int64_contents).extend(flat)


def _top_values(row: npt.NDArray[np.float32], count: int, classes: Sequence[ClassEntry] | None) -> Iterator[bytes]:
    """Yields the largest values as Triton writes them, the largest first. Equal values keep their order."""
    order = np.argsort(-row, kind="stable")[:count]
    for index, value in zip(order.tolist(), row[order].tolist(), strict=True):
        label = "" if classes is None else f":{classes[index].label}"
        yield f"{value:f}:{index}{label}".encode()
