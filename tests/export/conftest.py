"""The tests of export use small networks with random weights, and photos of smooth colour."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.small_sources import CLASS_IDS, SIZE, small_source
from numpy.typing import NDArray
from PIL import Image
from zfserve_export.exporter import ExportPlan, export_bundle
from zfserve_export.photos import list_labelled_photos, list_photos
from zfserve_export.sources.source import Source
from zfserve_model.checkpoint import Checkpoint
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import Bundle

PHOTOS_PER_CLASS = 4

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Returns a checkpoint of `zfnet-fig3`, whose weights float16 holds exactly. Tests only read it."""
    network = build_network(NetworkSpec("zfnet-fig3", len(CLASS_IDS), 16), torch.Generator().manual_seed(3)).eval()
    return Checkpoint(network.half().float(), CLASS_IDS, ("one", "two", "three"), Preprocessing())


@pytest.fixture(scope="session")
def source() -> Source:
    """Returns a source with its PyTorch module. Tests only read it."""
    return small_source()


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
    """Returns the photos as the network's input, uint8 (12, SIZE, SIZE, 3)."""
    return np.stack([np.asarray(Image.open(path).resize((SIZE, SIZE))) for path in list_photos(photo_folder)])


@pytest.fixture(scope="session")
def bundle(source: Source, photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Returns a whole bundle, with every precision and accuracy. Tests only read it."""
    plan = ExportPlan(
        models=tmp_path_factory.mktemp("models"),
        name="tiny",
        calibration=list_photos(photo_folder),
        validation=list_labelled_photos(photo_folder, CLASS_IDS),
    )
    return export_bundle(source, plan)
