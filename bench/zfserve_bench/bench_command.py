"""Runs the command `zfserve bench`: runs benchmarks, prints their tables, and compares their figures with the limits.

To add a benchmark, write a module with a function from `BenchmarkConfig` to `Report`, and name it in `BENCHMARKS`.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from zfserve_cli.service_process import ServiceFailed
from zfserve_export.photos import PhotoError
from zfserve_photos.files import list_photo_files
from zfserve_runtime.bundle import DEFAULT_MODEL, BundleError, load_bundle
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.errors import EngineFailed

from zfserve_bench.compute.decode import measure_decode
from zfserve_bench.compute.engines import measure_engines
from zfserve_bench.compute.gpu import measure_gpu
from zfserve_bench.compute.projection import CaptumDisagrees, measure_projection
from zfserve_bench.config import QUICK, THOROUGH, BenchmarkConfig, Effort
from zfserve_bench.fleet.capacity import measure_capacity
from zfserve_bench.fleet.rolling import measure_rolling
from zfserve_bench.fleet.rolling_workers import measure_rolling_workers
from zfserve_bench.fleet.scale import measure_scale
from zfserve_bench.load.protocol import LoadFailed
from zfserve_bench.reports.findings import Report, missed
from zfserve_bench.reports.machine import Machine, describe_machine
from zfserve_bench.reports.tables import print_machine, print_report
from zfserve_bench.service.atlas import measure_atlas
from zfserve_bench.service.drain import measure_drain
from zfserve_bench.service.latency import measure_latency
from zfserve_bench.service.occlusion import measure_occlusion
from zfserve_bench.service.overload import measure_overload
from zfserve_bench.service.soak import measure_soak
from zfserve_bench.service.startup import measure_startup
from zfserve_bench.service.throughput import measure_throughput

BENCHMARKS: dict[str, Callable[[BenchmarkConfig], Report]] = {
    "throughput": measure_throughput,
    "latency": measure_latency,
    "decode": measure_decode,
    "projection": measure_projection,
    "startup": measure_startup,
    "engines": measure_engines,
    "gpu": measure_gpu,
    "scale": measure_scale,
    "rolling": measure_rolling,
    "rolling-workers": measure_rolling_workers,
    "soak": measure_soak,
    "capacity": measure_capacity,
    "overload": measure_overload,
    "drain": measure_drain,
    "occlusion": measure_occlusion,
    "atlas": measure_atlas,
}
ONLY_BY_NAME = {"scale", "rolling", "rolling-workers", "soak", "capacity", "overload", "drain", "occlusion", "atlas"}
"""These take long or need several processes. Without a name, all others run."""

DEFAULT_PHOTOS = Path("samples")

SOAK_MINUTES, QUICK_SOAK_MINUTES = 20.0, 0.25
OVERLOAD_SECONDS, QUICK_OVERLOAD_SECONDS = 60.0, 4.0
"""A quick overload must last longer than its deadline, because before that no call is late or refused."""
REPEATS = 50

TABLE_WIDTH = 1000
"""The width of the output in characters, on every terminal. A table that is cut to fit cannot be pasted."""

HELD, MISSED, UNUSABLE = 0, 1, 2
"""The exit statuses: all limits hold, a limit is missed or a benchmark failed, unusable arguments or input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `zfserve bench`."""
    usual = [name for name in BENCHMARKS if name not in ONLY_BY_NAME]
    names = f"the benchmarks to run: {', '.join(BENCHMARKS)} (default: {usual[0]} to {usual[-1]})"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument(
        "--model", type=Path, default=DEFAULT_MODEL, help="the bundle to measure (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=available_cpus(), help="threads of the engine (default: %(default)s)"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        default=DEFAULT_PHOTOS,
        metavar="DIR",
        help="photos to decode and send (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of labelled photos, in <class id>/ or val/<class id>/, on which `engines` measures accuracy",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"duration of `soak` (default: {SOAK_MINUTES:g}, or {QUICK_SOAK_MINUTES:g} with --quick)",
    )
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write the samples of `soak` to this file, as CSV")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"duration of a run of `overload` (default: {OVERLOAD_SECONDS:g}, or {QUICK_OVERLOAD_SECONDS:g} with "
        "--quick)",
    )
    parser.add_argument(
        "--repeats", type=int, help=f"number of stops of `drain` (default: {REPEATS}, or 1 with --quick)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file, as JSON")
    parser.add_argument(
        "--rounds", type=int, help=f"rounds of each comparison, at least 1 (default: {THOROUGH.rounds})"
    )
    parser.add_argument("--quick", action="store_true", help="only show that everything runs; figures are not judged")


def run(arguments: argparse.Namespace) -> int:
    """Runs `zfserve bench` and returns its exit status."""
    messages = Console(stderr=True)
    try:
        names = choose(arguments.names)
        with tempfile.TemporaryDirectory(prefix="zfserve-bench-") as folder:
            config = make_config(arguments, Path(folder))
            machine = describe_machine()
            reports = measure(config, names, Console(width=TABLE_WIDTH), messages, machine)
        if arguments.json is not None:
            arguments.json.write_text(to_json(machine, reports), encoding="utf-8")
    except (UnknownBenchmark, BundleError, PhotoError, OSError) as error:
        return _complain(messages, error, UNUSABLE)
    except (EngineFailed, ServiceFailed, LoadFailed, CaptumDisagrees) as error:
        return _complain(messages, error, MISSED)
    return exit_status(reports)


def make_config(arguments: argparse.Namespace, folder: Path) -> BenchmarkConfig:
    """Returns the settings of the run. With --quick, the default durations are short.

    Args:
        folder: an existing folder for temporary files.

    Raises:
        BundleError: there is no bundle, or it is damaged.
    """
    quick = arguments.quick

    def chosen(value: float | None, usual: float, short: float) -> float:
        return value if value is not None else short if quick else usual

    return BenchmarkConfig(
        bundle=load_bundle(arguments.model),
        threads=arguments.threads,
        photos=tuple(list_photo_files(arguments.photos, recursive=False)),
        effort=choose_effort(quick, arguments.rounds),
        folder=folder,
        data=arguments.data,
        soak_s=60 * chosen(arguments.minutes, SOAK_MINUTES, QUICK_SOAK_MINUTES),
        samples=arguments.samples,
        overload_s=chosen(arguments.seconds, OVERLOAD_SECONDS, QUICK_OVERLOAD_SECONDS),
        repeats=int(chosen(arguments.repeats, REPEATS, 1)),
    )


def choose_effort(quick: bool, rounds: int | None) -> Effort:
    """Returns the effort of the run. `rounds` overrides its number of rounds."""
    effort = QUICK if quick else THOROUGH
    return effort if rounds is None else replace(effort, rounds=max(1, rounds))


class UnknownBenchmark(ValueError):
    """There is no benchmark of that name."""


def choose(names: Sequence[str]) -> list[str]:
    """Returns the named benchmarks in the order of `BENCHMARKS`. Without names, returns all but `ONLY_BY_NAME`.

    Raises:
        UnknownBenchmark: there is no benchmark of that name.
    """
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise UnknownBenchmark(f"no benchmark is called {', '.join(unknown)}; choose from {', '.join(BENCHMARKS)}")
    return [name for name in BENCHMARKS if name in names or not (names or name in ONLY_BY_NAME)]


def measure(
    config: BenchmarkConfig, names: Sequence[str], console: Console, messages: Console, machine: Machine
) -> dict[str, Report]:
    """Runs the benchmarks one after the other and prints each report at once. Returns the reports by name."""
    manifest = config.bundle.manifest
    print_machine(console, machine)
    console.print(
        f"{manifest.name} {manifest.version}: {manifest.architecture}, {len(manifest.classes)} classes, "
        f"{' and '.join(config.precisions)}; {config.threads} threads",
        highlight=False,
        soft_wrap=True,
    )
    reports = {}
    for name in names:
        with messages.status(f"measuring {name}"):
            reports[name] = BENCHMARKS[name](config)
        print_report(console, reports[name])
    return reports


def exit_status(reports: Mapping[str, Report]) -> int:
    """Prints the findings that miss their limits. Returns MISSED if there are any, and HELD otherwise."""
    misses = missed(reports.values())
    for finding in misses:
        Console(stderr=True).print(f"[bold red]missed:[/] {escape(finding.name)}: {finding.figure}", highlight=False)
    return MISSED if misses else HELD


def to_json(machine: Machine, reports: Mapping[str, Report]) -> str:
    """Returns the machine and all reports as JSON."""
    benchmarks = {
        name: asdict(report) | {"findings": [asdict(one) | {"holds": one.holds} for one in report.findings]}
        for name, report in reports.items()
    }
    return json.dumps({"machine": asdict(machine), "benchmarks": benchmarks}, indent=2) + "\n"


def _complain(messages: Console, error: Exception, status: int) -> int:
    messages.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    return status
