"""Opens reading engines. The server calls it in a thread when a study needs one.

An engine that reads is of the kind and precision of the engine that serves, where that can be: TensorRT would compile
each plan for minutes, so ONNX Runtime takes its place; and a graph that lacks a layer of the plan, because its export
rounded it away, is replaced by the fp32 graph. `ReadingEngine.name` and `info` say what computes.
"""

import hashlib
import logging
from dataclasses import replace

import numpy as np
from zfserve_protos.extras import not_installed
from zfserve_runtime.bundle import Bundle, BundleError, Precision
from zfserve_runtime.cpus import available_cpus

from zfserve_engines.contract import EngineInfo, EngineName, EngineUnavailable
from zfserve_engines.golden import verify_engine
from zfserve_engines.readings.engine import GraphReadingEngine
from zfserve_engines.readings.plan import ReadingEngine, ReadingPlan
from zfserve_engines.readings.runtimes import ReadingEngineName, open_runtime

log = logging.getLogger(__name__)

VERIFIED_PHOTOS = 4
"""The number of golden inputs that a new engine must reproduce. The engine that serves has reproduced all of them."""

FALLBACK: Precision = "fp32"
"""The precision of `model.onnx`, which has all layers of the manifest."""

_PROVIDERS: dict[ReadingEngineName, tuple[str, str]] = {
    "onnx-cpu": ("onnxruntime", "CPUExecutionProvider"),
    "onnx-cuda": ("onnxruntime", "CUDAExecutionProvider"),
    "openvino": ("openvino", "CPU f32"),
    "openvino-bf16": ("openvino", "CPU bf16"),
}


def open_reading_engine(bundle: Bundle, plan: ReadingPlan, *, like: EngineName, info: EngineInfo) -> ReadingEngine:
    """Opens an engine that computes `plan` as the engine that serves would. Blocks for about a second.

    Args:
        bundle: the bundle whose network is run.
        plan: what to read and what may be replaced.
        like: the kind of the engine that serves.
        info: the description of the engine that serves: its precision, threads and largest batch.

    Raises:
        EngineUnavailable: a library is missing.
        BundleError: the bundle has no such layers, its graph cannot be loaded, or golden outputs are not met.
        EngineFailed: the first run failed.
    """
    graph, precision = _graph(bundle, plan, info.precision)
    unavailable: EngineUnavailable | None = None
    for name in _kinds(like, precision):
        try:
            return _open(bundle, plan, graph, name, replace(info, precision=precision))
        except EngineUnavailable as error:
            log.info("%s cannot read layers: %s", name, error)
            unavailable = error
    assert unavailable is not None
    raise unavailable


def _kinds(like: EngineName, precision: Precision) -> tuple[ReadingEngineName, ...]:
    """Returns the kinds that may read for an engine of the kind `like`, the best first."""
    match like:
        case "openvino-bf16" if precision == "fp32":
            return ("openvino-bf16",)
        case "openvino" | "openvino-bf16":
            return ("openvino",)
        case "onnx-cpu":
            return ("onnx-cpu",)
        case _:
            return ("onnx-cuda", "onnx-cpu")


def _graph(bundle: Bundle, plan: ReadingPlan, precision: Precision) -> tuple[bytes, Precision]:
    """Returns the graph with the readings, and its precision, which is fp32 where the wanted one lacks a layer."""
    try:
        from onnx import ModelProto
    except ModuleNotFoundError as error:
        raise EngineUnavailable(not_installed("onnx, which reads what layers compute,", "server")) from error
    from zfserve_engines.readings.graph import LayerMissing, with_readings

    missing = ""
    for found in dict.fromkeys((precision, FALLBACK)):
        model = ModelProto.FromString(_read(bundle, found))
        try:
            with_readings(model, plan)
        except LayerMissing as error:
            missing = str(error)
            log.info("the %s graph has no value of %s to read", found, missing)
        else:
            return model.SerializeToString(), found
    raise BundleError(f"the graph of the bundle has no tensor {missing!r}; export the bundle again")


def _read(bundle: Bundle, precision: Precision) -> bytes:
    """Returns the graph's file. Raises BundleError where it is not the one whose digest the manifest holds."""
    file = bundle.artefact(precision)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file.name} cannot be read any more; restore the bundle, or export it again") from error
    if hashlib.sha256(content).hexdigest() != bundle.manifest.files[file.name]:
        raise BundleError(f"{file.name} has changed since it was served; restore the bundle, or export a new version")
    return content


def _open(
    bundle: Bundle, plan: ReadingPlan, graph: bytes, name: ReadingEngineName, like: EngineInfo
) -> GraphReadingEngine:
    threads = like.threads or available_cpus()
    runtime, provider = _PROVIDERS[name]
    info = EngineInfo(
        runtime,
        provider,
        like.precision,
        plan.max_batch_size(like.max_batch_size),
        threads,
        like.device if name == "onnx-cuda" else "CPU",
        bf16=name == "openvino-bf16",
    )
    engine = GraphReadingEngine(name, info, plan, bundle.manifest, open_runtime(name, graph, like.precision, threads))
    try:
        verify_engine(engine, bundle, VERIFIED_PHOTOS)
        _check_shapes(engine, bundle)
    except BaseException:
        engine.close()
        raise
    return engine


def _check_shapes(engine: GraphReadingEngine, bundle: Bundle) -> None:
    """Raises BundleError where a layer of the graph has another shape than the manifest says."""
    spec = bundle.manifest.input
    outputs = engine.run(np.zeros((1, spec.height, spec.width, 3), np.uint8))
    for reading, found in zip(engine.plan.readings, outputs.readings, strict=True):
        wanted = (1, reading.channels, *((reading.height, reading.width) if reading.form == "maps" else ()))
        if found.values.shape != wanted:
            raise BundleError(
                f"the tensor {reading.tensor!r} has the shape {found.values.shape} where the manifest says {wanted}; "
                "export the bundle again"
            )
