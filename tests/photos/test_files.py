"""Tests which files are photos, in every room that looks for them."""

import io
from pathlib import Path

import pytest
from PIL import Image
from zfserve_engines.images.input_image import ImageLimits, decode_image
from zfserve_export.photos import list_labelled_photos, list_photos
from zfserve_model.training.dataset import list_photos as training_photos
from zfserve_photos.files import PHOTO_SUFFIXES, find_photos, list_photo_files
from zfserve_runtime.bundle import InputSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("b.JPG", "a.png", "notes.txt", "in/c.webp"):
        (tmp_path / name).touch()
    return tmp_path


def names(photos: list[Path], folder: Path) -> list[str]:
    return [str(photo.relative_to(folder)) for photo in photos]


def test_a_folder_gives_its_photos_at_any_depth(folder: Path) -> None:
    assert names(find_photos([str(folder)]), folder) == ["a.png", "b.JPG", "in/c.webp"]


def test_a_named_file_needs_no_suffix(folder: Path) -> None:
    assert names(find_photos([str(folder / "notes.txt")]), folder) == ["notes.txt"]


def test_globs_reach_into_folders_and_each_photo_comes_once(folder: Path) -> None:
    patterns = [str(folder / "**" / "*.webp"), str(folder / "?.png"), str(folder / "a.png")]
    assert names(find_photos(patterns), folder) == ["in/c.webp", "a.png"]


@pytest.mark.parametrize("name", ["none.jpg", "*.gif", "in/none"])
def test_a_name_that_matches_nothing(folder: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such photo"):
        find_photos([str(folder / "a.png"), str(folder / name)])


@pytest.mark.parametrize(
    ("recursive", "listed"), [(True, ["a.png", "b.JPG", "in/c.webp"]), (False, ["a.png", "b.JPG"])]
)
def test_a_listing_leaves_out_folders_and_hidden_entries(folder: Path, recursive: bool, listed: list[str]) -> None:
    (folder / "folder.png").mkdir()
    (folder / ".cache").mkdir()
    for name in ("._a.png", ".cache/d.png", "in/._c.webp"):
        (folder / name).touch()
    assert names(list_photo_files(folder, recursive=recursive), folder) == listed


def test_a_folder_below_a_hidden_one_has_its_photos(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "photos"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    assert names(list_photo_files(folder), folder) == ["a.png"]


def test_a_folder_that_does_not_exist_has_no_photos(tmp_path: Path) -> None:
    assert list_photo_files(tmp_path / "none") == []


def test_every_room_knows_the_same_suffixes(tmp_path: Path) -> None:
    files = [tmp_path / "n01" / f"photo{suffix}" for suffix in sorted(PHOTO_SUFFIXES)]
    files[0].parent.mkdir()
    for file in files:
        file.touch()
    assert find_photos([str(tmp_path)]) == files
    assert list(training_photos(tmp_path).paths) == files
    assert list(list_photos(tmp_path)) == files
    assert list(list_labelled_photos(tmp_path, ["n01"]).paths) == files


@pytest.mark.parametrize("suffix", sorted(PHOTO_SUFFIXES))
def test_the_server_decodes_every_suffix(suffix: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, Image.registered_extensions()[suffix])
    spec = InputSpec(height=8, width=8, resize="squash", shorter_side=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert decode_image(file.getvalue(), spec, ImageLimits()).pixels.shape == (8, 8, 3)
