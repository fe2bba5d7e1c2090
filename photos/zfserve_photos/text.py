"""Draws text as pictures. Contact sheets and the pictures of the command line use it."""

from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (250, 250, 248)
TITLE_COLOUR = (34, 34, 34)
CAPTION_COLOUR = (96, 96, 96)

TITLE_SIZE = 20
CAPTION_SIZE = 13


def draw_text(text: str, size: int, colour: tuple[int, int, int]) -> Image.Image:
    """Draws lines of text, as wide as the text. Every line has the same height, whatever its letters."""
    font = ImageFont.load_default(size)
    lines = text.split("\n")
    width = max(round(font.getlength(line) + 0.5) for line in lines)
    line_height = round(1.35 * size)
    picture = Image.new("RGB", (max(width, 1), line_height * len(lines)), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for index, line in enumerate(lines):
        draw.text((0, (index + 1) * line_height - round(0.3 * size)), line, colour, font, anchor="ls")
    return picture
