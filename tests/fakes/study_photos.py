"""Makes photos of the size for which the fake service answers studies."""

from pathlib import Path

from PIL import Image


def small_photo(file: Path) -> Path:
    """Writes a photo of 64 x 64 pixels, and its folder if there is none. Returns the file."""
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (90, 120, 200)).save(file)
    return file
