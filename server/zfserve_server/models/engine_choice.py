"""Chooses the engine that serves: the wanted one, or the first that opens here and gives the golden outputs.

`source` calls it in a thread whenever a version of a model is opened.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from zfserve_engines.catalogue import ENGINE_KINDS
from zfserve_engines.contract import Engine, EngineName, EngineUnavailable
from zfserve_engines.golden import verify_engine
from zfserve_engines.kind import EngineKind
from zfserve_engines.opening import EngineOptions, Phase, Report, Step
from zfserve_engines.readings.opening import open_reading_engine
from zfserve_engines.readings.plan import ReadingEngine, ReadingPlan
from zfserve_runtime.bundle import Bundle, BundleError, Manifest, Precision, load_bundle
from zfserve_runtime.errors import EngineFailed, EngineLost

logger = logging.getLogger(__name__)

TOLERATED_LOSS = 0.01
"""The loss of top-1 accuracy, as a fraction, that the precision `auto` accepts for speed."""

WantedEngine = Literal["auto"] | EngineName
WantedPrecision = Literal["auto", "fp32", "fp16", "int8"]


@dataclass(frozen=True)
class NotTaken:
    """Describes an engine that does not serve.

    Attributes:
        engine: the name of the engine's kind.
        reason: one sentence that says why.
    """

    engine: EngineName
    reason: str


def _cannot_read(plan: ReadingPlan) -> ReadingEngine:
    raise EngineUnavailable("this server cannot read layers")


@dataclass(frozen=True, eq=False)
class EngineChoice:
    """Holds the engine that serves, warm and verified.

    Attributes:
        name: the name of the engine's kind.
        instances: the engines, at least one; each runs in its own thread.
        not_taken: the other kinds, in `auto`'s order; empty where the engine was wanted by name.
        reopen: opens another engine like them, in place of one that hangs. Blocks. None on a GPU, because the hanging
            engine may occupy the GPU for ever.
        open_reading: opens an engine that reads layers of the same bundle. Blocks. Raises EngineUnavailable,
            BundleError or EngineFailed.
    """

    name: EngineName
    instances: Sequence[Engine]
    not_taken: tuple[NotTaken, ...] = ()
    reopen: Callable[[], Engine] | None = None
    open_reading: Callable[[ReadingPlan], ReadingEngine] = _cannot_read

    @property
    def on_gpu(self) -> bool:
        """True where the engine computes on an NVIDIA GPU."""
        return ENGINE_KINDS[self.name].on_gpu

    def close(self) -> None:
        """Closes every instance."""
        for engine in self.instances:
            engine.close()


def choose_engine(
    wanted: WantedEngine,
    precision: WantedPrecision,
    options: EngineOptions,
    report: Report,
    kinds: Mapping[EngineName, EngineKind] = ENGINE_KINDS,
) -> EngineChoice:
    """Opens the engine that is `wanted`; for `auto` the first of `kinds` that can serve. Blocks.

    Raises:
        EngineUnavailable: the wanted engine cannot serve, or no engine can; the message says why.
        EngineLost: a device was lost on the way. Only a new process can use it again.
    """

    def open_verified(kind: EngineKind, options: EngineOptions = options, report: Report = report) -> list[Engine]:
        chosen = choose_precision(precision, options.bundle.manifest, kind)
        return _open_verified(kind.name, partial(kind.open, options, chosen), options.bundle, report)

    def try_kind(kind: EngineKind) -> list[Engine]:
        if reason := kind.skip_reason(choose_precision(precision, options.bundle.manifest, kind)):
            raise EngineUnavailable(reason)
        return open_verified(kind)

    def reopen(name: EngineName) -> Engine:
        # The folder may hold another bundle by now. Its engine would pass the check, by that bundle's golden outputs.
        try:
            same = load_bundle(options.bundle.folder).manifest == options.bundle.manifest
        except BundleError as error:
            raise EngineUnavailable(str(error)) from error
        if not same:
            raise EngineUnavailable(f"{options.bundle.folder} holds another bundle than the one that was served")
        alone = replace(options, instances=1, threads=options.threads_per_instance)
        (engine,) = open_verified(kinds[name], alone, lambda step: None)
        return engine

    def open_reading(choice: EngineChoice, plan: ReadingPlan) -> ReadingEngine:
        return open_reading_engine(options.bundle, plan, like=choice.name, info=choice.instances[0].info)

    try:
        choice = _choose_best(kinds, try_kind) if wanted == "auto" else _taken(wanted, open_verified(kinds[wanted]))
        choice = replace(choice, open_reading=partial(open_reading, choice))
        return choice if choice.on_gpu else replace(choice, reopen=partial(reopen, choice.name))
    except EngineUnavailable as error:
        if wanted == "auto":
            raise
        raise EngineUnavailable(f"the engine {wanted} cannot serve: {error}") from error


def _choose_best(
    kinds: Mapping[EngineName, EngineKind], open_verified: Callable[[EngineKind], list[Engine]]
) -> EngineChoice:
    """Returns the first kind that can serve, with the reason for every other kind."""
    taken: EngineChoice | None = None
    not_taken: list[NotTaken] = []
    for name, kind in kinds.items():
        if kind.by_name_only is not None:
            reason = kind.by_name_only
        elif taken is not None:
            reason = f"{taken.name} comes before it and can serve"
        else:
            try:
                taken = _taken(name, open_verified(kind))
                continue
            except EngineUnavailable as error:
                reason = str(error)
        logger.info("engine not taken", extra={"engine": name, "reason": reason})
        not_taken.append(NotTaken(name, reason))
    if taken is None:
        raise EngineUnavailable(
            f"no engine can serve: {'; '.join(f'{entry.engine}: {entry.reason}' for entry in not_taken)}"
        )
    return replace(taken, not_taken=tuple(not_taken))


def _taken(name: EngineName, engines: list[Engine]) -> EngineChoice:
    """Logs and returns the choice of that kind."""
    info = engines[0].info
    logger.info("engine taken", extra={"engine": name, "precision": info.precision, "device": info.device})
    return EngineChoice(name, engines)


def choose_precision(wanted: WantedPrecision, manifest: Manifest, kind: EngineKind) -> Precision:
    """Returns the precision of the graph that `wanted` means for an engine of that kind.

    `auto` takes fp16 on a GPU, unless the bundle's own figures show that it costs more than `TOLERATED_LOSS`: export
    held the fp16 graph to a tolerance on real photos. On a CPU it takes int8 only where the figures show that it costs
    no more than that. Otherwise it takes fp32.
    """
    if wanted == "int8":
        return "int8-symmetric" if kind.compiled else "int8"
    if wanted != "auto":
        return wanted
    fast: Precision = "fp16" if kind.on_gpu else "int8"
    if fast not in kind.precisions or fast not in manifest.artefacts:
        return "fp32"
    top1 = {figure.precision: figure.top1 for figure in manifest.accuracy}
    if {"fp32", fast} <= top1.keys():
        return fast if top1["fp32"] - top1[fast] <= TOLERATED_LOSS else "fp32"
    return "fp16" if fast == "fp16" else "fp32"


def _open_verified(
    name: EngineName, open_engines: Callable[[Report], list[Engine]], bundle: Bundle, report: Report
) -> list[Engine]:
    """Opens engines and checks that they give the golden outputs.

    Raises:
        EngineUnavailable: the engines cannot serve, for any reason except a lost device.
        EngineLost: a device was lost.
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
        # A broken library must not keep the next engine from serving.
        logger.exception("the engine cannot be opened", extra={"engine": name})
        raise EngineUnavailable(
            f"it failed with an unexpected error ({type(error).__name__}); the log says more"
        ) from error
