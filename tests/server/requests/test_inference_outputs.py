"""Output tensors are written without a server."""

import numpy as np
import pytest
from fakes.inference_requests import Parameter, floats, output, prefixed, raw_request
from fakes.serving import CLASSES, MANIFEST
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.requests.inference_outputs import RequestedOutput, add_outputs, add_tensor, read_outputs


def test_outputs_are_read_in_the_order_of_the_request() -> None:
    wanted = [output("features"), output("probabilities", classification=Parameter(int64_param=99))]
    assert read_outputs(raw_request(1, outputs=wanted), MANIFEST) == [
        RequestedOutput("features", 0),
        RequestedOutput("probabilities", CLASSES),
    ]
    assert read_outputs(raw_request(1), MANIFEST) == [
        RequestedOutput("probabilities", 0),
        RequestedOutput("features", 0),
    ]


@pytest.mark.parametrize("typed", [False, True])
def test_equal_values_keep_the_models_order(typed: bool) -> None:
    """Triton writes six decimals, the index, and the label of classes."""
    probabilities = np.full(CLASSES, 0.125, np.float32)
    probabilities[[0, 9]] = 0.0, 0.25
    answers = [InferenceResult(probabilities, np.array([-1, 2.5], np.float32), 0.0, 0.0, 1)] * 2
    response = pb.ModelInferResponse()
    add_outputs(
        response, [RequestedOutput("probabilities", 3), RequestedOutput("features", 2)], answers, MANIFEST, typed
    )
    assert [(each.datatype, list(each.shape)) for each in response.outputs] == [("BYTES", [2, 3]), ("BYTES", [2, 2])]
    expected = [
        [b"0.250000:9:class 9", b"0.125000:1:class 1", b"0.125000:2:class 2"] * 2,
        [b"2.500000:1", b"-1.000000:0"] * 2,
    ]
    if typed:
        assert [list(each.contents.bytes_contents) for each in response.outputs] == expected
    else:
        assert list(response.raw_output_contents) == [prefixed(*texts) for texts in expected]


def test_raw_tensors_are_little_endian() -> None:
    response = pb.ModelInferResponse()
    add_tensor(response, "whole", (2, 1), np.array([[1], [-2]], np.int64), typed=False)
    add_tensor(response, "float", (1,), np.array([1.5], np.float32), typed=False)
    add_tensor(response, "text", (2,), [b"a", b""], typed=False)
    assert [(each.datatype, list(each.shape)) for each in response.outputs] == [
        ("INT64", [2, 1]),
        ("FP32", [1]),
        ("BYTES", [2]),
    ]
    assert response.raw_output_contents[0] == b"\1" + bytes(7) + b"\xfe" + b"\xff" * 7
    assert floats(response, 1).tolist() == [1.5]
    assert response.raw_output_contents[2] == b"\1\0\0\0a\0\0\0\0"


def test_typed_tensors() -> None:
    response = pb.ModelInferResponse()
    add_tensor(response, "whole", (2, 1), np.array([[1], [-2]], np.int64), typed=True)
    add_tensor(response, "float", (1,), np.array([1.5], np.float32), typed=True)
    add_tensor(response, "text", (2,), [b"a", b""], typed=True)
    whole, real, text = (each.contents for each in response.outputs)
    assert (list(whole.int64_contents), list(real.fp32_contents)) == ([1, -2], [1.5])
    assert list(text.bytes_contents) == [b"a", b""]
    assert not response.raw_output_contents
