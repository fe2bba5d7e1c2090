"""Makes requests of the Open Inference Protocol for the fake network, and reads their answers."""

import io
import struct
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from fakes.serving import SIDE, pixels_of
from PIL import Image
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_runtime.errors import ServiceError
from zfserve_runtime.grpc.status import from_call_error

Parameter = pb.InferParameter
Contents = pb.InferTensorContents


def text_parameter(value: str) -> Parameter:
    return Parameter(string_param=value)


def number_parameter(value: int) -> Parameter:
    return Parameter(int64_param=value)


def batch_of(*identities: int) -> npt.NDArray[np.uint8]:
    return np.stack([pixels_of(identity) for identity in identities])


def tensor(name: str, datatype: str, *shape: int, **fields: Any) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, **fields)


def output(name: str, **parameters: Parameter) -> pb.ModelInferRequest.InferRequestedOutputTensor:
    return pb.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters)


def raw_request(*identities: int, **fields: Any) -> pb.ModelInferRequest:
    pixels = batch_of(*identities)
    return pb.ModelInferRequest(
        **{
            "model_name": "fake",
            "inputs": [tensor("pixels", "UINT8", *pixels.shape)],
            "raw_input_contents": [pixels.tobytes()],
        }
        | fields
    )


def typed_request(*identities: int, **fields: Any) -> pb.ModelInferRequest:
    pixels = batch_of(*identities)
    contents = Contents(uint_contents=pixels.ravel().tolist())
    return pb.ModelInferRequest(inputs=[tensor("pixels", "UINT8", *pixels.shape, contents=contents)], **fields)


def png(green: int) -> bytes:
    """Returns a PNG file that FakeEngine classifies as `green`."""
    opened = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (0, green, 0)).save(opened, "PNG")
    return opened.getvalue()


def prefixed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def of_files(*files: bytes) -> pb.ModelInferRequest:
    inputs = [tensor("image", "BYTES", len(files))]
    return pb.ModelInferRequest(inputs=inputs, raw_input_contents=[prefixed(*files)])


def floats(answer: pb.ModelInferResponse, index: int) -> npt.NDArray[np.float32]:
    """Returns one output of a raw answer."""
    return np.frombuffer(answer.raw_output_contents[index], "<f4").reshape(tuple(answer.outputs[index].shape))


async def error_of(call: "grpc.aio.UnaryUnaryCall[Any, Any]") -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    error = from_call_error(failed.value)
    assert error is not None, failed.value
    return error
