"""Provides bundles and settings that are so small that a benchmark takes a second or two."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from zfserve_bench.config import QUICK, BenchmarkConfig
from zfserve_bench.reports.findings import Report
from zfserve_bench.service.startup import status_number
from zfserve_export.exporter import ExportPlan, export_bundle
from zfserve_export.sources.checkpoint_file import open_checkpoint
from zfserve_export.sources.source import SourceOptions
from zfserve_model.checkpoint import Checkpoint, save_checkpoint
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import Bundle

SAMPLES = Path(__file__).parent.parent.parent / "samples"


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[[Bundle], BenchmarkConfig]:
    """Returns a function from a bundle to a quick config with two sample photos."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    photos = tuple(sorted(SAMPLES.glob("*.jpg"))[:2])
    return lambda bundle: BenchmarkConfig(bundle, threads=1, photos=photos, effort=QUICK, folder=folder)


@pytest.fixture(scope="session")
def network_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Returns a bundle of the figure-3 network with random weights, for benchmarks that need a worker."""
    spec = NetworkSpec("zfnet-fig3", classes=2, hidden_width=16)
    network = build_network(spec, torch.Generator().manual_seed(5)).eval()
    checkpoint = Checkpoint(network.half().float(), ("n1", "n2"), ("one", "two"), Preprocessing())
    folder = tmp_path_factory.mktemp("models")
    save_checkpoint(checkpoint, folder / "tiny.safetensors")
    source = open_checkpoint(folder / "tiny.safetensors", SourceOptions())
    return export_bundle(source, ExportPlan(folder, "tiny", fp16=False))


def _children() -> set[int]:
    """Returns the ids of this process's children."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if status_number(status.read_text(), "PPid") == os.getpid():
                found.add(int(status.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def _no_processes_left() -> Iterator[None]:
    before = _children()
    yield
    assert _children() <= before


@pytest.fixture
def figures() -> Callable[[Report], dict[str, float]]:
    """Returns a function that returns the figures of a report by name.

    It asserts that all of them are finite, positive and without a limit.
    """

    def by_name(report: Report) -> dict[str, float]:
        assert all(finding.limit is None for finding in report.findings)
        values = {finding.name: finding.figure.value for finding in report.findings}
        assert all(0 < value < float("inf") for value in values.values()), values
        return values

    return by_name
