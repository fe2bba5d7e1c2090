"""Defines the options that every opener of an engine takes, and the steps that it reports.

Each engine's opener, the server's choice of engine, `zfserve evaluate` and the benchmarks use it.
"""

import enum
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zfserve_runtime.bundle import Bundle, Precision

from zfserve_engines.contract import Engine, EngineName

InvalidEnginePolicy = Literal["rebuild", "refuse"]
"""The policy for a compiled engine of the model that is invalid here: stale, built for another GPU, or corrupted.
`rebuild` compiles it again; `refuse` raises EngineUnavailable."""


class Phase(enum.StrEnum):
    """The phases of a service's start, in order. COMPILING is skipped where nothing has to be compiled."""

    COMPILING = enum.auto()
    LOADING = enum.auto()
    WARMING = enum.auto()
    VERIFYING = enum.auto()
    READY = enum.auto()


@dataclass(frozen=True)
class Step:
    """One step of a service's start.

    Attributes:
        engine: the kind of engine that is being opened.
        phase: the phase of the start.
        share: the fraction of the phase that is done, in [0, 1]; None where it is not known.
    """

    engine: EngineName
    phase: Phase
    share: float | None = None


Report = Callable[[Step], None]
"""Receives every step, in the opener's thread. An exception that it raises ends the opening."""


@dataclass(frozen=True)
class EngineOptions:
    """The options that are the same for every kind of engine.

    Attributes:
        bundle: the bundle whose network is run.
        max_batch_size: the largest number of photos in one run. A bundle with a fixed batch size takes that one.
        threads: the number of CPU threads that all instances may use together.
        instances: the number of engines that share the device side by side.
        cache: the folder of compiled engines; None: the folder `engines` inside the bundle.
        on_invalid: the policy for an invalid compiled engine.
    """

    bundle: Bundle
    max_batch_size: int
    threads: int
    instances: int = 1
    cache: Path | None = None
    on_invalid: InvalidEnginePolicy = "rebuild"

    @property
    def threads_per_instance(self) -> int:
        """The number of CPU threads of one instance, at least 1."""
        return max(1, self.threads // self.instances)


def open_instances(
    first: Step, new_engine: Callable[..., Engine], options: EngineOptions, precision: Precision, report: Report
) -> list[Engine]:
    """Opens `options.instances` engines one after another. If one fails, closes the others and raises its error.

    Args:
        first: the step that is reported before the first engine is opened.
        new_engine: the constructor of an engine.
        options: the options of the engines.
        precision: the precision of the graph that they run.
        report: a function that receives every step.
    """
    report(first)
    with ExitStack() as stack:
        engines = []
        for _ in range(options.instances):
            engine = new_engine(
                options.bundle,
                precision,
                threads=options.threads_per_instance,
                max_batch_size=options.bundle.manifest.fixed_batch_size or options.max_batch_size,
                on_warming=lambda done, total: report(Step(first.engine, Phase.WARMING, done / total)),
            )
            engines.append(engine)
            stack.callback(engine.close)
        stack.pop_all()
        return engines
