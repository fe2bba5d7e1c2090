"""Subjects small enough to be measured in a second or two."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from zfserve_bench.config import QUICK, BenchmarkConfig
from zfserve_export.exporter import ExportPlan, export_bundle
from zfserve_model.checkpoint import Checkpoint, Preprocessing
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_runtime.bundle import Bundle

SAMPLES = Path(__file__).parent.parent.parent / "samples"


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[[Bundle], BenchmarkConfig]:
    """A quick config for a bundle, with two sample photos."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    photos = tuple(sorted(SAMPLES.glob("*.jpg"))[:2])
    return lambda bundle: BenchmarkConfig(bundle, threads=1, photos=photos, effort=QUICK, folder=folder)


@pytest.fixture(scope="session")
def network_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the figure-3 network with random weights, for what needs weights and a worker."""
    spec = NetworkSpec("zfnet-fig3", classes=2, hidden_width=16)
    network = build_network(spec, torch.Generator().manual_seed(5)).eval()
    checkpoint = Checkpoint(network.half().float(), ("n1", "n2"), ("one", "two"), Preprocessing())
    return export_bundle(checkpoint, ExportPlan(tmp_path_factory.mktemp("models"), "tiny", fp16=False))
