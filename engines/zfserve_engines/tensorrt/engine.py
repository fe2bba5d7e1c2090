"""Defines the `Engine` that runs a network compiled by TensorRT or TensorRT for RTX on an NVIDIA GPU.

    plan = LoadedPlan(stored.plan, manifest, load_library("tensorrt"), gpu)
    engines = open_engines(plan, manifest, precision, max_batch_size=32, instances=2)

The opener in `kinds` calls it. Each engine has a stream, buffers, and one execution context for each batch size that it
runs. A CUDA graph belongs to one shape, one set of addresses and one state of its context. So NVIDIA advises one
context for each graph. The contexts share their scratch memory, because only one of them runs at a time. Importing this
module needs cuda-bindings.
"""

import bisect
import functools
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
from zfserve_runtime.bundle import GRAPH_INPUT, Manifest, Precision
from zfserve_runtime.errors import EngineFailed, EngineLost

from zfserve_engines.contract import EngineInfo, EngineOutputs, OnWarming
from zfserve_engines.cuda.batch_sizes import choose_profile, plan_batch_sizes
from zfserve_engines.cuda.device import Stream
from zfserve_engines.tensorrt.plan import LoadedPlan

log = logging.getLogger(__name__)


class TensorRTEngine:
    """Implements `Engine` on a loaded plan. It is warm when the constructor returns.

    Several engines may run at the same time, each in its own thread.

    Args:
        plan: the compiled engine on the GPU.
        manifest: the manifest of the bundle.
        precision: the precision of the graph that was compiled.
        max_batch_size: the largest batch that `run` takes. If the plan has a lower limit, that limit holds; see
            `info`.
        on_warming: receives the progress of the warm-up.

    Raises:
        EngineFailed: the first runs failed, for example because the GPU's memory is full.
    """

    def __init__(
        self,
        plan: LoadedPlan,
        manifest: Manifest,
        precision: Precision,
        *,
        max_batch_size: int,
        on_warming: OnWarming = lambda done, total: None,
    ) -> None:
        self._plan = plan
        self._spec = manifest.input
        self._sizes = plan_batch_sizes(plan.signature.profiles, max_batch_size)
        largest = self._sizes[-1]
        self._info = EngineInfo(plan.library.kind, str(plan.library), precision, largest, 1, plan.gpu.name)
        self._stream = Stream()
        self._contexts: list[Any] = []
        self._launches: dict[int, Callable[[], None]] = {}
        self._captured: list[int] = []
        self._capturing = plan.cuda_graphs and not plan.library_captures_graphs
        try:
            self._allocate(manifest, largest)
            self._stream.on_close(self._contexts.clear)
            for done, size in enumerate(reversed(self._sizes)):  # the largest first, because it may not fit
                on_warming(done, len(self._sizes))
                self._launches[size] = self._prepare(size)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes, ascending, whose CUDA graph this engine captured and launches."""
        return tuple(sorted(self._captured))

    def run(self, pixels: npt.NDArray[np.uint8]) -> EngineOutputs:
        """See `Engine.run`."""
        self._info.check_batch(pixels, self._spec)
        count = len(pixels)
        size = self._sizes[bisect.bisect_left(self._sizes, count)]
        self._pixels[:count] = pixels  # later rows hold older photos; their outputs are not read
        self._complete(self._launches[size])
        return EngineOutputs.of({name: values[:count].copy() for name, values in self._outputs.items()})

    def close(self) -> None:
        """See `Engine.close`."""
        self._launches.clear()  # the functions refer to contexts, which must be freed before their memory
        self._stream.close()
        del self._plan

    def _allocate(self, manifest: Manifest, largest: int) -> None:
        """Allocates all memory for batches of up to `largest` photos."""
        spec, stream, engine = manifest.input, self._stream, self._plan.engine
        self._pixels: npt.NDArray[np.uint8] = stream.allocate_pinned((largest, spec.height, spec.width, 3), np.uint8)
        self._outputs: dict[str, npt.NDArray[np.float32]] = {
            name: stream.allocate_pinned((largest, width), np.float32) for name, width in manifest.output_widths.items()
        }
        self._pixels[:] = 0
        self._addresses = {GRAPH_INPUT: stream.allocate(self._pixels.nbytes)}
        self._addresses |= {name: stream.allocate(values.nbytes) for name, values in self._outputs.items()}
        # This is enough for the profile that needs most. TensorRT refuses less.
        self._scratch_bytes = engine.device_memory_size_v2
        self._scratch = stream.allocate(max(self._scratch_bytes, 1))

    def _prepare(self, size: int) -> Callable[[], None]:
        """Prepares batches of `size`. Returns a warm function that launches one: it copies in, runs, and copies out."""
        context, stream = self._plan.create_context(), self._stream
        self._contexts.append(context)  # a CUDA graph uses the context, but holds no reference to it
        profile = choose_profile(self._plan.signature.profiles, size)
        accepted = context.set_optimization_profile_async(profile, stream.handle)
        stream.wait()
        context.set_device_memory(self._scratch, self._scratch_bytes)
        accepted &= context.set_input_shape(GRAPH_INPUT, (size, *self._pixels.shape[1:]))
        for name, address in self._addresses.items():
            accepted &= context.set_tensor_address(name, address)
        if not accepted or context.infer_shapes():
            raise EngineFailed(f"TensorRT does not accept batches of {size}; see the server's log")
        enqueue = functools.partial(self._enqueue, context, size)
        try:
            # TensorRT must run once before a capture, to finish deferred work. TensorRT for RTX compiles kernels in it.
            self._complete(enqueue)
            launch = self._capture(size, enqueue) or enqueue
            self._complete(launch)
        except BaseException:
            del context, enqueue  # otherwise the traceback would keep the context after its memory is freed
            raise
        return launch

    def _enqueue(self, context: Any, size: int) -> None:
        """Enqueues the work of a batch of `size` on the stream: copy in, run, copy out."""
        self._stream.copy_in(self._pixels[:size], self._addresses[GRAPH_INPUT])
        if not context.execute_async_v3(self._stream.handle):
            raise EngineFailed("TensorRT failed on this batch; try again, or see the server's log")
        for name, values in self._outputs.items():
            self._stream.copy_out(self._addresses[name], values[:size])

    def _capture(self, size: int, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """Captures `enqueue` as a CUDA graph. Returns None if graphs are off or CUDA refuses the capture."""
        if not self._capturing:
            return None
        try:
            launch = self._stream.capture(enqueue)
        except EngineLost:
            raise
        except EngineFailed as error:
            log.warning("running without CUDA graphs, because CUDA refused a capture: %s", error)
            self._capturing = False
            return None
        self._captured.append(size)
        return launch

    def _complete(self, launch: Callable[[], None]) -> None:
        """Launches a batch and waits until it is done.

        Raises:
            EngineFailed: the batch failed.
            EngineLost: the GPU is lost. TensorRT only reports a failure, so the wait after it asks CUDA.
        """
        try:
            launch()
        except EngineLost:
            raise
        except EngineFailed:
            self._stream.wait()
            raise
        self._stream.wait()


def open_engines(
    plan: LoadedPlan,
    manifest: Manifest,
    precision: Precision,
    *,
    max_batch_size: int,
    instances: int,
    on_warming: OnWarming = lambda done, total: None,
) -> list[TensorRTEngine]:
    """Opens `instances` engines that share the plan. If one fails, closes the others and raises its error.

    Raises:
        EngineFailed: see `TensorRTEngine`.
    """
    with ExitStack() as opened:
        engines = []
        for _ in range(instances):
            engine = TensorRTEngine(plan, manifest, precision, max_batch_size=max_batch_size, on_warming=on_warming)
            opened.callback(engine.close)
            engines.append(engine)
        plan.save_runtime_cache()
        opened.pop_all()
        return engines
