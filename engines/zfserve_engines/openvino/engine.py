"""Defines the `Engine` that runs a bundle's graph on OpenVINO, on the CPU, with its openers and its records.

`catalogue` puts the records in order. Only this module calls OpenVINO, so it translates OpenVINO's errors.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from zfserve_runtime.bundle import GRAPH_INPUT, Bundle, BundleError, Precision
from zfserve_runtime.cpus import has_int8_instructions
from zfserve_runtime.errors import EngineFailed

from zfserve_engines.contract import Engine, EngineInfo, EngineOutputs, EngineUnavailable, OnWarming
from zfserve_engines.kind import EngineKind, Package
from zfserve_engines.opening import EngineOptions, Phase, Report, Step, open_instances
from zfserve_engines.openvino.signal_stack import preserved_signal_stack
from zfserve_engines.warm_up import cpu_warm_up_sizes, warm_up

log = logging.getLogger(__name__)

Arithmetic = Literal["f32", "bf16"]

PACKAGE = Package("OpenVINO", "openvino", "openvino")


class OpenVinoEngine:
    """Implements `Engine` on OpenVINO's CPU device. It is warm when the constructor returns.

    One compiled model with a dynamic batch axis serves every batch size. A model for one batch size is not faster.

    Args:
        bundle: the bundle whose artefact of `precision` is run.
        precision: the precision of the graph.
        threads: the number of threads that share one `run`.
        max_batch_size: the largest batch that `run` takes.
        arithmetic: the arithmetic of the graph's float operations. bf16 is twice as fast on CPUs that have it, and
            keeps 8 significant bits of every number. The golden inputs check that the outputs stay within the
            tolerance.
        on_warming: receives the progress of the warm-up.

    Raises:
        BundleError: the bundle has no artefact of that precision, or its graph cannot be loaded or does not fit the
            manifest.
        EngineUnavailable: OpenVINO is not installed, or this CPU does not have the arithmetic.
        EngineFailed: the first runs failed.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        *,
        threads: int,
        max_batch_size: int,
        arithmetic: Arithmetic = "f32",
        on_warming: OnWarming = lambda done, total: None,
    ) -> None:
        self._manifest = bundle.manifest
        self._info = EngineInfo(
            "openvino", f"CPU {arithmetic}", precision, max_batch_size, threads, bf16=arithmetic == "bf16"
        )
        self._request = compile_graph(bundle.artefact(precision), threads, arithmetic).create_infer_request()
        warm_up(self, bundle.manifest, cpu_warm_up_sizes(max_batch_size), on_warming)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def run(self, pixels: npt.NDArray[np.uint8]) -> EngineOutputs:
        """See `Engine.run`."""
        self._info.check_batch(pixels, self._manifest.input)
        try:
            # OpenVINO reads the pixels in place, and copies the outputs.
            outputs = self._request.infer({GRAPH_INPUT: pixels}, share_inputs=True)
            return EngineOutputs.of({name: outputs[name] for name in self._manifest.output_widths})
        except Exception as error:
            log.exception("OpenVINO failed on a batch of %d", len(pixels))
            raise EngineFailed("the engine failed on this batch; try again, or see the server's log") from error

    def close(self) -> None:
        """See `Engine.close`."""
        self._request = None


def compile_graph(graph: Path | bytes, threads: int, arithmetic: Arithmetic) -> Any:
    """Returns a graph as OpenVINO compiles it, a `CompiledModel`. OpenVINO does not export its types to type checkers.

    Args:
        graph: the ONNX file, or its content.
        threads, arithmetic: as for `OpenVinoEngine`.

    Raises:
        BundleError: the graph cannot be loaded.
        EngineUnavailable: OpenVINO is not installed, or this CPU does not have the arithmetic.
    """
    with preserved_signal_stack():
        return _compile(graph, threads, arithmetic)


def _compile(graph: Path | bytes, threads: int, arithmetic: Arithmetic) -> Any:
    openvino = PACKAGE.load()
    runtime = openvino.Core()
    if arithmetic == "bf16" and "BF16" not in runtime.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        # OpenVINO would silently compute in f32.
        raise EngineUnavailable("this CPU has no bf16 arithmetic; choose another engine")
    settings = {
        "INFERENCE_PRECISION_HINT": arithmetic,
        "INFERENCE_NUM_THREADS": threads,
        # Batches come one at a time, so one stream has all threads. THROUGHPUT would split them among several streams.
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # The cores are shared with the threads that decode photos.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        return runtime.compile_model(runtime.read_model(graph), "CPU", settings)
    except Exception as error:
        name = graph.name if isinstance(graph, Path) else "the graph with readings"
        raise BundleError(f"OpenVINO {openvino.__version__} cannot load {name}; export the bundle again") from error


def open_openvino(options: EngineOptions, precision: Precision, report: Report) -> list[Engine]:
    """Opens engines that compute in the arithmetic of the graph."""
    return open_instances(Step("openvino", Phase.LOADING), OpenVinoEngine, options, precision, report)


def open_openvino_bf16(options: EngineOptions, precision: Precision, report: Report) -> list[Engine]:
    """Opens engines that compute the fp32 graph in bfloat16."""
    if precision != "fp32":
        raise EngineUnavailable(
            f"it runs only the fp32 graph, in bf16; leave out --precision, or choose openvino for {precision}"
        )
    new_engine = partial(OpenVinoEngine, arithmetic="bf16")
    return open_instances(Step("openvino-bf16", Phase.LOADING), new_engine, options, precision, report)


def skip_reason(precision: Precision, cpu_has_int8: Callable[[], bool] = has_int8_instructions) -> str | None:
    """Returns why `auto` does not try OpenVINO with a graph of that precision; None if `auto` tries it.

    OpenVINO is a fifth faster than ONNX Runtime at int8 on CPUs that multiply bytes (VNNI, AMX). Elsewhere it is no
    faster (docs/engines.md).
    """
    if precision != "int8":
        return "auto takes it for int8 only, because it is no faster in floats; --engine openvino selects it"
    if not cpu_has_int8():
        return "auto takes it on CPUs with VNNI only, because it is no faster on others; --engine openvino selects it"
    return None


OPENVINO = EngineKind(
    name="openvino",
    on_gpu=False,
    package=PACKAGE,
    open=open_openvino,
    skip_reason=skip_reason,
)

OPENVINO_BF16 = EngineKind(
    name="openvino-bf16",
    on_gpu=False,
    precisions=("fp32",),
    package=PACKAGE,
    open=open_openvino_bf16,
    # The bundle has no figures for the accuracy that is lost with 8 significant bits.
    by_name_only=(
        "auto leaves it out, because it rounds numbers to 8 significant bits; --engine openvino-bf16 selects it"
    ),
)
