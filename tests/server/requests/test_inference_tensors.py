"""Input tensors, and the names of outputs, are read without a server."""

import numpy as np
import pytest
from fakes.inference_requests import (
    Contents,
    Parameter,
    batch_of,
    output,
    prefixed,
    raw_request,
    tensor,
    typed_request,
)
from fakes.serving import MANIFEST, SIDE
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_runtime.errors import InvalidInput, Unimplemented
from zfserve_server.requests.inference_outputs import read_outputs
from zfserve_server.requests.inference_tensors import check_input, read_rows

MAX_IMAGES = 4
ONE = (1, SIDE, SIDE, 3)
SIZE = SIDE * SIDE * 3


def of_tensor(*tensors: pb.ModelInferRequest.InferInputTensor, raw: tuple[bytes, ...] = ()) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(inputs=tensors, raw_input_contents=raw)


BESIDE_EMPTY = raw_request(263, 5, inputs=[tensor("pixels", "UINT8", 2, *ONE[1:], contents=Contents())])
"""MLServer's client sends empty typed contents beside raw values."""


@pytest.mark.parametrize("request_", [raw_request(263, 5), typed_request(263, 5), BESIDE_EMPTY])
def test_pixels(request_: pb.ModelInferRequest) -> None:
    assert check_input(request_, MANIFEST.input, MAX_IMAGES) == 2
    np.testing.assert_array_equal(np.asarray(read_rows(request_)), batch_of(263, 5))


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("typed", [False, True])
def test_files(shape: tuple[int, ...], typed: bool) -> None:
    files = [b"one", b""]
    request = of_tensor(tensor("image", "BYTES", *shape), raw=(prefixed(*files),))
    if typed:
        request = of_tensor(tensor("image", "BYTES", *shape, contents=Contents(bytes_contents=files)))
    assert check_input(request, MANIFEST.input, MAX_IMAGES) == 2
    assert read_rows(request) == files


def read_all(request: pb.ModelInferRequest) -> None:
    check_input(request, MANIFEST.input, MAX_IMAGES)
    read_rows(request)
    read_outputs(request, MANIFEST)


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        pytest.param(of_tensor(), "inputs", "0 inputs", id="no input"),
        pytest.param(of_tensor(tensor("x", "UINT8", *ONE)), "inputs[x]", "no input 'x'", id="unknown input"),
        pytest.param(
            of_tensor(tensor("pixels", "UINT8", *ONE), tensor("image", "BYTES", 1)), "inputs", "2 inputs", id="both"
        ),
        pytest.param(of_tensor(tensor("pixels", "FP32", *ONE)), "inputs[pixels].datatype", "UINT8", id="datatype"),
        pytest.param(of_tensor(tensor("pixels", "UINT8")), "inputs[pixels].shape", "[N, 8, 8, 3]", id="no shape"),
        pytest.param(of_tensor(tensor("pixels", "UINT8", *ONE[1:])), "inputs[pixels].shape", "N", id="no batch"),
        pytest.param(of_tensor(tensor("pixels", "UINT8", 0, *ONE[1:])), "inputs[pixels].shape", "1 to 4", id="zero"),
        pytest.param(of_tensor(tensor("pixels", "UINT8", -1, *ONE[1:])), "inputs[pixels].shape", "1 to 4", id="minus"),
        pytest.param(of_tensor(tensor("pixels", "UINT8", 5, *ONE[1:])), "inputs[pixels].shape", "1 to 4", id="large"),
        pytest.param(of_tensor(tensor("image", "BYTES", 1, 2)), "inputs[image].shape", "[N] or [N, 1]", id="files"),
        pytest.param(
            of_tensor(tensor("pixels", "UINT8", *ONE), raw=(bytes(SIZE - 1),)), "inputs[pixels]", "191", id="short"
        ),
        pytest.param(of_tensor(tensor("pixels", "UINT8", *ONE)), "inputs[pixels]", "0 were sent", id="no values"),
        pytest.param(
            of_tensor(tensor("pixels", "UINT8", *ONE, contents=Contents(int_contents=[1] * SIZE))),
            "inputs[pixels]",
            "uint_contents",
            id="values of another type",
        ),
        pytest.param(
            of_tensor(tensor("pixels", "UINT8", *ONE, contents=Contents(uint_contents=[256] * SIZE))),
            "inputs[pixels]",
            "255",
            id="large values",
        ),
        pytest.param(
            of_tensor(tensor("pixels", "UINT8", *ONE, contents=Contents(uint_contents=[1])), raw=(bytes(SIZE),)),
            "raw_input_contents",
            "once",
            id="raw and typed",
        ),
        pytest.param(
            of_tensor(tensor("pixels", "UINT8", *ONE), raw=(bytes(SIZE), b"")), "raw_input_contents", "once", id="raws"
        ),
        pytest.param(
            of_tensor(tensor("image", "BYTES", 1), raw=(b"\1\0",)), "inputs[image]", "cut short", id="no length"
        ),
        pytest.param(
            of_tensor(tensor("image", "BYTES", 1), raw=(b"\4\0\0\0abc",)), "inputs[image]", "cut short", id="cut short"
        ),
        pytest.param(
            of_tensor(tensor("image", "BYTES", 1), raw=(prefixed(b"", b""),)), "inputs[image]", "more", id="more files"
        ),
        pytest.param(
            of_tensor(tensor("image", "BYTES", 2), raw=(prefixed(b""),)), "inputs[image]", "1 were", id="fewer files"
        ),
        pytest.param(raw_request(1, outputs=[output("x")]), "outputs[x]", "no output 'x'", id="unknown output"),
        pytest.param(raw_request(1, outputs=[output("features")] * 2), "outputs", "twice", id="output twice"),
        pytest.param(raw_request(1, outputs=[output("features")] * 3), "outputs", "each once", id="many outputs"),
        pytest.param(
            raw_request(1, outputs=[output("features", classification=Parameter(int64_param=-1))]),
            "outputs[features]",
            "1 or more",
            id="classification",
        ),
        pytest.param(
            raw_request(1, outputs=[output("features", classification=Parameter(string_param="3"))]),
            "outputs[features]",
            "as int64_param",
            id="classification as text",
        ),
    ],
)
def test_an_invalid_tensor_is_named(request_: pb.ModelInferRequest, field: str, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_all(request_)
    assert refused.value.field == field
    assert words in refused.value.message


def test_shared_memory_is_refused() -> None:
    region = {"shared_memory_region": Parameter(string_param="region")}
    with pytest.raises(Unimplemented):
        check_input(of_tensor(tensor("pixels", "UINT8", *ONE, parameters=region)), MANIFEST.input, MAX_IMAGES)
    with pytest.raises(Unimplemented):
        read_outputs(raw_request(1, outputs=[output("features", **region)]), MANIFEST)
