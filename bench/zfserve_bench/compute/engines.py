"""Benchmark `engines`: every available engine in every precision and batch size, beside the peaks of the machine.

An engine takes pixels in memory and returns probabilities in memory. Its outputs are compared with the golden ones. Its
speed, a large matrix product and a large copy are measured in the same rounds and compared within a round.
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
from zfserve_engines.contract import Engine
from zfserve_engines.cuda.gpu import detect_gpu
from zfserve_engines.golden import load_golden
from zfserve_engines.kind import EngineKind
from zfserve_engines.opening import EngineOptions
from zfserve_export.evaluation import evaluate
from zfserve_export.photos import list_labelled_photos
from zfserve_runtime.bundle import Precision

from zfserve_bench.compute.gpu import DTYPES, TorchClassifier, check_torch, open_verified, without_tf32
from zfserve_bench.compute.graph_cost import GraphCost, count_cost
from zfserve_bench.compute.peaks import Arithmetic, CpuPeaks, GpuPeaks, Peaks
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images
from zfserve_bench.reports.findings import Finding, Quantity, Report
from zfserve_bench.timing import times_per_s

BATCH_SIZES = (1, 8, 32)

GPU_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-symmetric")

Classify = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Turns pixels, uint8 (N, H, W, 3), into probabilities, float32 (N, K)."""


@dataclass(frozen=True, eq=False)
class Contender:
    """Holds an engine, or PyTorch, that runs the network.

    Attributes:
        precision: the precision of the graph.
        arithmetic: the arithmetic that it computes in. For a float graph it may be less exact than the graph.
        off_by: the largest difference of a probability to the recorded fp32 outputs, on the golden inputs.
        top1: the share of photos that it classifies correctly; None if it was not measured.
    """

    name: str
    precision: Precision
    classify: Classify
    off_by: float
    top1: float | None
    arithmetic: Arithmetic


@dataclass(frozen=True)
class Round:
    """Holds the measurements of one round.

    Attributes:
        batch_s: the seconds of a batch, by contender (its index in the list) and batch size.
        flops_per_s: the peak of a large matrix product, by arithmetic.
        bytes_per_s: the peak of a large copy.
    """

    batch_s: Mapping[tuple[int, int], float]
    flops_per_s: Mapping[Arithmetic, float]
    bytes_per_s: float


def measure_engines(config: BenchmarkConfig) -> Report:
    notes = [
        "Roofline: the batch's operations at the speed of a large matrix product, or its weights, photos and outputs "
        "at the speed of a large copy, whichever takes longer. Compute and memory are the shares of these two.",
        "Off by: the largest difference of a probability to the recorded fp32 outputs. Top-1: "
        + ("of the graph, as measured at export." if config.data is None else f"measured on {config.data.name}."),
    ]
    findings: list[Finding] = []
    with closing(CpuPeaks(config.threads)) as peaks:
        findings += _measure(config, peaks, notes, on_gpu=False)
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
    """Returns why nothing can be measured on a GPU; None if it can."""
    gpu = detect_gpu()
    if gpu is None:
        return "there is no NVIDIA GPU here"
    if not torch.cuda.is_available():
        return f"the peaks of the {gpu.name} are measured with PyTorch, and this PyTorch has no CUDA"
    return None


def _measure(config: BenchmarkConfig, peaks: Peaks, notes: list[str], *, on_gpu: bool) -> list[Finding]:
    costs = {precision: count_cost(config.bundle.artefact(precision)) for precision in config.bundle.manifest.artefacts}
    precisions = GPU_PRECISIONS if on_gpu else config.precisions
    with ExitStack() as stack:
        contenders = [*_open_engines(config, engine_kinds(on_gpu=on_gpu), precisions, stack, notes)]
        contenders += _open_torch(config) if on_gpu else ()
        rounds = take_rounds(contenders, peaks, random_images(config.bundle.manifest.input), config)
    return [
        make_finding(index, contender, size, costs[contender.precision], rounds)
        for index, contender in enumerate(contenders)
        for size in BATCH_SIZES
    ]


def take_rounds(
    contenders: Sequence[Contender], peaks: Peaks, images: npt.NDArray[np.uint8], config: BenchmarkConfig
) -> list[Round]:
    """Measures all contenders and both peaks in each round, one after the other."""
    seconds = config.effort.try_s
    batches = {size: np.resize(images, (size, *images.shape[1:])) for size in BATCH_SIZES}
    arithmetics = {contender.arithmetic for contender in contenders}
    return [
        Round(
            batch_s={
                (index, size): 1 / times_per_s(partial(contender.classify, batch), seconds)
                for size, batch in batches.items()
                for index, contender in enumerate(contenders)
            },
            flops_per_s={each: peaks.flops_per_s(each, seconds) for each in sorted(arithmetics)},
            bytes_per_s=peaks.bytes_per_s(seconds),
        )
        for _ in range(config.effort.rounds)
    ]


def make_finding(index: int, contender: Contender, size: int, cost: GraphCost, rounds: Sequence[Round]) -> Finding:
    """Returns the finding of one contender and batch size: medians over the rounds."""

    def median(of: Callable[[Round], float]) -> float:
        return statistics.median(map(of, rounds))

    def seconds(one: Round) -> float:
        return one.batch_s[index, size]

    def flops_per_s(one: Round) -> float:
        return one.flops_per_s[contender.arithmetic]

    def min_s(one: Round) -> float:
        return cost.min_s(size, flops_per_s(one), one.bytes_per_s)

    return Finding(
        f"{contender.name}, {contender.precision}, batch {size}",
        Quantity(median(lambda one: size / seconds(one))),
        Quantity(median(lambda one: size / min_s(one))),
        Quantity(median(lambda one: min_s(one) / seconds(one))),
        details=(
            Quantity(median(seconds) * 1e3),
            Quantity(median(lambda one: cost.batch_flops(size) / flops_per_s(one) / seconds(one))),
            Quantity(median(lambda one: cost.batch_bytes(size) / one.bytes_per_s / seconds(one))),
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
    """Yields the engines that open and give the golden outputs. For each other engine, adds a note with the reason."""
    bundle = config.bundle
    options = EngineOptions(bundle, max(BATCH_SIZES), config.threads)
    for kind in kinds:
        for precision in precisions:
            if precision not in bundle.manifest.artefacts or precision not in kind.precisions:
                continue
            if (engine := open_verified(kind, options, precision, stack, notes)) is None:
                continue
            arithmetic: Arithmetic = "bf16" if engine.info.bf16 else precision
            yield _contender(kind.name, precision, partial(_probabilities, engine), config, arithmetic)


def _probabilities(engine: Engine, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return engine.run(pixels).probabilities


def _open_torch(config: BenchmarkConfig) -> Iterator[Contender]:
    """Yields the network in PyTorch on the GPU, in the float precisions of the bundle."""
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
