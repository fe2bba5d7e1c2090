"""Wraps the parts of CUDA that an engine needs: a stream, GPU memory, page-locked memory and CUDA graphs.

The engines on TensorRT, and those on ONNX Runtime with a GPU, use it. It translates CUDA's errors. Work runs on CUDA's
device 0, which CUDA_VISIBLE_DEVICES chooses. Importing it needs cuda-bindings. Both TensorRT extras install that.
"""

import ctypes
import functools
import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime as cudart

from zfserve_engines.cuda.errors import engine_error

log = logging.getLogger(__name__)


def check(answer: tuple[Any, ...]) -> Any:
    """Checks the status that a call of cuda-bindings returned, and returns the value that came with it.

    Raises:
        EngineLost: the status is a sticky error (see `errors`).
        EngineFailed: the status is any other error.
    """
    status, *values = answer
    if status != cudart.cudaError_t.cudaSuccess:
        log.error("CUDA failed: %s", status.name, extra={"cuda_error": int(status)})
        raise engine_error(int(status))
    return values[0] if values else None


def start_cuda() -> None:
    """Creates the CUDA context of this process. Raises EngineFailed where it cannot be created."""
    check(cudart.cudaSetDevice(0))


def free_memory_bytes() -> int:
    """Returns the free memory of the GPU in bytes."""
    answer = cudart.cudaMemGetInfo()
    check(answer)
    return int(answer[1])


class Stream:
    """Holds a CUDA stream, which runs GPU work in order, and the memory of that work. `close` frees both."""

    def __init__(self) -> None:
        self._owned = ExitStack()
        # The default stream cannot be captured, and it waits for the work of all other streams.
        self._stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._owned.callback(cudart.cudaStreamDestroy, self._stream)
        self._done = check(
            cudart.cudaEventCreateWithFlags(cudart.cudaEventBlockingSync | cudart.cudaEventDisableTiming)
        )
        self._owned.callback(cudart.cudaEventDestroy, self._done)

    @property
    def handle(self) -> int:
        """The address of the stream, which TensorRT's calls take."""
        return int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        """Allocates memory on the GPU and returns its address, which is aligned to 256 bytes."""
        address = int(check(cudart.cudaMalloc(size_bytes)))
        self._owned.callback(cudart.cudaFree, address)
        return address

    def allocate_pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Returns a new array in page-locked host memory. The GPU can copy it while the CPU does other work.

        The array must not be used after `close`.
        """
        element = np.dtype(dtype)
        size_bytes = math.prod(shape) * element.itemsize
        address = int(check(cudart.cudaHostAlloc(size_bytes, cudart.cudaHostAllocDefault)))
        self._owned.callback(cudart.cudaFreeHost, address)
        return np.ndarray(shape, element, buffer=memoryview((ctypes.c_byte * size_bytes).from_address(address)))

    def on_close(self, callback: Callable[[], object]) -> None:
        """Registers a function that `close` calls.

        `close` frees in reverse order. It frees graphs that are captured after this call, then calls `callback`, then
        frees memory that was allocated before this call.
        """
        self._owned.callback(callback)

    def copy_in(self, host: npt.NDArray[Any], address: int) -> None:
        """Enqueues a copy of a contiguous page-locked array to the GPU."""
        to_device = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(cudart.cudaMemcpyAsync(address, host.ctypes.data, host.nbytes, to_device, self._stream))

    def copy_out(self, address: int, host: npt.NDArray[Any]) -> None:
        """Enqueues a copy from the GPU into a contiguous page-locked array."""
        to_host = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(cudart.cudaMemcpyAsync(host.ctypes.data, address, host.nbytes, to_host, self._stream))

    def wait(self) -> None:
        """Sleeps until all enqueued work is done. By default CUDA would spin and use a core that decodes photos."""
        check(cudart.cudaEventRecord(self._done, self._stream))
        check(cudart.cudaEventSynchronize(self._done))

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Captures the work that `enqueue` puts on this stream as a CUDA graph, without running it.

        Returns:
            A function that launches the whole graph at once.

        Raises:
            EngineFailed: a part of the work cannot be captured. The stream can still be used.
        """
        # The capture is limited to this thread, because other engines may allocate at the same time.
        check(
            cudart.cudaStreamBeginCapture(self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        )
        try:
            enqueue()
        except BaseException:
            _, graph = cudart.cudaStreamEndCapture(self._stream)
            if graph is not None:
                cudart.cudaGraphDestroy(graph)
            cudart.cudaGetLastError()  # otherwise the next call would return this error
            raise
        graph = check(cudart.cudaStreamEndCapture(self._stream))
        try:
            executable = check(cudart.cudaGraphInstantiate(graph, 0))
        finally:
            cudart.cudaGraphDestroy(graph)
        self._owned.callback(cudart.cudaGraphExecDestroy, executable)
        return functools.partial(self._launch, executable)

    def close(self) -> None:
        """Waits for the work and frees everything. Never raises. After a sticky error, CUDA only returns it again."""
        cudart.cudaStreamSynchronize(self._stream)
        self._owned.close()

    def _launch(self, executable: Any) -> None:
        check(cudart.cudaGraphLaunch(executable, self._stream))
