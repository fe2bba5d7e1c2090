from pathlib import Path

import pytest
from fakes.toy_run import ToyRun, write_toy_photos
from zfserve_model.training.dataset import Split, decode_photos, list_splits
from zfserve_model.training.recipe import Recipe, Stage


@pytest.fixture(scope="session")
def toy_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of toy photos. Tests only read it."""
    folder = tmp_path_factory.mktemp("photos")
    write_toy_photos(folder)
    return folder


@pytest.fixture
def toy_run(toy_photos: Path, tmp_path: Path) -> ToyRun:
    recipe = Recipe(stages=(Stage(64, 2), Stage(80, 1)), batch_size=4)
    train, validation = (
        Split(decode_photos(photos, tmp_path / "cache"), photos.labels) for photos in list_splits(toy_photos)
    )
    return ToyRun(recipe, train, validation, tmp_path)
