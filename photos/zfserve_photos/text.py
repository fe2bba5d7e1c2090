"""Draws text as pictures. Contact sheets and the pictures of the command line use it."""

from PIL import Image, ImageDraw

from zfserve_photos.fonts import Font, fitting_font

BACKGROUND = (250, 250, 248)
TITLE_COLOUR = (34, 34, 34)
CAPTION_COLOUR = (96, 96, 96)

TITLE_SIZE = 20
CAPTION_SIZE = 13


def draw_text(text: str, size: int, colour: tuple[int, int, int], width: int | None = None) -> Image.Image:
    """Draws lines of text, as wide as the text. Every line has the same height, whatever its letters.

    Args:
        text: the text. A line break begins a new line.
        size: the size of the font, in pixels.
        colour: the colour of the letters, RGB.
        width: the longest line in pixels, at least 1. Longer lines are broken between words, and words between letters.
            None breaks no line.
    """
    font, text = fitting_font(text, size)
    lines = [part for line in text.split("\n") for part in _broken(line, font, width)]
    widest = max(round(font.getlength(line) + 0.5) for line in lines)
    line_height = round(1.35 * size)
    picture = Image.new("RGB", (max(widest, 1), line_height * len(lines)), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for index, line in enumerate(lines):
        draw.text((0, (index + 1) * line_height - round(0.3 * size)), line, colour, font, anchor="ls")
    return picture


def _broken(line: str, font: Font, width: int | None) -> list[str]:
    """Breaks a line into parts that are at most `width` pixels long, but have at least one letter."""
    parts = []
    while width is not None and font.getlength(line) > width:
        fitting = 1
        while font.getlength(line[: fitting + 1]) <= width:
            fitting += 1
        space = line.rfind(" ", 1, fitting + 1)
        end = space if space > 0 else fitting
        if end >= len(line):
            break
        parts.append(line[:end])
        line = line[end:].lstrip(" ")
    return [*parts, line]
