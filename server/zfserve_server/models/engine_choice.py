"""Which engine serves: the one asked for, or the best of those that open here and agree with the golden inputs.

Run once, in a thread of its own, while the server starts; built by `serve_command`, called by `app`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from zfserve_engines.catalogue import OPENERS, EngineName, Opener, Opening, Phase, Report, Step
from zfserve_engines.contract import Engine, EngineUnavailable
from zfserve_engines.golden import verify_engine
from zfserve_runtime.bundle import Bundle, BundleError, Manifest, Precision, load_bundle
from zfserve_runtime.cpus import multiplies_bytes
from zfserve_runtime.errors import EngineFailed, EngineLost

logger = logging.getLogger(__name__)

PREFERENCE: tuple[EngineName, ...] = ("tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda", "openvino", "onnx-cpu")
"""What `auto` tries, the best first: engines tuned on the card they run on, engines compiled for its kind, ONNX
Runtime on the card, the CPU."""

BY_NAME: tuple[EngineName, ...] = ("openvino-bf16",)
"""What `auto` leaves out: the bundle has no figures of what rounding everything to 8 bits costs."""

ON_CPU: frozenset[EngineName] = frozenset(("openvino", "openvino-bf16", "onnx-cpu"))
COMPILED: frozenset[EngineName] = frozenset(("tensorrt", "tensorrt-rtx", "onnx-tensorrt"))
"""TensorRT compiles symmetric int8 only."""

TOLERATED_LOSS = 0.01
"""Share of top-1 accuracy that the precision `auto` gives up for speed."""

WantedEngine = Literal["auto"] | EngineName
WantedPrecision = Literal["auto", "fp32", "fp16", "int8"]


@dataclass(frozen=True)
class NotTaken:
    """Why `engine` does not serve, in one sentence."""

    engine: EngineName
    reason: str


@dataclass(frozen=True, eq=False)
class EngineChoice:
    """The engine that serves, warm and verified.

    Attributes:
        instances: at least one; each takes a thread of its own.
        not_taken: in the order of preference; empty where the engine was asked for by name.
        reopen: opens one more like them, in place of one that hangs; blocks. None on a GPU, which it may hold for good.
    """

    name: EngineName
    instances: Sequence[Engine]
    not_taken: tuple[NotTaken, ...] = ()
    reopen: Callable[[], Engine] | None = None

    def close(self) -> None:
        for engine in self.instances:
            engine.close()


def choose_engine(
    wanted: WantedEngine,
    precision: WantedPrecision,
    opening: Opening,
    report: Report,
    openers: Mapping[EngineName, Opener] = OPENERS,
    cpu_multiplies_bytes: Callable[[], bool] = multiplies_bytes,
) -> EngineChoice:
    """Open the engine that is `wanted`; for `auto` the first of `PREFERENCE` that can serve. Blocks.

    OpenVINO is a fifth quicker than ONNX Runtime at int8 where the CPU multiplies bytes, and no quicker elsewhere
    (docs/tensorrt.md), so that is where `auto` tries it.

    Raises:
        EngineUnavailable: the engine that was asked for cannot serve, or none can; says why.
        EngineLost: a device failed for good on the way, so that only a new process can tell what it can do.
    """

    def open_verified(name: EngineName, opening: Opening = opening, report: Report = report) -> list[Engine]:
        chosen = choose_precision(precision, opening.bundle.manifest, name)
        return _open_verified(name, partial(openers[name], opening, chosen), opening.bundle, report)

    def open_worthwhile(name: EngineName) -> list[Engine]:
        if name == "openvino":
            if choose_precision(precision, opening.bundle.manifest, name) != "int8":
                raise EngineUnavailable(
                    "auto takes it for int8 only, being no faster in floats; it can be asked for by name"
                )
            if not cpu_multiplies_bytes():
                raise EngineUnavailable(
                    "auto takes it on CPUs with VNNI only, being no faster on others; it can be asked for by name"
                )
        return open_verified(name)

    def reopen(name: EngineName) -> Engine:
        # What lies in the folder by now may be another network, which its own golden outputs would prove.
        try:
            same = load_bundle(opening.bundle.folder).manifest == opening.bundle.manifest
        except BundleError as error:
            raise EngineUnavailable(str(error)) from error
        if not same:
            raise EngineUnavailable(f"{opening.bundle.folder} holds another bundle than the one that was served")
        alone = replace(opening, instances=1, threads=opening.threads_each)
        (engine,) = open_verified(name, alone, lambda step: None)
        return engine

    try:
        choice = _choose_best(open_worthwhile) if wanted == "auto" else _taken(wanted, open_verified(wanted))
        return replace(choice, reopen=partial(reopen, choice.name)) if choice.name in ON_CPU else choice
    except EngineUnavailable as error:
        if wanted == "auto":
            raise
        raise EngineUnavailable(f"the engine {wanted} cannot serve: {error}") from error


def _choose_best(open_verified: Callable[[EngineName], list[Engine]]) -> EngineChoice:
    not_taken: list[NotTaken] = []

    def leave(name: EngineName, reason: str) -> None:
        logger.info("engine not taken", extra={"engine": name, "reason": reason})
        not_taken.append(NotTaken(name, reason))

    for place, name in enumerate(PREFERENCE):
        try:
            choice = _taken(name, open_verified(name))
        except EngineUnavailable as error:
            leave(name, str(error))
            continue
        for other in PREFERENCE[place + 1 :]:
            leave(other, f"{name} comes before it and can serve")
        for other in BY_NAME:
            leave(other, f"auto leaves it out, as it rounds every number to 8 bits; --engine {other} asks for it")
        return replace(choice, not_taken=tuple(not_taken))
    raise EngineUnavailable(
        f"no engine can serve: {'; '.join(f'{entry.engine}: {entry.reason}' for entry in not_taken)}"
    )


def _taken(name: EngineName, engines: list[Engine]) -> EngineChoice:
    info = engines[0].info
    logger.info("engine taken", extra={"engine": name, "precision": info.precision, "device": info.device})
    return EngineChoice(name, engines)


def choose_precision(wanted: WantedPrecision, manifest: Manifest, engine: EngineName) -> Precision:
    """What `wanted` means for `engine`. `auto` takes int8 on a CPU, where the bundle's own figures show that it costs
    little, and fp16 on a card, unless they show that it costs more: export held it to a tolerance on real photos."""
    if wanted == "int8":
        return "int8-symmetric" if engine in COMPILED else "int8"
    if wanted != "auto":
        return wanted
    if engine == "openvino-bf16":
        return "fp32"
    fast: Precision = "int8" if engine in ON_CPU else "fp16"
    if fast not in manifest.artefacts:
        return "fp32"
    top1 = {figure.precision: figure.top1 for figure in manifest.accuracy}
    if {"fp32", fast} <= top1.keys():
        return fast if top1["fp32"] - top1[fast] <= TOLERATED_LOSS else "fp32"
    return "fp16" if fast == "fp16" else "fp32"


def _open_verified(
    name: EngineName, open_engines: Callable[[Report], list[Engine]], bundle: Bundle, report: Report
) -> list[Engine]:
    """Engines whose golden outputs are those recorded.

    Raises:
        EngineUnavailable: whatever keeps them from serving, except EngineLost, which is raised as it is.
    """
    try:
        with ExitStack() as stack:
            engines = open_engines(report)
            for engine in engines:
                stack.callback(engine.close)
            report(Step(name, Phase.VERIFYING))
            for engine in engines:
                verify_engine(engine, bundle)
            stack.pop_all()
            return engines
    except (EngineUnavailable, EngineLost):
        raise
    except (EngineFailed, BundleError) as error:
        raise EngineUnavailable(str(error)) from error
    except Exception as error:
        # A foreign library that breaks must not keep the next engine from serving.
        logger.exception("the engine cannot be opened", extra={"engine": name})
        raise EngineUnavailable(
            f"it failed in a way nobody foresaw ({type(error).__name__}); the log says more"
        ) from error
