from pathlib import Path

import pytest
from zfserve_photos.files import find_photos


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
