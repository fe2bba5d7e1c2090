"""NVIDIA's unchanged tritonclient calls a server: sync, asyncio and streaming."""

import asyncio
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
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

    async def run(function: Callable[..., Any], *arguments: object) -> Any:
        address = f"127.0.0.1:{server.ports.grpc}"
        return await asyncio.get_running_loop().run_in_executor(process, function, address, *arguments)

    return run


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
