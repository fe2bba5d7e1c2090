"""Defines the `Engine` that runs a bundle's graph on ONNX Runtime, on the CPU or on an NVIDIA GPU.

The openers in `kinds`, the export and the benchmarks call it. `providers` holds the options, `session` opens sessions,
and `binding` keeps their tensors on a GPU.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
from zfserve_runtime.bundle import GRAPH_INPUT, Bundle, Precision
from zfserve_runtime.errors import EngineFailed, EngineLost

from zfserve_engines.contract import EngineInfo, EngineOutputs, OnWarming
from zfserve_engines.cuda.gpu import detect_gpu
from zfserve_engines.onnx.binding import BoundSessions, bound_sizes
from zfserve_engines.onnx.providers import CPU, OnnxProvider
from zfserve_engines.onnx.session import open_sessions, session_options
from zfserve_engines.warm_up import cpu_warm_up_sizes, warm_up

RunGraph: TypeAlias = Callable[[npt.NDArray[np.uint8]], Sequence[npt.NDArray[np.float32]]]
"""Computes the outputs of `Manifest.output_widths`, each float32 (N, width), from pixels, uint8 (N, H, W, 3)."""

log = logging.getLogger(__name__)


class OnnxEngine:
    """Implements `Engine` on ONNX Runtime. It is warm when the constructor returns.

    Args:
        bundle: the bundle whose artefact of `precision` is run.
        precision: the precision of the graph.
        threads: the number of CPU threads that share one `run`. With a GPU, they only prepare its work.
        max_batch_size: the largest batch that `run` takes.
        provider: the execution provider that computes.
        spinning: True lets idle threads wait for work in a busy loop. It saves microseconds per layer, but it uses the
            cores that decode photos, so it is off.
        optimised: False computes every node alone, as ONNX defines it. That is slow, but it is correct where
            fused kernels are wrong: on x86 without VNNI, fused int8 kernels saturate their sums.
        on_warming: receives the progress of the warm-up.

    Raises:
        BundleError: the bundle has no artefact of that precision, or its graph cannot be loaded or does not fit the
            manifest.
        EngineUnavailable: this build of ONNX Runtime lacks the provider, or this machine cannot use it.
        EngineFailed: the first runs failed.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        *,
        threads: int,
        max_batch_size: int,
        provider: OnnxProvider = CPU,
        spinning: bool = False,
        optimised: bool = True,
        on_warming: OnWarming = lambda done, total: None,
    ) -> None:
        self._manifest = bundle.manifest
        self._on_gpu = provider != CPU
        options = session_options(threads, spinning, optimised)
        sizes = bound_sizes(max_batch_size) if self._on_gpu else cpu_warm_up_sizes(max_batch_size)
        count = len(sizes) if provider.session_per_batch_size else 1
        sessions = open_sessions(bundle, precision, provider, max_batch_size, options, count)
        self._info = EngineInfo("onnxruntime", provider.name, precision, max_batch_size, threads, _device(self._on_gpu))
        self._owned = ExitStack()
        self._run_graph: RunGraph = _closed
        try:
            self._run_graph = self._bind(sessions, sizes) if self._on_gpu else self._unbound(*sessions)
            warm_up(self, bundle.manifest, sizes, on_warming)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        return self._info

    def run(self, pixels: npt.NDArray[np.uint8]) -> EngineOutputs:
        """See `Engine.run`."""
        self._info.check_batch(pixels, self._manifest.input)
        try:
            outputs = self._run_graph(pixels)
        except Exception as error:
            # ONNX Runtime's exceptions have no common class below Exception.
            log.exception("ONNX Runtime failed on a batch of %d", len(pixels))
            if self._on_gpu and not can_still_run(self._run_graph, pixels.shape[1:]):
                raise EngineLost("the GPU is lost; try another instance, or try again shortly") from error
            raise EngineFailed("the engine failed on this batch; try again, or see the server's log") from error
        return EngineOutputs.of(dict(zip(self._manifest.output_widths, outputs, strict=True)))

    def close(self) -> None:
        """See `Engine.close`."""
        self._run_graph = _closed
        self._owned.close()

    def _unbound(self, session: onnxruntime.InferenceSession) -> RunGraph:
        """Returns a function that runs a session on the CPU."""
        outputs = tuple(self._manifest.output_widths)
        return lambda pixels: session.run(outputs, {GRAPH_INPUT: pixels})

    def _bind(self, sessions: Sequence[onnxruntime.InferenceSession], sizes: Sequence[int]) -> RunGraph:
        """Returns a function that runs sessions on the GPU. Each session is bound for the batch sizes it serves."""
        spec = self._manifest.input
        host = self._page_locked((self._info.max_batch_size, spec.height, spec.width, 3))
        return BoundSessions(dict(zip(sizes, cycle(sessions))), "cuda", self._manifest.output_widths, host).run

    def _page_locked(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Returns page-locked host memory, which a GPU copies faster; ordinary memory without cuda-bindings."""
        try:
            from zfserve_engines.cuda.device import Stream, start_cuda
        except ImportError:
            return np.empty(shape, np.uint8)
        start_cuda()
        stream = Stream()
        self._owned.callback(stream.close)
        return stream.allocate_pinned(shape, np.uint8)


def can_still_run(run_graph: RunGraph, image_shape: tuple[int, ...]) -> bool:
    """Returns True if one black photo, uint8 (1, *image_shape), still runs after a batch that failed.

    After a sticky CUDA error no run succeeds. Several libraries report such errors under different names, so this
    function tries a run. After a large batch that did not fit in memory, one photo still runs.
    """
    try:
        run_graph(np.zeros((1, *image_shape), np.uint8))
    except Exception:
        log.exception("ONNX Runtime also fails on one black photo")
        return False
    return True


def _closed(pixels: npt.NDArray[np.uint8]) -> Sequence[npt.NDArray[np.float32]]:
    raise RuntimeError("the engine is closed")


def _device(on_gpu: bool) -> str:
    if not on_gpu:
        return "CPU"
    gpu = detect_gpu()
    return gpu.name if gpu else "NVIDIA GPU"
