"""The tests of export use small networks with random weights, and photos of smooth colour."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from zfserve_export.exporter import ExportPlan, export_bundle
from zfserve_export.onnx_graph import export_graph, half_network
from zfserve_export.photos import list_labelled_photos, list_photos
from zfserve_model.checkpoint import Checkpoint, weights_fingerprint
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import Bundle

CLASS_IDS = ("n01", "n02", "n03")
PHOTOS_PER_CLASS = 4

Pixels = NDArray[np.uint8]


def build_checkpoint(architecture: str = "zfnet-fig3", *, contrast_norm: bool = False) -> Checkpoint:
    """Builds a network with the same random weights at every call. float16 holds them exactly, like shipped weights."""
    spec = NetworkSpec(architecture, classes=len(CLASS_IDS), hidden_width=16, contrast_norm=contrast_norm)
    generator = torch.Generator().manual_seed(3)
    network = build_network(spec, generator).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".bias"):  # zero biases would be left out by torch's exporter
                parameter.normal_(std=0.05, generator=generator)
    return Checkpoint(network.half().float(), CLASS_IDS, ("one", "two", "three"), Preprocessing())


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Returns a checkpoint. Tests only read it."""
    return build_checkpoint()


@pytest.fixture
def fresh_checkpoint() -> Checkpoint:
    """Returns a checkpoint that a test may change."""
    return build_checkpoint()


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes photos into one folder per class."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(7)
    for class_id in CLASS_IDS:
        (root / class_id).mkdir()
        for index in range(PHOTOS_PER_CLASS):
            blobs = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            blobs.resize((320, 240), Image.Resampling.BICUBIC).save(root / class_id / f"{index}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def pixels(photo_folder: Path) -> Pixels:
    """Returns the photos as the network's input, uint8 (12, 224, 224, 3)."""
    return np.stack([np.asarray(Image.open(path).resize((224, 224))) for path in list_photos(photo_folder)])


@pytest.fixture(scope="session")
def exported() -> Callable[[str], tuple[Checkpoint, onnx.ModelProto]]:
    """Returns a checkpoint and its graph by architecture. Each is exported once. `alexnet` has the contrast norm."""
    made: dict[str, tuple[Checkpoint, onnx.ModelProto]] = {}

    def export(architecture: str) -> tuple[Checkpoint, onnx.ModelProto]:
        if architecture not in made:
            checkpoint = build_checkpoint(architecture, contrast_norm=architecture == "alexnet")
            fingerprint = weights_fingerprint(checkpoint.network)
            made[architecture] = checkpoint, export_graph(checkpoint.network, checkpoint.preprocessing, fingerprint)
        return made[architecture]

    return export


@pytest.fixture(scope="session")
def half(exported: Callable[[str], tuple[Checkpoint, onnx.ModelProto]]) -> Callable[[str], onnx.ModelProto]:
    """Returns the float16 graph by architecture, with the weights of `exported`."""

    @cache
    def export(architecture: str) -> onnx.ModelProto:
        checkpoint, model = exported(architecture)
        fingerprint = next(entry.value for entry in model.metadata_props if entry.key == "fingerprint")
        return export_graph(half_network(checkpoint.network), checkpoint.preprocessing, fingerprint)

    return export


@pytest.fixture(scope="session")
def bundle(checkpoint: Checkpoint, photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Returns a whole bundle, with every precision and accuracy. Tests only read it."""
    plan = ExportPlan(
        models=tmp_path_factory.mktemp("models"),
        name="tiny",
        calibration=list_photos(photo_folder),
        validation=list_labelled_photos(photo_folder, CLASS_IDS),
    )
    return export_bundle(checkpoint, plan)
