"""Tests what a user reads and waits for where ONNX Runtime fails."""

import os
import signal
import threading
import time

import numpy as np
import onnx
import pytest
from model.onnx_models import make_model, node
from onnx import TensorProto, helper
from zfserve_export import onnx_session
from zfserve_export.onnx_session import open_session, reason, run_session
from zfserve_model.graph.errors import GraphError

IMAGES = np.zeros((1, 3, 8, 8), np.float32)


def endless() -> onnx.ModelProto:
    """Returns a loop of 10**15 rounds."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Relu", ["a"], ["b"]), node("Identity", ["go"], ["on"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("a", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("b", TensorProto.FLOAT, None)],
    )
    weights = {"n": np.array(10**15), "t": np.array(True)}
    return make_model([node("Loop", ["n", "t", "x"], body=body)], weights)


def test_a_run_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_session, "LONGEST_RUN_S", 0.2)
    with pytest.raises(GraphError, match="has not finished one batch after 0 s; export a network without loops"):
        run_session(open_session(endless(), ["y"]), ["y"], {"x": IMAGES})


def test_an_interrupt_ends_a_run_that_does_not_end() -> None:
    session = open_session(endless(), ["y"])
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_session(session, ["y"], {"x": IMAGES})
    finally:
        timer.join()
        signal.signal(signal.SIGINT, previous)
    assert time.monotonic() - begun < 60  # the loop itself takes years


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Expand node. Name:'e' Status "
            "Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* "
            "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory",
            "Expand 'e': Failed to allocate memory",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: "
            "/onnxruntime_src/onnxruntime/core/providers/cpu/nn/lrn.h:23 onnxruntime::LRN<T>::LRN(const "
            "onnxruntime::OpKernelInfo&) [with T = float] size_ % 2 == 1 was false.",
            "Exception during initialization: size_ % 2 == 1 was false",
        ),
        (
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Conv(11)",
            "Could not find an implementation for Conv(11)",
        ),
        (f"no operation '{'n' * 1_000_000}'", f"no operation '{'n' * 59}…{'n' * 19}'"),
        ("", "ValueError"),
    ],
)
def test_a_reason_names_no_place_in_onnx_runtime(message: str, expected: str) -> None:
    assert reason(ValueError(message)) == expected


def test_a_network_that_cannot_be_loaded_says_what_to_do() -> None:
    model = make_model([node("Foo", ["x"])])
    with pytest.raises(GraphError, match=r"cannot load the network: .*; export it again, in float32, so that ONNX"):
        open_session(model, ["y"])
