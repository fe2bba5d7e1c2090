"""Defines the settings of a benchmark run. `bench_command` makes them from the command line; every benchmark reads
them."""

from dataclasses import dataclass
from pathlib import Path

from zfserve_runtime.bundle import Bundle, Precision


@dataclass(frozen=True)
class Effort:
    """Bounds the time that benchmarks take.

    Attributes:
        rounds: the number of measurements of each thing. They alternate with measurements of its baseline.
        round_s: the approximate duration of one measurement in seconds.
        tries, try_s: the number of tries of each batch size in the search for the fastest, and the approximate
            duration of each in seconds.
        starts: the number of cold starts.
        judged: True if figures are compared with their limits. Those of a quick run are too rough for that.
    """

    rounds: int
    round_s: float
    tries: int
    try_s: float
    starts: int
    judged: bool


THOROUGH = Effort(rounds=7, round_s=1.5, tries=3, try_s=0.4, starts=3, judged=True)
QUICK = Effort(rounds=1, round_s=0.05, tries=1, try_s=0.0, starts=1, judged=False)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Holds what all benchmarks need to know.

    Attributes:
        bundle: the bundle under test.
        threads: the number of threads of the server's engine, of the engine it is compared with, and of torch.
        photos: JPEG files; may be empty.
        folder: an existing folder for temporary files.
        data: a folder of labelled photos to measure accuracy on; None to show the manifest's figures.
        soak_s: the duration of a soak in seconds.
        samples: the file for the samples of a soak; None to write none.
        overload_s: the duration of an overload in seconds.
        repeats: the number of times that a service is stopped under load.
    """

    bundle: Bundle
    threads: int
    photos: tuple[Path, ...]
    effort: Effort
    folder: Path
    data: Path | None = None
    soak_s: float = 20 * 60.0
    samples: Path | None = None
    overload_s: float = 60.0
    repeats: int = 50

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Returns the precisions of the bundle that are served on a CPU. The others are for GPUs."""
        return tuple(precision for precision in self.bundle.manifest.artefacts if precision in ("fp32", "int8"))

    def scratch(self, name: str) -> Path:
        """Creates a folder below `folder`."""
        created = self.folder / name
        created.mkdir()
        return created
