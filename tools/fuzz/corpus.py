"""Makes the fuzzer's seeds: valid image files of every served format, with the options that decoders treat differently.

Pillow makes them at run time from the sample photos, so the repository holds no binary files. To add a seed, add its
mode and its options to the table of its format.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIDES = ((1, 1), (48, 36), (123, 77))
"""Width and height in pixels. They are small, so 100,000 files take minutes, but have several strips and blocks."""

_EXIF = Image.Exif()
_EXIF[0x0112] = 6  # the orientation
_EXIF[0x010E] = "a description"

_JPEG: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RGB", {"quality": 75}),
    ("RGB", {"progressive": True, "exif": _EXIF, "icc_profile": bytes(200)}),
    ("RGB", {"subsampling": 0, "restart_marker_blocks": 2, "comment": "a comment"}),
    ("L", {"optimize": True}),
    ("CMYK", {}),
)
_PNG: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RGB", {"exif": _EXIF, "icc_profile": bytes(200)}),
    ("RGBA", {}),
    ("P", {"transparency": 3}),
    ("LA", {}),
    ("1", {"bits": 1}),
    ("I;16", {"transparency": 7}),
    ("RGB", {"frames": 3}),
)
_WEBP: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RGB", {"exif": _EXIF}),
    ("RGBA", {"lossless": True}),
    ("RGBA", {"frames": 3}),
)
_BMP: tuple[tuple[str, dict[str, Any]], ...] = (("RGB", {}), ("RGBA", {}), ("P", {}), ("1", {}), ("L", {}))
_TIFF: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RGB", {"exif": _EXIF}),
    ("RGB", {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),
    ("RGBA", {"compression": "tiff_adobe_deflate"}),
    ("RGB", {"compression": "jpeg"}),
    ("L", {"compression": "packbits"}),
    ("L", {"compression": "zstd"}),
    ("L", {"compression": "lzma"}),
    ("1", {"compression": "group3"}),
    ("1", {"compression": "group4"}),
    ("CMYK", {}),
    ("I;16", {}),
    ("I;16B", {}),
    ("LAB", {}),
    ("F", {}),
    ("RGB", {"big_tiff": True}),
    ("RGB", {"frames": 2}),
)
_GIF: tuple[tuple[str, dict[str, Any]], ...] = (
    ("P", {"interlace": 1}),
    ("P", {"interlace": 0, "transparency": 3, "comment": b"a comment"}),
    ("P", {"frames": 3, "disposal": 2}),
)
_KINDS = {"JPEG": _JPEG, "PNG": _PNG, "WEBP": _WEBP, "BMP": _BMP, "TIFF": _TIFF, "GIF": _GIF}


def make_corpus(photos: Sequence[Path]) -> list[bytes]:
    """Returns a file of every kind in every size. `photos` take turns. The files and their order never change."""
    pictures = []
    for photo in photos:
        with Image.open(photo) as opened:
            pictures.append(opened.convert("RGB"))
    files = [run_length_bmp()]
    for format_name, kinds in _KINDS.items():
        for mode, options in kinds:
            for side in SIDES:
                files.append(
                    _save(_in_mode(pictures[len(files) % len(pictures)].resize(side), mode), format_name, options)
                )
    return files


def _save(picture: Image.Image, format_name: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    chosen = dict(options)
    frames = [picture.rotate(90 * turn) for turn in range(1, chosen.pop("frames", 1))]
    if frames:
        chosen |= {"save_all": True, "append_images": frames}
    picture.save(file, format_name, **chosen)
    return file.getvalue()


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode.startswith("I;16"):
        return picture.convert("L").convert("I").point(lambda grey: grey * 257).convert("I;16").convert(mode)
    if mode == "LAB":  # a conversion would need littlecms; any bytes will do
        return Image.frombytes("LAB", picture.size, picture.tobytes())
    return picture.convert(mode)


def run_length_bmp() -> bytes:
    """Returns an 8 x 8 BMP with run-length encoding. Pillow can read this kind but cannot write it."""
    rows = bytes((8, 1, 0, 0)) * 4 + bytes((0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0)) * 2 + bytes((0, 2, 2, 1, 6, 5, 0, 1))
    palette = b"".join(struct.pack("<BBBB", grey, grey, grey, 0) for grey in range(256))
    offset = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(rows), 2835, 2835, 256, 0)
    return struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset) + header + palette + rows
