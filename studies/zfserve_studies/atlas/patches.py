"""Cuts the part of a photo that a unit sees, where no worker does it: for networks that cannot be projected."""

import io

from PIL import Image, ImageOps
from zfserve.model_description import InputSpec, Layer

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC}


def cut_patch(content: bytes, row: int, column: int, layer: Layer, spec: InputSpec) -> bytes:
    """Returns what a unit sees of a photo, as a PNG file. It is cut off at the edges of the model's input.

    The pixels may differ by a few levels from those that the server decodes.

    Raises:
        OSError: Pillow cannot read the photo.
    """
    with Image.open(io.BytesIO(content)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    seen = _model_input(upright, spec)
    top = layer.offset + row * layer.stride
    left = layer.offset_width + column * layer.stride_width
    box = (left, top, left + layer.receptive_field_width, top + layer.receptive_field)
    whole = (0, 0, spec.width, spec.height)
    if layer.whole_image:
        box = whole
    inside = (max(box[0], 0), max(box[1], 0), min(box[2], spec.width), min(box[3], spec.height))
    file = io.BytesIO()
    seen.crop(inside if inside[0] < inside[2] and inside[1] < inside[3] else whole).save(file, "PNG")
    return file.getvalue()


def _model_input(photo: Image.Image, spec: InputSpec) -> Image.Image:
    how = _RESAMPLING.get(spec.interpolation, Image.Resampling.BILINEAR)
    if spec.resize == "squash":
        return photo.resize((spec.width, spec.height), how)
    factor = spec.shorter_side / min(photo.size)
    width, height = (max(1, round(side * factor)) for side in photo.size)
    left, top = (width - spec.width) // 2, (height - spec.height) // 2
    return photo.resize((width, height), how).crop((left, top, left + spec.width, top + spec.height))
