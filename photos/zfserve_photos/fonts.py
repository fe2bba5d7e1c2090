"""Chooses the font of a text. Pillow's built-in font has ASCII and little else, not even é."""

import unicodedata
from functools import cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
)
"""Fonts that many systems have, from Latin, Greek and Cyrillic letters to Chinese and Japanese ones."""

_NO_LETTER = "\uffff"
"""No font has this character, so it is drawn as every missing character is."""


def fitting_font(text: str, size: int) -> tuple[Font, str]:
    """Returns a font for `text`, and the text as that font can draw it.

    The built-in font is preferred, so that most pictures look alike on every machine. If it lacks a letter, the
    system's font that lacks the fewest is taken. A letter that no font has loses its accents.

    Args:
        text: the text, of any number of lines.
        size: the size of the font, in pixels.
    """
    letters = frozenset(text) - {"\n"}
    built_in = ImageFont.load_default(size)
    font: Font = built_in
    if _missing(built_in, letters):
        font = min((built_in, *_system_fonts(size)), key=lambda candidate: len(_missing(candidate, letters)))
    missing = _missing(font, letters)
    return font, "".join(_without_accents(letter) if letter in missing else letter for letter in text)


def _missing(font: Font, letters: frozenset[str]) -> set[str]:
    """Returns the letters that the font draws as a missing character."""
    box = bytes(font.getmask(_NO_LETTER))
    return {letter for letter in letters if not letter.isspace() and bytes(font.getmask(letter)) == box}


@cache
def _system_fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    found = []
    for name in _SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:  # this system does not have it
            continue
    return tuple(found)


def _without_accents(letter: str) -> str:
    parts = unicodedata.normalize("NFKD", letter)
    return "".join(part for part in parts if not unicodedata.combining(part)) or letter
