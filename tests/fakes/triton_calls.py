"""Calls a server with NVIDIA's unchanged `tritonclient`, as users of Triton do. Each function returns the answers.

The functions run in a process of their own (`client_process`), because the client's messages have the same names as the
server's, and a process can hold only one message of each name.
"""

import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
MODEL = "fake"


@contextmanager
def client_process() -> Iterator[ProcessPoolExecutor]:
    """Yields an executor for the functions of this module.

    Its process is spawned, because a forked process would inherit the server's messages.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), _import_client) as process:
        yield process


def _import_client() -> None:
    import tritonclient.grpc  # noqa: F401


def describe(address: str) -> dict[str, Any]:
    """Returns the answers of all calls that a client makes before it sends images."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(address) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model ready": client.is_model_ready(MODEL),
            "version ready": client.is_model_ready(MODEL, "6"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(MODEL, as_json=True),
            "config": client.get_model_config(MODEL, as_json=True)["config"],
            "statistics": client.get_inference_statistics(MODEL, as_json=True)["model_stats"],
            "index": client.get_model_repository_index(as_json=True)["models"],
        }


def infer(address: str, pixels: Images) -> dict[str, Any]:
    """Returns all outputs for raw pixels."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(address) as client:
        result = client.infer(
            MODEL, [_pixels(pixels)], request_id="a-1", client_timeout=30, priority=2, timeout=30_000_000
        )
        answer = result.get_response()
        return {
            "id": answer.id,
            "version": answer.model_version,
            "probabilities": result.as_numpy("probabilities"),
            "features": result.as_numpy("features"),
        }


def classify_files(address: str, files: Sequence[bytes], count: int) -> list[list[str]]:
    """Returns the best classes of image files, by the classification extension."""
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

    with InferenceServerClient(address) as client:
        images = InferInput("image", [len(files), 1], "BYTES")
        images.set_data_from_numpy(np.array(files, dtype=object).reshape(-1, 1))
        output = InferRequestedOutput("probabilities", class_count=count)
        best = client.infer(MODEL, [images], outputs=[output]).as_numpy("probabilities")
        return [[text.decode() for text in row] for row in best]


def infer_with_callback(address: str, pixels: Images) -> Any:
    """Returns the features that `async_infer` passes to its callback."""
    from tritonclient.grpc import InferenceServerClient

    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(address) as client:
        client.async_infer(MODEL, [_pixels(pixels)], lambda result, error: answers.put((result, error)))
        result, error = answers.get(timeout=30)
    return error or result.as_numpy("features")


def stream(address: str, images: Sequence[Images]) -> list[tuple[str, Any]]:
    """Returns the id of each answer with its features or its error message, in the order of the answers."""
    from tritonclient.grpc import InferenceServerClient

    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number, pixels in enumerate(images):
            client.async_stream_infer(
                MODEL, [_pixels(pixels)], request_id=str(number), enable_empty_final_response=True
            )
        received = [_streamed(*answers.get(timeout=30)) for _ in images]
        client.stop_stream()
    return received


async def _stream_asyncio(address: str, images: Sequence[Images]) -> list[tuple[str, Any]]:
    from tritonclient.grpc.aio import InferenceServerClient

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, pixels in enumerate(images):
            yield {"model_name": MODEL, "inputs": [_pixels(pixels)], "request_id": str(number)}

    async with InferenceServerClient(address) as client:
        return [_streamed(result, error) async for result, error in client.stream_infer(requests())]


def stream_asyncio(address: str, images: Sequence[Images]) -> list[tuple[str, Any]]:
    """Does the same as `stream`, with `tritonclient.grpc.aio`."""
    import asyncio

    return asyncio.run(_stream_asyncio(address, images))


async def _infer_asyncio(address: str, images: Sequence[Images]) -> list[Any]:
    import asyncio

    from tritonclient.grpc.aio import InferenceServerClient

    async with InferenceServerClient(address) as client:
        results = await asyncio.gather(*(client.infer(MODEL, [_pixels(pixels)]) for pixels in images))
        return [result.as_numpy("features") for result in results]


def infer_asyncio(address: str, images: Sequence[Images]) -> list[Any]:
    """Returns the features of requests that `tritonclient.grpc.aio` sends at the same time."""
    import asyncio

    return asyncio.run(_infer_asyncio(address, images))


def project(address: str, pixels: Images, options: dict[str, str | int]) -> dict[str, Any]:
    """Returns all outputs of the companion `fake.project`."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(address) as client:
        result = client.infer(f"{MODEL}.project", [_pixels(pixels)], parameters=options, client_timeout=30)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def explain(address: str, file: bytes, options: dict[str, str | int]) -> dict[str, Any]:
    """Returns all outputs of the companion `fake.explain` for an image file."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    with InferenceServerClient(address) as client:
        image = InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[file]], dtype=object))
        result = client.infer(f"{MODEL}.explain", [image], parameters=options, client_timeout=30)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def describe_companions(address: str) -> dict[str, Any]:
    """Returns what a client can learn of the companions before it sends images."""
    from tritonclient.grpc import InferenceServerClient

    names = [f"{MODEL}.project", f"{MODEL}.explain"]
    with InferenceServerClient(address) as client:
        return {
            "ready": [client.is_model_ready(name) for name in names],
            "metadata": [client.get_model_metadata(name, as_json=True) for name in names],
            "configs": [client.get_model_config(name, as_json=True)["config"] for name in names],
            "index": client.get_model_repository_index(as_json=True)["models"],
        }


def refusals(address: str) -> dict[str, tuple[str, str]]:
    """Returns the status and the message of calls that fail."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    pixels = _pixels(np.zeros((1, 8, 8, 3), np.uint8))
    refused = {}
    with InferenceServerClient(address) as client:
        calls: dict[str, Callable[[], object]] = {
            "unknown model": lambda: client.infer("nobody", [pixels]),
            "wrong shape": lambda: client.infer(MODEL, [_pixels(np.zeros((1, 9, 9, 3), np.uint8))]),
            "sequence": lambda: client.infer(MODEL, [pixels], sequence_id=1, sequence_start=True),
            "load": lambda: client.load_model(MODEL),
            "shared memory": lambda: client.register_system_shared_memory("region", "/key", 64),
        }
        for what, call in calls.items():
            try:
                call()
            except InferenceServerException as error:
                refused[what] = error.status(), error.message()
    return refused


def _pixels(pixels: Images) -> Any:
    from tritonclient.grpc import InferInput

    tensor = InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def _streamed(result: Any, error: Any) -> tuple[str, Any]:
    if error is not None:
        return "", error.message()
    answer = result.get_response()
    assert answer.parameters["triton_final_response"].bool_param
    return answer.id, result.as_numpy("features")
