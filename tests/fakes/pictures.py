"""Makes small pictures."""

from io import BytesIO

from PIL import Image


def png(colour: tuple[int, int, int]) -> bytes:
    """Returns a PNG of 4 x 2 pixels of one colour."""
    file = BytesIO()
    Image.new("RGB", (4, 2), colour).save(file, "PNG")
    return file.getvalue()
