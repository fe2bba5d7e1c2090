"""Benchmark `gpu`: images per second of every engine on an NVIDIA GPU, for each batch size, beside torch.compile.

All of them take pixels and return probabilities in the host's memory.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from zfserve_engines.catalogue import engine_kinds
from zfserve_engines.contract import Engine, EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts, detect_gpu
from zfserve_engines.golden import load_golden, verify_engine
from zfserve_engines.kind import EngineKind
from zfserve_engines.opening import EngineOptions
from zfserve_model.graph.execution import move_graph, run
from zfserve_model.graph.graph import Graph
from zfserve_model.importing.importer import import_graph
from zfserve_runtime.bundle import Bundle, BundleError, Precision
from zfserve_runtime.errors import EngineFailed

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images
from zfserve_bench.reports.findings import Finding, Quantity, Report
from zfserve_bench.reports.paired import alternate, median_ratio
from zfserve_bench.timing import times_per_s

BATCH_SIZES = (1, 8, 32)

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "int8-symmetric": torch.float16,
}
"""The type that PyTorch computes in, by the engine's precision. PyTorch has no int8 convolutions on a GPU."""

TORCH_TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.02}
"""The largest difference of a probability to that of the fp32 graph."""

Pixels: TypeAlias = npt.NDArray[np.uint8]
Run: TypeAlias = Callable[[Pixels], object]

_TITLE = "GPU: images/s from pixels to probabilities, beside torch.compile"


class TorchClassifier:
    """Runs the bundle's network in PyTorch as fast as a user would: channels last, pinned input, no gradients.

    Args:
        device: the device to run on.
        dtype: the type to compute in.
        compiled: True to use torch.compile with CUDA graphs, separately for every batch size. It does not search for
            kernels: on an H200, cuDNN's convolutions beat its own in every trial, and the search took over a minute.
    """

    def __init__(self, bundle: Bundle, device: torch.device, dtype: torch.dtype, *, compiled: bool) -> None:
        spec = bundle.manifest.input
        network = _channels_last(move_graph(import_graph(bundle.artefact("fp32")), device, dtype))
        self._network = torch.compile(network, mode="reduce-overhead", dynamic=False) if compiled else network
        self.dtype = dtype
        self._device = device
        self._scale = 1 / (255 * torch.tensor(spec.std, device=device)).view(3, 1, 1)
        self._shift = (torch.tensor(spec.mean, device=device) / torch.tensor(spec.std, device=device)).view(3, 1, 1)
        shape = (max(BATCH_SIZES), spec.height, spec.width, 3)
        self._host = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")

    @torch.inference_mode()
    def run(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Returns probabilities, float32 (N, K).

        Args:
            pixels: uint8 (N, H, W, 3), RGB, with N at most the largest of `BATCH_SIZES`.
        """
        host = self._host[: len(pixels)]
        host.copy_(torch.from_numpy(pixels))
        images = host.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        logits = self._network((images * self._scale - self._shift).to(self.dtype))
        probabilities: npt.NDArray[np.float32] = logits.float().softmax(1).cpu().numpy()
        return probabilities


def _channels_last(graph: Graph) -> Callable[[Tensor], Tensor]:
    """Returns a function from normalised images, (N, 3, H, W), to logits, whose filters lie channels last.

    torch.compile breaks it into several parts, because some operations read sizes from tensors (nine for `zfnet`).
    """
    constants = {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in graph.constants.items()
    }
    laid_out = replace(graph, constants=constants)
    return lambda images: run(laid_out, {laid_out.input: images}, [laid_out.logits])[laid_out.logits]


@dataclass(frozen=True)
class Rival:
    """Holds an engine, or PyTorch without a compiler, that classifies on the GPU."""

    name: str
    precision: Precision
    run: Run


def measure_gpu(config: BenchmarkConfig) -> Report:
    gpu = detect_gpu()
    if gpu is None:
        return _nothing("Not measured: there is no NVIDIA GPU here.")
    if not torch.cuda.is_available():
        return _nothing(
            f"Not measured: this PyTorch cannot use the {gpu.name}; install one with CUDA (make TORCH_INDEX=...)."
        )
    notes = [_describe(gpu), "TF32 is off everywhere; int8 is compared with PyTorch's fp16."]
    images = random_images(config.bundle.manifest.input)
    batches = {size: np.resize(images, (size, *images.shape[1:])) for size in BATCH_SIZES}
    findings: list[Finding] = []
    with without_tf32():
        for precision in DTYPES:
            if precision not in config.bundle.manifest.artefacts:
                notes.append(f"The bundle has no {precision} graph.")
                continue
            baseline = TorchClassifier(config.bundle, torch.device("cuda"), DTYPES[precision], compiled=True)
            check_torch(baseline, config.bundle)
            with ExitStack() as stack:
                for rival in _rivals(config, precision, stack, notes):
                    findings += [_compare(rival, baseline.run, batch, config) for batch in batches.values()]
    return Report(_TITLE, "torch.compile", "times", tuple(findings), tuple(notes))


def check_torch(classifier: TorchClassifier, bundle: Bundle) -> None:
    """Checks that PyTorch computes the bundle's network, because only then its speed can be compared.

    Raises:
        EngineFailed: PyTorch's probabilities differ from the recorded ones of the fp32 graph.
    """
    golden = load_golden(bundle)
    for pixels, expected in zip(golden.pixels, golden.probabilities["fp32"], strict=True):
        difference = float(np.abs(classifier.run(pixels[None])[0] - expected).max())
        if not difference <= TORCH_TOLERANCES[classifier.dtype]:
            raise EngineFailed(f"PyTorch in {classifier.dtype} differs from the bundle's outputs by {difference:.3g}")


def open_verified(
    kind: EngineKind, options: EngineOptions, precision: Precision, stack: ExitStack, notes: list[str]
) -> Engine | None:
    """Opens one engine that gives the golden outputs; `stack` closes it. Otherwise adds a note and returns None."""
    try:
        (engine,) = kind.open(options, precision, lambda step: None)
        stack.callback(engine.close)
        verify_engine(engine, options.bundle)
    except (EngineUnavailable, EngineFailed, BundleError) as error:
        notes.append(f"Not measured: {kind.name}, {precision}: {error}.")
        return None
    return engine


def _rivals(config: BenchmarkConfig, precision: Precision, stack: ExitStack, notes: list[str]) -> Iterator[Rival]:
    """Yields PyTorch without a compiler, then every engine that opens and gives the golden outputs.

    Adds a note with the reason for each other engine. Closes an engine before it opens the next.
    """
    if precision != "int8-symmetric":
        eager = TorchClassifier(config.bundle, torch.device("cuda"), DTYPES[precision], compiled=False)
        check_torch(eager, config.bundle)
        yield Rival("torch eager", precision, eager.run)
    options = EngineOptions(config.bundle, max(BATCH_SIZES), config.threads)
    for kind in engine_kinds(on_gpu=True):
        if precision not in kind.precisions:
            continue
        with ExitStack() as opened:
            if (engine := open_verified(kind, options, precision, opened, notes)) is not None:
                yield Rival(kind.name, precision, engine.run)


def _compare(rival: Rival, baseline: Run, batch: Pixels, config: BenchmarkConfig) -> Finding:
    effort = config.effort
    for runner in (baseline, rival.run):
        images_per_s(runner, batch, effort.try_s)  # compiles for this batch size, and warms up
    baselines, values = alternate(
        lambda: images_per_s(baseline, batch, effort.round_s),
        lambda: images_per_s(rival.run, batch, effort.round_s),
        effort.rounds,
    )
    return Finding(
        f"{rival.name}, {rival.precision}, batch {len(batch)}",
        Quantity(statistics.median(values), "images/s"),
        Quantity(statistics.median(baselines), "images/s"),
        Quantity(median_ratio(baselines, values)),
    )


def images_per_s(run: Run, batch: Pixels, seconds: float) -> float:
    """Runs the batch for about `seconds`, at least once, and returns images per second."""
    return len(batch) * times_per_s(lambda: run(batch), seconds)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Turns TF32 off within the block. PyTorch lets convolutions use it by default."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def _describe(gpu: GpuFacts) -> str:
    return (
        f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_bytes / 2**30:.0f} GiB, "
        f"driver {gpu.driver_version}, CUDA {gpu.cuda_version}; PyTorch {torch.__version__}."
    )


def _nothing(why: str) -> Report:
    return Report(_TITLE, "torch.compile", "times", (), (why,))
