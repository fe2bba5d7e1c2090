"""Every engine that can be had, in every precision and batch size: its speed, its share of what the machine can do, and
whether it is still the network. From pixels in memory to probabilities in memory.

An engine's speed, a large matrix product and a large copy are measured in the same rounds, and compared within a round.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from zfserve_engines.catalogue import engine_kinds
from zfserve_engines.contract import Engine, EngineUnavailable
from zfserve_engines.cuda.gpu import detect_gpu
from zfserve_engines.golden import load_golden, verify_engine
from zfserve_engines.kind import EngineKind
from zfserve_engines.opening import EngineOptions
from zfserve_export.evaluation import evaluate
from zfserve_export.photos import list_labelled_photos
from zfserve_runtime.bundle import BundleError, Precision
from zfserve_runtime.errors import EngineFailed

from zfserve_bench.compute.gpu import DTYPES, TorchClassifier, check_torch, without_tf32
from zfserve_bench.compute.graph_cost import GraphCost, count_cost
from zfserve_bench.compute.peaks import Arithmetic, CpuPeaks, GpuPeaks, Peaks, times_per_s
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images
from zfserve_bench.reports.findings import Finding, Quantity, Report

BATCH_SIZES = (1, 8, 32)

GPU_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-symmetric")

Classify = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""From pixels to probabilities."""


@dataclass(frozen=True, eq=False)
class Contender:
    """Something that runs the network.

    Attributes:
        arithmetic: that it computes in; of a graph in floats it may be coarser than the graph's.
        off_by: largest difference of a probability to those recorded of the fp32 graph, on the golden inputs.
        top1: share of photos that it classifies correctly; None where nobody measured it.
    """

    name: str
    precision: Precision
    classify: Classify
    off_by: float
    top1: float | None
    arithmetic: Arithmetic


@dataclass(frozen=True)
class Round:
    """What was measured about the same time.

    Attributes:
        batch_s: seconds a batch, by contender (its place in the list) and batch size.
        flops_per_s: of a large matrix product.
        bytes_per_s: of a large copy.
    """

    batch_s: Mapping[tuple[int, int], float]
    flops_per_s: Mapping[Arithmetic, float]
    bytes_per_s: float


def measure_engines(config: BenchmarkConfig) -> Report:
    notes = [
        "Roofline: the batch's multiplications at the speed of a large matrix product, or its weights, photos and "
        "outputs at that of a large copy, whichever takes longer; compute and memory are the shares of these two.",
        "Off by: largest difference of a probability to the recorded fp32 outputs. Top-1: "
        + ("of the graph, as measured at export." if config.data is None else f"measured on {config.data.name}."),
    ]
    findings: list[Finding] = []
    with closing(CpuPeaks(config.threads)) as limits:
        findings += _measure(config, limits, notes, on_gpu=False)
    if (reason := _no_gpu()) is None:
        with without_tf32(), closing(GpuPeaks()) as gpu_peaks:
            findings += _measure(config, gpu_peaks, notes, on_gpu=True)
    else:
        compared = ", ".join((*(kind.name for kind in engine_kinds(on_gpu=True)), "torch eager", "torch.compile"))
        notes.append(f"Not measured: {compared}: {reason}.")
    return Report(
        "Engines: images/s beside the machine's matrix throughput and memory bandwidth",
        "roofline",
        "share",
        tuple(findings),
        tuple(notes),
        measured="images/s",
        details=("ms", "compute", "memory", "off by", "top-1"),
    )


def _no_gpu() -> str | None:
    """Why nothing can be measured on a GPU."""
    gpu = detect_gpu()
    if gpu is None:
        return "there is no NVIDIA GPU here, they await one"
    if not torch.cuda.is_available():
        return f"the {gpu.name}'s own limits are measured with PyTorch, and this one has no CUDA"
    return None


def _measure(config: BenchmarkConfig, limits: Peaks, notes: list[str], *, on_gpu: bool) -> list[Finding]:
    works = {precision: count_cost(config.bundle.artefact(precision)) for precision in config.bundle.manifest.artefacts}
    precisions = GPU_PRECISIONS if on_gpu else config.precisions
    with ExitStack() as stack:
        contenders = [*_open_engines(config, engine_kinds(on_gpu=on_gpu), precisions, stack, notes)]
        contenders += _open_torch(config) if on_gpu else ()
        rounds = take_rounds(contenders, limits, random_images(config.bundle.manifest.input), config)
    return [
        find(place, contender, size, works[contender.precision], rounds)
        for place, contender in enumerate(contenders)
        for size in BATCH_SIZES
    ]


def take_rounds(
    contenders: Sequence[Contender], limits: Peaks, images: npt.NDArray[np.uint8], config: BenchmarkConfig
) -> list[Round]:
    """Each measures everything once, one thing after the other."""
    seconds = config.effort.try_s
    batches = {size: np.resize(images, (size, *images.shape[1:])) for size in BATCH_SIZES}
    arithmetics = {contender.arithmetic for contender in contenders}
    return [
        Round(
            batch_s={
                (place, size): 1 / times_per_s(partial(contender.classify, batch), seconds)
                for size, batch in batches.items()
                for place, contender in enumerate(contenders)
            },
            flops_per_s={each: limits.flops_per_s(each, seconds) for each in sorted(arithmetics)},
            bytes_per_s=limits.bytes_per_s(seconds),
        )
        for _ in range(config.effort.rounds)
    ]


def find(place: int, contender: Contender, size: int, work: GraphCost, rounds: Sequence[Round]) -> Finding:
    """The line of a contender with batches of `size`: medians over the rounds."""

    def median(of: Callable[[Round], float]) -> float:
        return statistics.median(map(of, rounds))

    def seconds(one: Round) -> float:
        return one.batch_s[place, size]

    def flops_per_s(one: Round) -> float:
        return one.flops_per_s[contender.arithmetic]

    def least_s(one: Round) -> float:
        return work.least_s(size, flops_per_s(one), one.bytes_per_s)

    return Finding(
        f"{contender.name}, {contender.precision}, batch {size}",
        Quantity(median(lambda one: size / seconds(one))),
        Quantity(median(lambda one: size / least_s(one))),
        Quantity(median(lambda one: least_s(one) / seconds(one))),
        details=(
            Quantity(median(seconds) * 1e3),
            Quantity(median(lambda one: work.batch_flops(size) / flops_per_s(one) / seconds(one))),
            Quantity(median(lambda one: work.batch_bytes(size) / one.bytes_per_s / seconds(one))),
            Quantity(contender.off_by),
            None if contender.top1 is None else Quantity(contender.top1 * 100, "%"),
        ),
    )


def _open_engines(
    config: BenchmarkConfig,
    kinds: Sequence[EngineKind],
    precisions: Sequence[Precision],
    stack: ExitStack,
    notes: list[str],
) -> Iterator[Contender]:
    """Yields the engines that open and give the golden outputs. Adds a note for each of the others."""
    bundle = config.bundle
    options = EngineOptions(bundle, max(BATCH_SIZES), config.threads)
    for kind in kinds:
        for precision in precisions:
            if precision not in bundle.manifest.artefacts or precision not in kind.precisions:
                continue
            try:
                (engine,) = kind.open(options, precision, lambda step: None)
                stack.callback(engine.close)
                verify_engine(engine, bundle)
            except (EngineUnavailable, EngineFailed, BundleError) as error:
                notes.append(f"Not measured: {kind.name}, {precision}: {error}.")
                continue
            arithmetic: Arithmetic = "bf16" if engine.info.bf16 else precision
            yield _contender(kind.name, precision, partial(_probabilities, engine), config, arithmetic)


def _probabilities(engine: Engine, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return engine.run(pixels).probabilities


def _open_torch(config: BenchmarkConfig) -> Iterator[Contender]:
    """The network in PyTorch, on the card, in the floats that the bundle has graphs of."""
    for precision in GPU_PRECISIONS[:2]:
        if precision in config.bundle.manifest.artefacts:
            for compiled, name in ((False, "torch eager"), (True, "torch.compile")):
                classifier = TorchClassifier(config.bundle, torch.device("cuda"), DTYPES[precision], compiled=compiled)
                check_torch(classifier, config.bundle)
                yield _contender(name, precision, classifier.run, config, precision)


def _contender(
    name: str, precision: Precision, classify: Classify, config: BenchmarkConfig, arithmetic: Arithmetic
) -> Contender:
    golden = load_golden(config.bundle)
    found = np.concatenate([classify(row[None]) for row in golden.pixels])
    off_by = float(np.abs(found - golden.probabilities["fp32"]).max())
    return Contender(name, precision, classify, off_by, _top1(classify, arithmetic, config), arithmetic)


def _top1(classify: Classify, arithmetic: Arithmetic, config: BenchmarkConfig) -> float | None:
    manifest = config.bundle.manifest
    if config.data is None:
        return next((entry.top1 for entry in manifest.accuracy if entry.precision == arithmetic), None)
    photos = list_labelled_photos(config.data, [entry.class_id for entry in manifest.classes])
    return evaluate(classify, manifest.input, photos, max(BATCH_SIZES)).top1
