import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from zfserve_export.photos import PhotoError, input_spec, list_labelled_photos, list_photos, read_batches, read_photo
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import InputSpec

SPEC = InputSpec(height=4, width=4, resize="squash", shorter_side=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def put_photo(file: Path, grey: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    Image.new("L", (5, 5), grey).save(content, "PNG")
    file.write_bytes(content.getvalue())
    return file


def test_labels_follow_the_models_order(tmp_path: Path) -> None:
    paths = [put_photo(tmp_path / name) for name in ("a/2.png", "a/1.JPG", "c/x.webp")]
    (tmp_path / "a/notes.txt").write_text("no photo")
    (tmp_path / ".cache").mkdir()
    photos = list_labelled_photos(tmp_path, ("c", "b", "a"))
    assert photos.paths == (paths[1], paths[0], paths[2])
    assert photos.labels.tolist() == [2, 2, 0]
    assert photos.class_ids == ("c", "b", "a")


def test_the_validation_split_is_found(tmp_path: Path) -> None:
    put_photo(tmp_path / "train/a/1.png")
    photo = put_photo(tmp_path / "val/a/1.png")
    assert list_labelled_photos(tmp_path, ("a",)).paths == (photo,)


def test_classes_the_model_does_not_know_are_named(tmp_path: Path) -> None:
    for name in ("cat", "dog", "newt"):
        put_photo(tmp_path / name / "1.png")
    with pytest.raises(
        PhotoError, match=r"has folders for cat, newt, but the model has no such class; it knows dog, tench"
    ):
        list_labelled_photos(tmp_path, ("dog", "tench"))


def test_many_names_are_cut_short(tmp_path: Path) -> None:
    put_photo(tmp_path / "a" / "1.png")
    with pytest.raises(PhotoError, match="it knows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 990 more"):
        list_labelled_photos(tmp_path, [str(index) for index in range(1000)])


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="no folder"):
        list_labelled_photos(tmp_path / "nowhere", ("a",))
    with pytest.raises(PhotoError, match="no class folders"):
        list_labelled_photos(tmp_path, ("a",))
    (tmp_path / "a").mkdir()
    with pytest.raises(PhotoError, match="a holds no photos"):
        list_labelled_photos(tmp_path, ("a",))
    with pytest.raises(PhotoError, match="no folder"):
        list_photos(tmp_path / "nowhere")


def test_photos_are_found_at_any_depth(tmp_path: Path) -> None:
    photos = [put_photo(tmp_path / name) for name in ("a/b/c.png", "d.bmp", "e/f.tiff")]
    assert list_photos(tmp_path) == tuple(photos)


def test_batches_keep_the_order(tmp_path: Path) -> None:
    paths = [put_photo(tmp_path / f"{grey}.png", grey) for grey in range(11)]
    batches = list(read_batches(paths, SPEC, 3))
    assert [len(batch) for batch in batches] == [3, 3, 3, 2]
    pixels = np.concatenate(batches)
    assert pixels.shape == (11, 4, 4, 3)
    assert pixels[:, 0, 0, 0].tolist() == list(range(11))


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff and nothing more")
    with pytest.raises(PhotoError, match=r"broken\.jpg: the image cannot be decoded"):
        read_photo(tmp_path / "broken.jpg", SPEC)
    with pytest.raises(PhotoError, match=r"gone\.jpg cannot be read: No such file"):
        read_photo(tmp_path / "gone.jpg", SPEC)
    good = put_photo(tmp_path / "good.png")
    with pytest.raises(PhotoError, match="broken"):
        list(read_batches([good, tmp_path / "broken.jpg", *[good] * 20], SPEC, 2))


def test_the_input_of_a_bundle_has_all_facts_of_the_preprocessing() -> None:
    """Photos were decoded with bilinear interpolation, whatever the preprocessing said."""
    preprocessing = Preprocessing("crop", 40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32, 24, "bicubic")
    spec = input_spec(preprocessing).model_dump()
    for name, value in spec.items():
        assert value == getattr(preprocessing, name), name
    assert spec["interpolation"] == "bicubic"
