"""The bundle's ONNX graph on ONNX Runtime, on the CPU or on an NVIDIA GPU.

Called by the server's composition root and by evaluation. The one module that touches ONNX Runtime, and so the one
that translates its errors.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime

from zfserve_runtime.bundle import Bundle, BundleError, Manifest, Precision
from zfserve_runtime.engine import EngineInfo, EngineOutputs
from zfserve_runtime.errors import EngineFailed

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

INPUT = "pixels"
OUTPUTS = ("probabilities", "features")

log = logging.getLogger(__name__)


class OnnxEngine:
    """An `Engine` on ONNX Runtime, warm when the constructor returns.

    Args:
        bundle: its artefact of `precision` is run.
        threads: that share one `run`; on a GPU they only feed it.
        max_batch_size: largest batch that `run` will be given.
        providers: ONNX Runtime's names, most wanted first. None: CUDA where this build of ONNX Runtime has it and the
            machine can load it, else the CPU.
        spinning: let idle threads wait for work in a busy loop. It saves microseconds a layer and burns the cores on
            which photos are decoded, so it is off.
        optimised: off, every node is computed alone, as ONNX defines it: slow, and right for graphs whose fused
            kernels are not. Without VNNI, x86 saturates sums of 8-bit weights.

    Raises:
        BundleError: no artefact of that precision, or a graph that cannot be loaded or does not fit the manifest.
        EngineFailed: a provider asked for by name is not available, or the first runs failed.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        *,
        threads: int,
        max_batch_size: int,
        providers: Sequence[str] | None = None,
        spinning: bool = False,
        optimised: bool = True,
    ) -> None:
        self._manifest = bundle.manifest
        self._session = _open_session(bundle, precision, _session_options(threads, spinning, optimised), providers)
        _check_signature(self._session, self._manifest)
        self._info = EngineInfo("onnxruntime", self._session.get_providers()[0], precision, max_batch_size, threads)
        self._warm_up()

    @property
    def info(self) -> EngineInfo:
        return self._info

    def run(self, pixels: npt.NDArray[np.uint8]) -> EngineOutputs:
        """See `Engine.run`."""
        spec = self._manifest.input
        assert pixels.dtype == np.uint8, pixels.dtype
        assert pixels.shape[1:] == (spec.height, spec.width, 3), pixels.shape
        assert 1 <= len(pixels) <= self._info.max_batch_size, len(pixels)
        try:
            probabilities, features = self._session.run(OUTPUTS, {INPUT: pixels})
        except Exception as error:
            # ONNX Runtime's exceptions have no common class below Exception.
            log.exception("ONNX Runtime failed on a batch of %d", len(pixels))
            raise EngineFailed("the engine failed on this batch; try again, or see the server's log") from error
        return EngineOutputs(probabilities, features)

    def close(self) -> None:
        """See `Engine.close`."""
        del self._session

    def _warm_up(self) -> None:
        """Run once at several batch sizes: the largest first, so that memory is claimed in one piece, and one photo
        last. Also finds a graph whose outputs have other widths than the manifest says."""
        spec = self._manifest.input
        for size in sorted({self._info.max_batch_size, min(8, self._info.max_batch_size), 1}, reverse=True):
            outputs = self.run(np.zeros((size, spec.height, spec.width, 3), np.uint8))
            for name, values, width in (
                ("probabilities", outputs.probabilities, len(self._manifest.classes)),
                ("features", outputs.features, self._manifest.feature_width),
            ):
                if values.shape != (size, width):
                    raise BundleError(
                        f"the graph's output {name!r} has shape {values.shape} for {size} photos where the manifest "
                        f"says {(size, width)}; export the bundle again"
                    )


def choose_providers() -> tuple[str, ...]:
    """CUDA before the CPU, where this build of ONNX Runtime has it."""
    available = onnxruntime.get_available_providers()
    return (CUDA, CPU) if CUDA in available else (CPU,)


def _session_options(threads: int, spinning: bool, optimised: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    # The networks are chains: there is nothing to run side by side.
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.log_severity_level = 3
    return options


def _open_session(
    bundle: Bundle, precision: Precision, options: onnxruntime.SessionOptions, providers: Sequence[str] | None
) -> onnxruntime.InferenceSession:
    available = onnxruntime.get_available_providers()
    missing = [provider for provider in providers or () if provider not in available]
    if missing:
        raise EngineFailed(f"this ONNX Runtime has no {', '.join(missing)}, only {', '.join(available)}")
    chosen = tuple(providers) if providers else choose_providers()
    # The arena doubles by default; a GPU is shared with the projection worker.
    settings = [{"arena_extend_strategy": "kSameAsRequested"} if name == CUDA else {} for name in chosen]
    artefact = bundle.artefact(precision)
    try:
        session = onnxruntime.InferenceSession(artefact, options, providers=list(chosen), provider_options=settings)
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {artefact.name}; export the bundle again"
        ) from error
    if session.get_providers()[0] != chosen[0]:
        # ONNX Runtime falls back without an error when CUDA's libraries are missing.
        if providers:
            raise EngineFailed(f"{chosen[0]} cannot start on this machine; check its driver and libraries")
        log.warning("%s cannot start on this machine; running on %s", chosen[0], session.get_providers()[0])
    return session


def _check_signature(session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    """Raises BundleError where the graph's inputs and outputs are not those the manifest promises."""
    spec = manifest.input
    wanted = {
        INPUT: ("tensor(uint8)", (None, spec.height, spec.width, 3)),
        "probabilities": ("tensor(float)", (None, len(manifest.classes))),
        "features": ("tensor(float)", (None, manifest.feature_width)),
    }
    found = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{node.name} is an input nobody feeds" for node in session.get_inputs() if node.name != INPUT]
    for name in wanted.keys() & found.keys():
        element, shape = wanted[name]
        if found[name].type != element or not _fits(found[name].shape, shape):
            described = tuple("N" if size is None else size for size in shape)
            faults.append(f"{name} is {found[name].type} {found[name].shape}, not {element} {described}")
    if faults:
        raise BundleError("the graph does not fit the manifest: " + "; ".join(sorted(faults)))


def _fits(found: Sequence[int | str | None], wanted: Sequence[int | None]) -> bool:
    """Whether a shape agrees with one in which None is an axis that must be dynamic. Axes the graph leaves open pass:
    the warm-up measures them."""
    return len(found) == len(wanted) and all(
        not isinstance(size, int) or size == need for size, need in zip(found, wanted, strict=True)
    )
