"""The little of CUDA that an engine needs: a stream, the memory its work uses, and graphs captured from it.

Used by `tensorrt_engine`. It translates CUDA's errors. Work runs on the card that CUDA numbers 0, which
CUDA_VISIBLE_DEVICES chooses. Importing it needs cuda-bindings, which comes with either TensorRT extra.
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
    """What a call of cuda-bindings gave besides its status.

    Raises:
        EngineLost: the error is sticky, see `cuda_errors`.
        EngineFailed: any other error.
    """
    status, *values = answer
    if status != cudart.cudaError_t.cudaSuccess:
        log.error("CUDA failed: %s", status.name, extra={"cuda_error": int(status)})
        raise engine_error(int(status))
    return values[0] if values else None


def start_cuda() -> None:
    """Create this process's context on the card; raises EngineFailed where that cannot be done."""
    check(cudart.cudaSetDevice(0))


def free_memory_bytes() -> int:
    """What the card has left, for whoever asks for it."""
    answer = cudart.cudaMemGetInfo()
    check(answer)
    return int(answer[1])


class Stream:
    """Work in order on the card, together with the memory it uses; `close` frees both."""

    def __init__(self) -> None:
        self._owned = ExitStack()
        # Not the default stream: that one cannot be captured, and waits for the work of all others.
        self._stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._owned.callback(cudart.cudaStreamDestroy, self._stream)
        self._done = check(
            cudart.cudaEventCreateWithFlags(cudart.cudaEventBlockingSync | cudart.cudaEventDisableTiming)
        )
        self._owned.callback(cudart.cudaEventDestroy, self._done)

    @property
    def handle(self) -> int:
        """For TensorRT."""
        return int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        """Address of new memory on the card, aligned to 256 bytes."""
        address = int(check(cudart.cudaMalloc(size_bytes)))
        self._owned.callback(cudart.cudaFree, address)
        return address

    def allocate_pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A new array in page-locked host memory: the card copies it while the CPU goes on. Gone after `close`."""
        element = np.dtype(dtype)
        size_bytes = math.prod(shape) * element.itemsize
        address = int(check(cudart.cudaHostAlloc(size_bytes, cudart.cudaHostAllocDefault)))
        self._owned.callback(cudart.cudaFreeHost, address)
        return np.ndarray(shape, element, buffer=memoryview((ctypes.c_byte * size_bytes).from_address(address)))

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call it when closed, after graphs captured later are gone and before memory allocated earlier is."""
        self._owned.callback(callback)

    def copy_in(self, host: npt.NDArray[Any], address: int) -> None:
        """Enqueue a copy of a contiguous pinned array to the card."""
        to_device = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(cudart.cudaMemcpyAsync(address, host.ctypes.data, host.nbytes, to_device, self._stream))

    def copy_out(self, address: int, host: npt.NDArray[Any]) -> None:
        """Enqueue a copy from the card into a contiguous pinned array."""
        to_host = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(cudart.cudaMemcpyAsync(host.ctypes.data, address, host.nbytes, to_host, self._stream))

    def wait(self) -> None:
        """Sleep until everything enqueued is done. CUDA would spin by default, and burn a core that decodes photos."""
        check(cudart.cudaEventRecord(self._done, self._stream))
        check(cudart.cudaEventSynchronize(self._done))

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Record what `enqueue` puts on this stream, without running it; the result launches all of it at once.

        Raises:
            EngineFailed: something in it cannot be captured; the stream is usable as before.
        """
        # Of this thread only: other engines may allocate meanwhile.
        check(
            cudart.cudaStreamBeginCapture(self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        )
        try:
            enqueue()
        except BaseException:
            _, graph = cudart.cudaStreamEndCapture(self._stream)
            if graph is not None:
                cudart.cudaGraphDestroy(graph)
            cudart.cudaGetLastError()  # else the next call would return what went wrong here
            raise
        graph = check(cudart.cudaStreamEndCapture(self._stream))
        try:
            executable = check(cudart.cudaGraphInstantiate(graph, 0))
        finally:
            cudart.cudaGraphDestroy(graph)
        self._owned.callback(cudart.cudaGraphExecDestroy, executable)
        return functools.partial(self._launch, executable)

    def close(self) -> None:
        """Finish, and free everything. Never raises: after a sticky error each call merely returns it once more."""
        cudart.cudaStreamSynchronize(self._stream)
        self._owned.close()

    def _launch(self, executable: Any) -> None:
        check(cudart.cudaGraphLaunch(executable, self._stream))
