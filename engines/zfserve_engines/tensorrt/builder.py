"""Builds a TensorRT engine from an ONNX graph in three steps: parse, configure, build. The engine store calls it.

The network is strongly typed, which means that the graph fixes the precision of each operation. So the engine computes
in the precisions that were measured at export, and fp32, fp16 and int8 are all built in the same way.
"""

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zfserve_engines.cuda.batch_sizes import BatchProfile, plan_profiles
from zfserve_engines.tensorrt.build_progress import OnProgress, make_monitor
from zfserve_engines.tensorrt.build_summary import (
    DYNAMIC,
    BuildSummary,
    peak_memory_bytes,
    read_network,
)
from zfserve_engines.tensorrt.library import Library, load_library
from zfserve_engines.tensorrt.settings import BuildSettings


class BuildFailed(RuntimeError):
    """TensorRT did not build the graph. The message says in one sentence which step failed and why."""


@dataclass(frozen=True, eq=False)
class BuiltEngine:
    """Holds a compiled engine that is not yet on disk.

    Attributes:
        plan: the bytes that a TensorRT runtime of the same version deserialises.
        summary: describes what was built.
        timing_cache: the timings that the next build on this GPU reuses. Empty with TensorRT for RTX, which measures no
            timings.
    """

    plan: bytes
    summary: BuildSummary
    timing_cache: bytes = b""


def build_engine(
    graph: Path, settings: BuildSettings, on_progress: OnProgress = lambda *step: None, timing_cache: bytes = b""
) -> BuiltEngine:
    """Builds the engine of an ONNX file. Blocks for seconds to minutes.

    The build runs in another thread. TensorRT calls Python between its steps, and a KeyboardInterrupt in such a call
    would unwind TensorRT's frames. With this thread, the interrupt reaches the caller, which waits, and the build ends
    at its next step.

    Args:
        graph: the ONNX file.
        settings: the settings of the build. If they name no compute capabilities, `tensorrt` builds for the GPU of this
            machine, and `tensorrt-rtx` builds for every GPU from Ampere on.
        on_progress: receives the progress, in the thread of the build. An exception that it raises stops the build and
            is raised here.
        timing_cache: the timing cache of an earlier build on this GPU by this library.

    Raises:
        EngineUnavailable: the library is not installed.
        BuildFailed: the library cannot read the graph, cannot build for a target, or failed.
    """
    library = load_library(settings.library)
    monitor = make_monitor(library.module, on_progress)
    with ThreadPoolExecutor(1, "tensorrt-build") as thread:
        build = thread.submit(_build, library, graph, settings, monitor, timing_cache)
        try:
            return build.result()
        except BaseException:
            monitor.stop()
            raise


def _build(library: Library, graph: Path, settings: BuildSettings, monitor: Any, timing_cache: bytes) -> BuiltEngine:
    started = time.monotonic()
    try:
        builder = library.module.Builder(library.logger)
    except TypeError as error:  # without a GPU, TensorRT returns null, which pybind11 turns into a TypeError
        raise BuildFailed(f"{library} cannot build here: it finds no NVIDIA GPU with a suitable driver") from error
    network = builder.create_network(1 << int(library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(library, network, graph)
    profiles = plan_profiles(settings.batches)
    config = configure(library, builder, settings)
    config.progress_monitor = monitor
    for profile in profiles:
        config.add_optimization_profile(_make_profile(builder, network, profile))
    if library.kind == "tensorrt":
        for timings in (timing_cache, b""):
            if config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False):
                break  # TensorRT refuses timings of another GPU, so the second try is an empty cache
    facts = read_network(network)
    with library.logger.collect_errors() as errors:
        plan = builder.build_serialized_network(network, config)
    if monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        raise BuildFailed(_failure_sentence(library, graph, settings, errors))
    summary = BuildSummary(
        library=str(library),
        precision=settings.precision,
        compute_capabilities=_targets(library, settings),
        inputs=facts.inputs,
        outputs=facts.outputs,
        profiles=profiles,
        layers=facts.layers,
        plan_bytes=plan.nbytes,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(),
    )
    measured = bytes(config.get_timing_cache().serialize()) if library.kind == "tensorrt" else b""
    return BuiltEngine(bytes(plan), summary, measured)


def parse(library: Library, network: Any, graph: Path) -> None:
    """Parses an ONNX file into `network`.

    Raises:
        BuildFailed: the file is missing, is not an ONNX graph, or has an operator that the library does not support.
    """
    parser = library.module.OnnxParser(network, library.logger)
    if parser.parse_from_file(str(graph)):
        return
    error = parser.get_error(0)
    if operator := error.node_operator():
        # The description of some checks is only the condition that failed, such as "false".
        why = f" ({error.desc()})" if " " in error.desc() else ""
        raise BuildFailed(
            f"{library} does not support the operator {operator} of {graph.name} in the node {error.node_name()}{why}"
        )
    if not graph.is_file():
        raise BuildFailed(f"there is no graph at {graph}")
    raise BuildFailed(f"{graph.name} is not an ONNX graph that {library} can read; export the bundle again")


def configure(library: Library, builder: Any, settings: BuildSettings) -> Any:
    """Returns an `IBuilderConfig` without profiles, timing cache and progress monitor.

    The libraries differ only as listed here. The code for it is in this function, in `_build` and in `Library.targets`:

    - `tensorrt` builds for the GPU of this machine, `tensorrt-rtx` builds for compute capabilities;
    - timing caches have no effect in `tensorrt-rtx`, which chooses kernels on the GPU that runs the engine;
    - TensorRT 10 also has weakly typed networks, so it needs the flag STRONGLY_TYPED; TensorRT 11 and TensorRT for RTX
      accept the flag.

    Raises:
        BuildFailed: the library cannot build for a compute capability.
    """
    module, config = library.module, builder.create_builder_config()
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if not settings.tf32:
        config.clear_flag(module.BuilderFlag.TF32)  # on by default
    if library.kind == "tensorrt-rtx":
        targets = _targets(library, settings)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            member = module.ComputeCapability.__members__["SM" + target.replace(".", "")]
            if not config.set_compute_capability(member, index):
                raise BuildFailed(f"{library} refuses to build for compute capability {target}")
    return config


def check_targets(library: Library, compute_capabilities: Sequence[str]) -> None:
    """Raises BuildFailed if the library cannot build for one of `compute_capabilities`. `tensorrt` is not checked."""
    if library.kind == "tensorrt-rtx" and (unknown := [x for x in compute_capabilities if x not in library.targets]):
        raise BuildFailed(
            f"{library} cannot build for compute capability {', '.join(unknown)}, only for {', '.join(library.targets)}"
        )


def _targets(library: Library, settings: BuildSettings) -> tuple[str, ...]:
    """Returns the compute capabilities to build for. Raises BuildFailed if the library cannot build for one of them."""
    check_targets(library, settings.compute_capabilities)
    return settings.compute_capabilities or library.default_targets


def _make_profile(builder: Any, network: Any, profile: BatchProfile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tensor.shape
        if batch != DYNAMIC:
            raise BuildFailed(
                f"the input {tensor.name} has a fixed batch of {batch}, which cannot be compiled; serve it with "
                "another engine"
            )
        smallest, largest = ((size, *rest) for size in (profile.smallest, profile.largest))
        made.set_shape(tensor.name, min=smallest, opt=largest, max=largest)
    return made


_LACKS_WORKSPACE = re.compile(r"OutOfMemory|insufficient workspace|could not find any implementation", re.IGNORECASE)
_SOURCE_LOCATIONS = re.compile(
    r"\[[\w.]+:\d+: \w+\] |\[[\w.]+::\w+::\d+\] | ?In \w+ at [\w./]+:\d+|\w+::\w+: |Error Code \d+: "
)


def _failure_sentence(library: Library, graph: Path, settings: BuildSettings, messages: Sequence[str]) -> str:
    """Returns the sentence for an error, from the `messages` that TensorRT logged."""
    reason = "; ".join(messages) or "the library gives no reason"
    if settings.workspace_bytes is not None and _LACKS_WORKSPACE.search(reason):
        return (
            f"{library} cannot build {graph.name} with a workspace of {settings.workspace_bytes:,} bytes; "
            f"allow more with --workspace ({_SOURCE_LOCATIONS.sub('', reason)})"
        )
    return f"{library} cannot build {graph.name}: {_SOURCE_LOCATIONS.sub('', reason)}"
