"""Starts one real service for all end-to-end tests: `zfserve serve` with its worker and an exported tiny network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import Service, running_service, zfserve
from zfserve_model.checkpoint import Checkpoint, save_checkpoint
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing

SAMPLES = Path(__file__).parent.parent.parent / "samples"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves random weights of the figure-3 network with narrow hidden layers and three classes."""
    network = build_network(NetworkSpec("zfnet-fig3", 3, 16), torch.Generator().manual_seed(0)).eval()
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(Checkpoint(network, ("a", "b", "c"), ("ant", "bee", "cat"), Preprocessing()), file)
    return file


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports that network as a bundle for CPUs, with INT8."""
    folder = tmp_path_factory.mktemp("models")
    options = ("--output", folder, "--name", "tiny", "--calibration", SAMPLES, "--no-fp16")
    exported = zfserve("export", checkpoint, *options)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    return folder / "tiny"


@pytest.fixture(scope="session")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(bundle, tmp_path_factory.mktemp("service"), "--precision", "fp32") as running:
        yield running
