"""Tests the breaking of lines, and the choice of a font that has the letters of a text."""

import pytest
from PIL import ImageFont
from zfserve_photos import fonts
from zfserve_photos.fonts import fitting_font
from zfserve_photos.text import BACKGROUND, draw_text

BLACK = (0, 0, 0)


def test_a_short_line_stays_one_line() -> None:
    assert draw_text("one two", 13, BLACK, 500).size == draw_text("one two", 13, BLACK).size


@pytest.mark.parametrize("text", ["several words that need more than one line", "x" * 80, "a " * 60, " " * 200])
@pytest.mark.parametrize("width", [60, 200])
def test_no_line_is_longer_than_the_width(text: str, width: int) -> None:
    assert draw_text(text, 13, BLACK, width).width <= width + 1


def test_lines_are_broken_between_words() -> None:
    width = draw_text("several words", 13, BLACK).width
    broken = draw_text("several words and more", 13, BLACK, width)
    assert broken.tobytes() == draw_text("several words\nand more", 13, BLACK).tobytes()


def test_a_letter_that_is_wider_than_the_line_is_drawn_anyway() -> None:
    picture = draw_text("WW", 20, BLACK, 1)
    assert picture.height == 2 * draw_text("W", 20, BLACK).height


def test_an_empty_text_has_the_height_of_a_line() -> None:
    assert draw_text("", 20, BLACK, 100).height == draw_text("W", 20, BLACK).height


def test_ascii_is_drawn_in_the_built_in_font_on_every_machine() -> None:
    font, text = fitting_font("church 98.1% (map 7)", 20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert font.getname() == ImageFont.load_default(20).getname()  # type: ignore[union-attr]
    assert text == "church 98.1% (map 7)"


def test_without_a_font_a_letter_loses_its_accents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_system_fonts", lambda size: ())
    assert fitting_font("café, Ångström\nname", 13)[1] == "cafe, Angstrom\nname"
    assert draw_text("日本", 13, BLACK).getcolors() != [(1, BACKGROUND)]


def test_the_font_that_lacks_the_fewest_letters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    larger, smaller = ImageFont.load_default(40), ImageFont.load_default(13)
    lacking = {larger: {"é"}, smaller: set[str]()}
    monkeypatch.setattr(fonts, "_missing", lambda font, letters: lacking.get(font, {"é", "ö"}) & letters)
    monkeypatch.setattr(fonts, "_system_fonts", lambda size: (larger, smaller))
    assert fitting_font("éö", 20) == (smaller, "éö")
