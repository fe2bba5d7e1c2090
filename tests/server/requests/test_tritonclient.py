"""NVIDIA's unchanged tritonclient calls a server: sync, asyncio and streaming."""

import asyncio
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from fakes import triton_calls
from fakes.serving import CLASSES, SIDE, FakeEngine, Running, pixels_of
from PIL import Image


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with triton_calls.client_process() as process:
        yield process


@pytest.fixture
def call(process: ProcessPoolExecutor, server: Running) -> Callable[..., Any]:
    """Runs a function of `triton_calls` in the client's process, with the server's address."""
    return partial(_run, process, server)


@pytest.fixture
def call_paired(process: ProcessPoolExecutor, paired_server: Running) -> Callable[..., Any]:
    """Does the same with a server that has a worker."""
    return partial(_run, process, paired_server)


async def _run(process: ProcessPoolExecutor, server: Running, function: Callable[..., Any], *arguments: object) -> Any:
    address = f"127.0.0.1:{server.ports.grpc}"
    return await asyncio.get_running_loop().run_in_executor(process, function, address, *arguments)


def batch_of(*identities: int) -> triton_calls.Images:
    return np.stack([pixels_of(identity) for identity in identities])


async def test_server_and_model_are_described(call: Callable[..., Any]) -> None:
    await call(triton_calls.infer, batch_of(1, 2))
    told = await call(triton_calls.describe)
    assert [told[what] for what in ("live", "ready", "model ready", "version ready")] == [True, True, True, False]
    assert told["server"]["name"] == "zfserve"
    assert {tensor["name"]: tensor["shape"] for tensor in told["metadata"]["inputs"]} == {
        "pixels": ["-1", "8", "8", "3"],
        "image": ["-1", "1"],
    }
    assert told["config"]["max_batch_size"] == 4
    assert told["config"]["input"][0]["dims"] == ["8", "8", "3"]
    assert (told["statistics"][0]["inference_count"], told["statistics"][0]["execution_count"]) == ("2", "1")
    assert told["index"] == [{"name": "fake", "version": "7", "state": "READY"}]


async def test_raw_pixels(call: Callable[..., Any], engine: FakeEngine) -> None:
    answer = await call(triton_calls.infer, batch_of(263, 5))
    assert (answer["id"], answer["version"]) == ("a-1", "7")
    assert answer["probabilities"].shape == (2, CLASSES)
    assert answer["probabilities"].argmax(axis=1).tolist() == [7, 5]
    assert answer["features"].tolist() == [[263, 526], [5, 10]]
    assert engine.batches == [[263, 5]]


async def test_image_files_and_classification(call: Callable[..., Any]) -> None:
    opened = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (0, 3, 0)).save(opened, "PNG")
    best = await call(triton_calls.classify_files, [opened.getvalue()] * 2, 2)
    assert best == [["0.550000:3:class 3", "0.050000:0:class 0"]] * 2


async def test_callbacks(call: Callable[..., Any]) -> None:
    assert (await call(triton_calls.infer_with_callback, batch_of(4))).tolist() == [[4, 8]]


async def test_asyncio(call: Callable[..., Any]) -> None:
    answers = await call(triton_calls.infer_asyncio, [batch_of(identity) for identity in range(20)])
    assert [answer[0, 0] for answer in answers] == list(range(20))


@pytest.mark.parametrize("function", [triton_calls.stream, triton_calls.stream_asyncio])
async def test_a_stream_is_answered_in_order_and_outlives_an_error(
    call: Callable[..., Any], function: Callable[..., Any]
) -> None:
    images = [batch_of(identity) for identity in range(50)]
    images[20] = np.zeros((1, 9, 9, 3), np.uint8)
    answers = await call(function, images)
    # The client gives no id with an error.
    assert [number for number, _ in answers] == [str(number) if number != 20 else "" for number in range(50)]
    assert "[1, 9, 9, 3]" in answers[20][1]
    assert all(answers[number][1].tolist() == [[number, 2 * number]] for number in range(50) if number != 20)


async def test_the_companion_that_projects(call_paired: Callable[..., Any]) -> None:
    options = {"layer": "conv1", "maps": "5,0", "unit": "whole"}
    told = await call_paired(triton_calls.project, batch_of(263), options)
    assert (told["maps"].tolist(), told["activations"].tolist()) == ([5, 0], [8, 8])
    assert told["boxes"].tolist() == [[2, 0, 4, 8]] * 2
    assert told["pictures"].tolist() == [b"png", b"png"]
    assert told["layer"].tolist() == [b"conv1"]


async def test_the_companion_that_explains(call_paired: Callable[..., Any]) -> None:
    opened = io.BytesIO()
    Image.new("RGB", (2 * SIDE, SIDE), (0, 3, 0)).save(opened, "PNG")
    told = await call_paired(triton_calls.explain, opened.getvalue(), {"class_name": "class 3"})
    assert told["heatmap"].shape == (4, 4)
    assert (told["label"][0].decode(), told["class_index"][0], told["probability"][0]) == ("class 3", 3, 0.625)
    assert told["served_probability"][0] == pytest.approx(0.55)
    assert (told["overlay"][0], told["box"].tolist()) == (b"png", [0, 0, 16, 8])


async def test_companions_are_described(call_paired: Callable[..., Any]) -> None:
    told = await call_paired(triton_calls.describe_companions)
    assert told["ready"] == [True, True]
    assert [entry["name"] for entry in told["index"]] == ["fake", "fake.project", "fake.explain"]
    assert [config["name"] for config in told["configs"]] == ["fake.project", "fake.explain"]
    pictures = {output["name"]: output for output in told["metadata"][0]["outputs"]}["pictures"]
    assert (pictures["datatype"], pictures["shape"]) == ("BYTES", ["-1"])


async def test_refusals(call: Callable[..., Any]) -> None:
    refused = await call(triton_calls.refusals)
    statuses = {what: status for what, (status, _) in refused.items()}
    assert statuses == {
        "unknown model": "StatusCode.NOT_FOUND",
        "wrong shape": "StatusCode.INVALID_ARGUMENT",
        "sequence": "StatusCode.INVALID_ARGUMENT",
        "load": "StatusCode.UNIMPLEMENTED",
        "shared memory": "StatusCode.UNIMPLEMENTED",
    }
    assert "send [N, 8, 8, 3] with N from 1 to 4" in refused["wrong shape"][1]


def test_one_process_can_hold_both_clients() -> None:
    """zfserve's client uses another protocol, and does not load the messages that tritonclient registers."""
    program = "import tritonclient.grpc, zfserve, zfserve_cli.main"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
