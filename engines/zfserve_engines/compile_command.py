"""Runs the command `zfserve compile`, which builds a TensorRT engine of a bundle and keeps it in an engine store."""

import argparse
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from zfserve_runtime.bundle import DEFAULT_MODEL, Bundle, BundleError, Precision, load_bundle
from zfserve_runtime.grpc.shutdown import sigterm_as_exit
from zfserve_runtime.telemetry.logs import configure_logging

from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.batch_sizes import BatchProfile
from zfserve_engines.cuda.gpu import detect_gpu
from zfserve_engines.store.identity import EngineRequest, Host, request_engine
from zfserve_engines.store.record import StoredEngine
from zfserve_engines.store.store import EngineStore
from zfserve_engines.tensorrt.build_progress import OnProgress
from zfserve_engines.tensorrt.build_summary import DYNAMIC, BuildSummary, TensorSummary
from zfserve_engines.tensorrt.builder import BuildFailed, BuiltEngine, build_engine, check_targets
from zfserve_engines.tensorrt.library import Library, load_library
from zfserve_engines.tensorrt.settings import BuildSettings, TensorRTLibrary

UNUSABLE, NOT_INSTALLED, INTERRUPTED = 2, 4, 130

_GRAPHS: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8-symmetric"}
"""The graph that each value of `--precision` compiles. TensorRT takes int8 with zero points of 0 only."""
_FLAGS: dict[Precision, str] = {"fp16": " --fp16", "int8-symmetric": " --int8 --calibration PHOTOS"}
"""The flags of `zfserve export` that write each graph."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command to `parser`."""
    parser.add_argument(
        "bundle",
        type=Path,
        nargs="?",
        default=DEFAULT_MODEL,
        help=f"folder of a bundle or a model (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--runtime",
        choices=get_args(TensorRTLibrary),
        default="tensorrt-rtx",
        help="tensorrt builds on the GPU that runs the engine, tensorrt-rtx needs no GPU (default: tensorrt-rtx)",
    )
    parser.add_argument("--precision", choices=tuple(_GRAPHS), default="fp32", help="graph to compile (default: fp32)")
    parser.add_argument(
        "--batches",
        type=_numbers,
        default=BuildSettings.batches,
        metavar="N,N,...",
        help="batch sizes to tune for, each with one optimisation profile; the last is the largest batch "
        f"(default: {','.join(map(str, BuildSettings.batches))})",
    )
    parser.add_argument(
        "--compute-capability",
        type=_names,
        default=(),
        metavar="X.Y,...",
        help="GPUs to build for, such as 8.6,8.9 (default: this machine's GPU; without a GPU, all GPUs from Ampere on)",
    )
    parser.add_argument(
        "--workspace", type=_bytes, metavar="BYTES", help="largest scratch memory on the GPU, such as 512M or 2G"
    )
    parser.add_argument(
        "--optimization-level",
        type=int,
        default=BuildSettings.optimization_level,
        metavar="0-5",
        help=f"a higher level builds longer and may run faster (default: {BuildSettings.optimization_level})",
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="round inputs of fp32 multiplications to 11 bits, which is faster but less exact",
    )
    parser.add_argument(
        "--engine-cache", type=Path, metavar="DIR", help="folder of engines (default: `engines` in the bundle)"
    )
    parser.add_argument("--verbose", action="store_true", help="show TensorRT's log")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    messages = Console(stderr=True)
    _configure_logging(verbose=arguments.verbose)
    try:
        library = load_library(arguments.runtime)
    except EngineUnavailable as error:
        return _fail(messages, str(error), NOT_INSTALLED)
    try:
        bundle = load_bundle(arguments.bundle)
        request = make_request(bundle, read_settings(arguments, bundle), library)
        store = EngineStore.of(bundle, arguments.engine_cache)
        with sigterm_as_exit(), _progress_bar(messages) as on_progress:
            engine, built = _find_or_build(store, bundle, request, on_progress)
    except (BuildFailed, BundleError, EngineUnavailable, ValueError) as error:
        return _fail(messages, str(error), UNUSABLE)
    except KeyboardInterrupt:
        return _fail(messages, "interrupted; no engine was written", INTERRUPTED)
    print_summary(Console(), engine, built=built)
    return 0


def read_settings(arguments: argparse.Namespace, bundle: Bundle) -> BuildSettings:
    """Returns the settings that the arguments give.

    Raises:
        ValueError: a setting is out of range.
        BundleError: the bundle holds no graph of that precision.
    """
    precision = _GRAPHS[arguments.precision]
    if precision not in bundle.manifest.artefacts:
        held = ", ".join(bundle.manifest.artefacts)
        raise BundleError(
            f"{bundle.folder} holds no graph for {arguments.precision} engines, only {held}; "
            f"export it again with that graph: zfserve export WEIGHTS{_FLAGS.get(precision, '')}"
        )
    return BuildSettings(
        library=arguments.runtime,
        precision=precision,
        batches=arguments.batches,
        compute_capabilities=arguments.compute_capability,
        workspace_bytes=arguments.workspace,
        optimization_level=arguments.optimization_level,
        tf32=arguments.tf32,
    )


def make_request(bundle: Bundle, settings: BuildSettings, library: Library) -> EngineRequest:
    """Returns the request for an engine.

    If the settings name no GPUs, the request is for the GPU of this machine. If this machine has no GPU, the request is
    for all default targets of the library.

    Raises:
        BuildFailed: the library cannot build for a compute capability.
        EngineUnavailable: the library needs a GPU, and this machine has none.
    """
    host = Host.here(detect_gpu())
    if not settings.compute_capabilities and host.gpu is None:
        settings = replace(settings, compute_capabilities=library.default_targets)
    request = request_engine(bundle, settings, library.version, host)
    check_targets(library, request.compute_capabilities)
    return request


def print_summary(console: Console, engine: StoredEngine, *, built: bool) -> None:
    """Prints the layers, precisions, size and build time of an engine, and its file."""
    record, summary = engine.record, BuildSummary.from_json(engine.record.summary)
    layers = Table(box=SIMPLE_HEAD)
    layers.add_column("layers that compute")
    layers.add_column("precision")
    layers.add_column("number", justify="right")
    for (kind, precision), count in summary.computing_layers().items():
        layers.add_row(kind.lower().replace("_", " "), precision, str(count))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_row("layers", f"{len(summary.layers)} as parsed")
    for role, tensors in (("input", summary.inputs), ("output", summary.outputs)):
        for tensor in tensors:
            facts.add_row(role, _describe(tensor))
    facts.add_row("batches", ", ".join(map(_describe_profile, summary.profiles)))
    facts.add_row("for", ", ".join(summary.compute_capabilities) or "this machine's GPU")
    facts.add_row("size", f"{summary.plan_bytes / 1e6:.1f} MB")
    if built:
        peak = summary.peak_memory_bytes
        memory = f", with at most {peak / 1e6:,.0f} MB of memory" if peak is not None else ""
        facts.add_row("built", f"in {summary.seconds:.1f} s{memory}")
    else:
        facts.add_row("built", f"{record.created_at:%Y-%m-%d %H:%M} UTC; verified now, and nothing was built")
    console.print(
        f"{record.model} {record.version}, {summary.precision}, {summary.library}", style="bold", highlight=False
    )
    console.print(layers, facts, sep="\n")
    console.print(f"engine   {escape(str(engine.file))}", highlight=False, soft_wrap=True)


def _find_or_build(
    store: EngineStore, bundle: Bundle, request: EngineRequest, on_progress: OnProgress
) -> tuple[StoredEngine, bool]:
    """Returns an engine, and True if it was built just now."""
    settings, built = request.build_settings, False

    def build(timing_cache: bytes) -> BuiltEngine:
        nonlocal built
        engine = build_engine(bundle.artefact(settings.precision), settings, on_progress, timing_cache)
        built = True
        return engine

    return store.find_or_build(request, build, on_progress), built


def _configure_logging(*, verbose: bool) -> None:
    configure_logging("console", logging.DEBUG if verbose else logging.WARNING)
    # An error that TensorRT logs also ends the build, so the command's own message already contains it.
    logging.getLogger("zfserve_engines.tensorrt.library").setLevel(logging.NOTSET if verbose else logging.CRITICAL)


@contextmanager
def _progress_bar(console: Console) -> Iterator[OnProgress]:
    """Shows the progress of a build while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("reading the graph", total=None)

        def show(phase: str, done: int, total: int) -> None:
            progress.update(bar, description=phase[:1].lower() + phase[1:], completed=done, total=total)

        yield show


def _describe(tensor: TensorSummary) -> str:
    sizes = ", ".join("N" if size == DYNAMIC else str(size) for size in tensor.shape)
    return f"{tensor.name}, {tensor.dtype} ({sizes})"


def _describe_profile(profile: BatchProfile) -> str:
    smallest, largest = profile.smallest, profile.largest
    return str(largest) if smallest == largest else f"{smallest} to {largest}"


def _fail(messages: Console, sentence: str, status: int) -> int:
    heading = "" if status == INTERRUPTED else "[red]error:[/] "
    messages.print(f"{heading}{escape(sentence)}", highlight=False, soft_wrap=True)
    return status


def _names(text: str) -> tuple[str, ...]:
    """Splits `text` at its commas, and drops repetitions."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, such as 1,8,32") from error


def _bytes(text: str) -> int:
    """Parses a size such as 512M or 2G to bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)(?:iB|B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 512M or 2G")
    return int(float(match[1]) * _UNITS[match[2]])
