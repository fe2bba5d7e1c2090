"""Opens sessions of ONNX Runtime for a bundle's graph. `engine` and the openers in `kinds` call it."""

import contextlib
import ctypes
import importlib
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
from zfserve_runtime.bundle import GRAPH_INPUT, Bundle, BundleError, Manifest, Precision

from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.onnx.providers import (
    Chain,
    CpuProvider,
    CudaProvider,
    GpuProvider,
    OnnxProvider,
    TensorRTProvider,
    Workload,
)

log = logging.getLogger(__name__)

_CRASHING_OPTIMISERS = ["NchwcTransformer"]
"""On x86, this step of ONNX Runtime ends the process (SIGSEGV) for a float16 graph in which a Transpose enters a
multiplication by weights, as in torchvision's vision transformers: microsoft/onnxruntime#28392, and seen with 1.32.0.
Without it float16 is slower on a CPU, where `auto` never takes it."""

onnxruntime.set_default_logger_severity(3)  # 3: errors only, because ONNX Runtime warns about every session on a GPU


def open_sessions(
    bundle: Bundle,
    precision: Precision,
    provider: OnnxProvider,
    max_batch_size: int,
    options: onnxruntime.SessionOptions,
    count: int = 1,
) -> list[onnxruntime.InferenceSession]:
    """Opens `count` sessions on `provider`, each with its own weights. Checks their inputs and outputs.

    Raises:
        BundleError: the bundle lacks the graph, or the graph cannot be loaded or does not fit the manifest.
        EngineUnavailable: this machine cannot use the provider.
    """
    artefact = bundle.artefact(precision)
    require_libraries(provider)
    spec = bundle.manifest.input
    workload = Workload(artefact, precision, (spec.height, spec.width, 3), max_batch_size)
    chain = provider.chain(workload, onnxruntime.__version__)
    if isinstance(provider, CpuProvider):
        sessions = [_load_on_cpu(artefact, options, chain, precision) for _ in range(count)]
    else:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        sessions = [_load_on_gpu(artefact, options, chain, provider) for _ in range(count)]
        _log_placement(sessions[0])
    _check_signature(sessions[0], bundle.manifest)
    return sessions


def open_graph(
    graph: bytes, precision: Precision, provider: CpuProvider | CudaProvider, threads: int
) -> onnxruntime.InferenceSession:
    """Opens a session for a graph in memory, which was made from one of a bundle.

    Raises:
        BundleError: the graph cannot be loaded.
        EngineUnavailable: this machine cannot use the provider.
    """
    require_libraries(provider)
    options = session_options(threads)
    if isinstance(provider, CpuProvider):
        return _load_on_cpu(graph, options, [(provider.name, {})], precision)
    # Its batches have many sizes. An exhaustive search for each of them would take longer than it saves.
    cuda = provider.options(precision) | {"cudnn_conv_algo_search": "HEURISTIC"}
    return _load_on_gpu(graph, options, [(provider.name, cuda), (CpuProvider.name, {})], provider)


def session_options(threads: int, spinning: bool = False, optimised: bool = True) -> onnxruntime.SessionOptions:
    """Returns the options of a session. The arguments are those of `zfserve_engines.onnx.engine.OnnxEngine`."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    # One run uses all threads in each node, so nodes do not run at the same time.
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.log_severity_level = 3
    return options


def require_libraries(provider: OnnxProvider) -> None:
    """Loads the libraries that the provider needs.

    It also loads the libraries of NVIDIA's wheels, which the system's loader cannot find.

    Raises:
        EngineUnavailable: this build of ONNX Runtime lacks the provider, or TensorRT cannot be loaded. Without this
            check, ONNX Runtime would report a missing TensorRT only on standard error.
    """
    available = onnxruntime.get_available_providers()
    if provider.name not in available:
        raise EngineUnavailable(
            f"this ONNX Runtime has no {provider.name}, only {', '.join(available)}; "
            f"for NVIDIA GPUs, install the extra `{CudaProvider.package.extra}` "
            f"instead of `{CpuProvider.package.extra}`"
        )
    if not isinstance(provider, CpuProvider):
        _load_cuda_libraries()
    if isinstance(provider, TensorRTProvider):
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")
        try:
            ctypes.CDLL(provider.library)
        except OSError as error:
            raise EngineUnavailable(f"TensorRT 10 is not installed: {error}") from error


def _load_on_cpu(
    graph: Path | bytes, options: onnxruntime.SessionOptions, chain: Chain, precision: Precision
) -> onnxruntime.InferenceSession:
    disabled = _CRASHING_OPTIMISERS if precision == "fp16" else []
    try:
        return onnxruntime.InferenceSession(graph, options, providers=chain, disabled_optimizers=disabled)
    except Exception as error:
        # ONNX Runtime's exceptions have no common class below Exception.
        name = graph.name if isinstance(graph, Path) else "the graph with readings"
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {name}; export the bundle again"
        ) from error


def _load_on_gpu(
    graph: Path | bytes, options: onnxruntime.SessionOptions, chain: Chain, provider: GpuProvider
) -> onnxruntime.InferenceSession:
    """Opens a session on a GPU.

    The graph is valid, because its digest was checked and the export ran it on the CPU. So an error here means that the
    provider cannot start.
    """
    cannot = f"{provider.name} cannot start on this machine; it needs {provider.needs}; the log says more"
    try:
        # With its fallback, ONNX Runtime would print to stdout and use another provider.
        session = onnxruntime.InferenceSession(graph, options, providers=chain, enable_fallback=0)
    except Exception as error:
        log.info("%s cannot start: %s", provider.name, error)
        raise EngineUnavailable(cannot) from error
    if session.get_providers()[0] != provider.name:
        # If only libraries are missing, ONNX Runtime takes the next provider and writes a line to stderr.
        raise EngineUnavailable(cannot)
    return session


def _log_placement(session: onnxruntime.InferenceSession) -> None:
    """Logs how many nodes of the graph run on each provider."""
    nodes = Counter(part.ep_name for part in session.get_provider_graph_assignment_info() for _ in part.get_nodes())
    log.info("ONNX Runtime assigned the graph's nodes to providers", extra={"nodes": dict(nodes)})


def _load_cuda_libraries() -> None:
    """Loads CUDA and cuDNN. ONNX Runtime prints the libraries that are missing, and this function logs its lines."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        onnxruntime.preload_dlls()
    for line in printed.getvalue().splitlines():
        log.info("%s", line)


def _check_signature(session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    """Raises BundleError where the graph's inputs and outputs are not those of the manifest."""
    spec = manifest.input
    batch = manifest.fixed_batch_size or None
    wanted: dict[str, tuple[str, tuple[int | None, ...]]] = {
        GRAPH_INPUT: ("tensor(uint8)", (batch, spec.height, spec.width, 3)),
        **{name: ("tensor(float)", (batch, width)) for name, width in manifest.output_widths.items()},
    }
    found = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{node.name} is an unexpected input" for node in session.get_inputs() if node.name != GRAPH_INPUT]
    for name in wanted.keys() & found.keys():
        element, shape = wanted[name]
        if found[name].type != element or not _fits(found[name].shape, shape):
            described = tuple("N" if size is None else size for size in shape)
            faults.append(f"{name} is {found[name].type} {found[name].shape}, not {element} {described}")
    if faults:
        raise BundleError("the graph does not fit the manifest: " + "; ".join(sorted(faults)))


def _fits(found: Sequence[int | str | None], wanted: Sequence[int | None]) -> bool:
    """Returns True if the shape `found` agrees with `wanted`.

    In `wanted`, None stands for an axis that must be dynamic. A dynamic axis in `found` agrees with any size, because
    the warm-up checks the real size.
    """
    return len(found) == len(wanted) and all(
        not isinstance(size, int) or size == expected for size, expected in zip(found, wanted, strict=True)
    )
