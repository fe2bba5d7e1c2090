import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from zfserve_engines.images.input_image import ImageLimits, decode_image
from zfserve_model.training.dataset import DatasetError, decode_photo, decode_photos, list_photos, list_splits
from zfserve_runtime.bundle import InputSpec

SQUASHED = InputSpec(
    height=224, width=224, resize="squash", shorter_side=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def save_photo(file: Path, size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(file)


def test_photos_are_listed_by_class_in_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a/1.png", ".cache/1.png"):
        save_photo(tmp_path / name)
    (tmp_path / "a" / "notes.txt").touch()
    photos = list_photos(tmp_path)
    assert photos.class_ids == ("a", "b")
    assert [path.name for path in photos.paths] == ["1.png", "1.JPG", "2.png"]
    assert photos.labels.tolist() == [0, 1, 1]
    assert photos.counts() == {"a": 1, "b": 2}


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        list_splits(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match="holds no class folders"):
        list_splits(tmp_path)
    (tmp_path / "train" / "a").mkdir()
    with pytest.raises(DatasetError, match=r"'a' .* holds no photos"):
        list_splits(tmp_path)
    save_photo(tmp_path / "train" / "a" / "1.png")
    save_photo(tmp_path / "val" / "b" / "1.png")
    with pytest.raises(DatasetError, match=r"differ in \['a', 'b'\]"):
        list_splits(tmp_path)
    (tmp_path / "val" / "b").rename(tmp_path / "val" / "a")
    with pytest.raises(DatasetError, match="a single class"):
        list_splits(tmp_path)


def test_photos_become_upright_rgb_squares(tmp_path: Path) -> None:
    image = Image.new("L", (40, 20), 0)
    image.paste(255, (0, 0, 20, 20))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation 6 turns clockwise by 90 degrees, so left becomes up
    image.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    pixels = decode_photo(tmp_path / "photo.jpg")
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    assert pixels[:90].min() > 240
    assert pixels[-90:].max() < 15


def test_photos_are_decoded_once(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        save_photo(tmp_path / "photos" / name)
    photos, cache = list_photos(tmp_path / "photos"), tmp_path / "cache"
    counted: list[int] = []
    pixels = decode_photos(photos, cache, counted.append)
    assert pixels.shape == (3, 224, 224, 3)
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]
    assert sum(counted) == 3
    again = decode_photos(photos, cache, counted.append)
    assert np.array_equal(again, pixels)
    assert sum(counted) == 3
    save_photo(tmp_path / "photos" / "a" / "1.png", size=(9, 9))
    decode_photos(list_photos(tmp_path / "photos"), cache, counted.append)
    assert sum(counted) == 6, "a photo that changed is decoded again"


def test_an_unreadable_photo_is_named_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    save_photo(tmp_path / "photos" / "a" / "1.png")
    (tmp_path / "photos" / "a" / "2.png").write_bytes((tmp_path / "photos" / "a" / "1.png").read_bytes()[:50])
    with pytest.raises(DatasetError, match=r"2\.png cannot be read as an image"):
        decode_photos(list_photos(tmp_path / "photos"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def of_mode(mode: str) -> Image.Image:
    """Returns 224 x 224 different pixels. The upper half is transparent where the mode has alpha."""
    shades = np.arange(224 * 224, dtype=np.uint32).reshape(224, 224)
    colours = np.stack([shades % 256, shades // 7 % 256, shades // 300 % 256], axis=2).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((shades % 65_536).astype(np.uint16))
    image = Image.fromarray(colours)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.where(shades < 112 * 224, 0, 255).astype(np.uint8)))
    return image.convert(mode) if mode != "P" else image.quantize(16)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_training_sees_what_the_server_sees(mode: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"photo.{'jpg' if (mode, suffix) == ('CMYK', 'png') else suffix}"
    image = of_mode(mode)
    if (mode, suffix) == ("P", "png"):
        image.save(file, transparency=3)
    else:
        image.save(file)
    served = decode_image(file.read_bytes(), SQUASHED, ImageLimits()).pixels
    np.testing.assert_array_equal(decode_photo(file), served)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_of_32_bits_are_refused_as_the_server_refuses_them(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "photo.tif")
    with pytest.raises(DatasetError, match="32-bit samples"):
        decode_photo(tmp_path / "photo.tif")


def test_names_that_are_no_text_and_other_spellings_of_a_folder_are_the_same_photos(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "a" / os.fsdecode(b"caf\xe9.png"))
    assert len({list_photos(folder).fingerprint() for folder in (tmp_path, Path(os.path.relpath(tmp_path)))}) == 1


def test_a_listing_knows_the_photos_and_not_where_they_lie(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        save_photo(tmp_path / "photos" / name)
    listing = list_photos(tmp_path / "photos").listing()
    moved = (tmp_path / "photos").rename(tmp_path / "moved")
    assert list_photos(moved).listing() == listing
    (moved / "a" / "2.png").rename(moved / "b" / "2.png")
    assert list_photos(moved).listing() != listing
    (moved / "b" / "2.png").rename(moved / "a" / "2.png")
    assert list_photos(moved).listing() == listing
    (moved / "b" / "1.png").write_bytes((moved / "b" / "1.png").read_bytes() + b"\0")
    assert list_photos(moved).listing() != listing


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    save_photo(tmp_path / "photos" / "a" / "1.png")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "pixels-0.v2.partial").write_bytes(bytes(100))
    decode_photos(list_photos(tmp_path / "photos"), cache)
    assert [file.suffix for file in cache.iterdir()] == [".u8"]
