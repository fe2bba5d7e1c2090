"""Draws the picture of `zfserve explain`: the photo, the heatmap with its colour scale, and the maps that add most."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps
from zfserve.explanation import Explanation
from zfserve.results import Box, Projection
from zfserve_photos.contact_sheet import CAPTION_GAP, MARGIN, PICTURE_GAP, TILE_GAP, contact_sheet
from zfserve_photos.heatmap import LEVELS, PALETTE, heatmap_picture, overlay
from zfserve_photos.text import BACKGROUND, CAPTION_COLOUR, CAPTION_SIZE, TITLE_COLOUR, TITLE_SIZE, draw_text

from zfserve_cli.explanation_text import METHOD_NAMES, maps_text, probability_text, score_text
from zfserve_cli.projection_files import projection_tile

HEADING_SIZE = 16

WIDTH = 880
"""The width of the picture without its margins, in pixels. Three maps in a row are as wide."""
HALF_WIDTH = (WIDTH - TILE_GAP) // 2
WIDE = 1.9
"""A photo whose sides have at least this ratio takes the whole width, and the heatmap stands below it."""
LONGEST_HEIGHT = 600
SHORTEST_SIDE = 60
"""Extreme photos are drawn less wide or less tall than they are."""

SCALE_HEIGHT = 14
SHORTEST_SCALE = 240
"""The colour scale is at least this wide, in pixels, so that its labels do not touch."""

MAPS_IN_A_ROW = 3
MAP_SIDE = ((WIDTH - (MAPS_IN_A_ROW - 1) * TILE_GAP) // MAPS_IN_A_ROW - PICTURE_GAP) // 2
"""The longest side of a projection, in pixels."""

UNSEEN = 0.75
"""The part of the photo that the network does not see is this much lighter."""


def explanation_picture(
    photo: Image.Image, name: str, explanation: Explanation, maps: Sequence[Projection], note: str
) -> Image.Image:
    """Draws one explanation.

    Args:
        photo: the photo that was explained, upright, as `open_photo` returns it.
        name: the caption of the photo.
        explanation: the answer of the service.
        maps: the projections of the maps that add most, as PNG. There may be none.
        note: a line at the end. "" draws none.

    Returns:
        The picture, in mode RGB.
    """
    parts = [_title(explanation), _panels(photo, name, explanation)]
    if maps:
        sheet = contact_sheet([projection_tile(each) for each in maps], MAPS_IN_A_ROW, picture_side=MAP_SIDE)
        within = sheet.crop((MARGIN, MARGIN, sheet.width - MARGIN, sheet.height - MARGIN))
        parts.append(
            _stack(
                [draw_text(maps_text(explanation, maps), HEADING_SIZE, TITLE_COLOUR, WIDTH), within], CAPTION_GAP + 4
            )
        )
    if note:
        parts.append(draw_text(note, CAPTION_SIZE, CAPTION_COLOUR, WIDTH))
    return ImageOps.expand(_stack(parts, TILE_GAP + 4, WIDTH), MARGIN, BACKGROUND)


def open_photo(photo: Path) -> Image.Image:
    """Returns the photo upright, in mode RGB, as the server sees it: transparent places are white.

    Raises:
        OSError: the file cannot be read. Pillow also raises ValueError and SyntaxError for damaged files.
    """
    with Image.open(photo) as file:
        upright = ImageOps.exif_transpose(file)
    if upright.mode.startswith("I"):
        upright = upright.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    rgba = upright.convert("RGBA")
    page = Image.new("RGB", rgba.size, "white")
    page.paste(rgba, mask=rgba)
    return page


def _title(explanation: Explanation) -> Image.Image:
    model, method = explanation.model, METHOD_NAMES.get(explanation.method, explanation.method)
    heading = f"{explanation.for_class.label} · {probability_text(explanation)}"
    lines = f"{model.name} {model.version} · {explanation.layer} · {method}\nscore {score_text(explanation)}"
    title = draw_text(heading, TITLE_SIZE, TITLE_COLOUR, WIDTH)
    return _stack([title, draw_text(lines, CAPTION_SIZE, CAPTION_COLOUR, WIDTH)], CAPTION_GAP)


def _panels(photo: Image.Image, name: str, explanation: Explanation) -> Image.Image:
    """Draws the photo and the heatmap, side by side, or one above the other where the photo is wide."""
    wide = photo.width >= WIDE * photo.height
    size = _panel_size(photo.size, WIDTH if wide else HALF_WIDTH)
    panel = photo.resize(size, Image.Resampling.LANCZOS)
    box = _scaled(explanation.source_box, photo.size, size)
    seen, heatmap = panel.crop(box), explanation.heatmap
    shown, heated = (_faded(panel) for _ in range(2))
    shown.paste(seen, box)
    values = heatmap_picture(heatmap.height, heatmap.width, heatmap.data)
    heated.paste(overlay(seen, values, explanation.scale), box)
    column = max(size[0], SHORTEST_SCALE)
    caption = name if box == (0, 0, *size) else f"{name} · the network does not see the pale part"
    left = _stack([shown, draw_text(caption, CAPTION_SIZE, CAPTION_COLOUR, column)], CAPTION_GAP)
    right = _stack([heated, _colour_scale(explanation, column)], CAPTION_GAP)
    return _stack([left, right], TILE_GAP) if wide else _beside(left, right)


def _panel_size(size: tuple[int, int], widest: int) -> tuple[int, int]:
    """Returns the size at which a photo is drawn. It keeps the shape, except that of extreme ones."""
    width, height = size
    factor = min(widest / width, LONGEST_HEIGHT / height)
    return max(round(width * factor), SHORTEST_SIDE), max(round(height * factor), SHORTEST_SIDE)


def _scaled(box: Box | None, size: tuple[int, int], panel: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns a box of the photo in pixels of the panel. It has at least one pixel. None is the whole photo."""
    if box is None:
        return 0, 0, *panel
    across, down = panel[0] / size[0], panel[1] / size[1]
    left, top = min(int(box.left * across), panel[0] - 1), min(int(box.top * down), panel[1] - 1)
    right, bottom = min(round(box.right * across), panel[0]), min(round(box.bottom * down), panel[1])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _faded(panel: Image.Image) -> Image.Image:
    grey = ImageOps.grayscale(panel).convert("RGB")
    return Image.blend(grey, Image.new("RGB", panel.size, BACKGROUND), UNSEEN)


def _colour_scale(explanation: Explanation, width: int) -> Image.Image:
    """Draws the palette with the values of both ends and the middle, and says what its sides mean."""
    bar = Image.new("RGB", (LEVELS, 1))
    bar.putdata(PALETTE[:LEVELS])
    bar = bar.resize((width, SCALE_HEIGHT), Image.Resampling.NEAREST)
    ImageDraw.Draw(bar).rectangle((0, 0, width - 1, SCALE_HEIGHT - 1), outline=CAPTION_COLOUR)
    unit = " logits" if explanation.method == "integrated-gradients" else ""
    scale = f"{explanation.scale:.3g}"
    numbers = _spread(f"-{scale}", "0", f"+{scale}{unit}", width)
    meaning = _spread("speaks against", "", "speaks for", width)
    return _stack([bar, numbers, meaning], 2)


def _spread(left: str, middle: str, right: str, width: int) -> Image.Image:
    """Draws three texts at the left edge, in the middle, and at the right edge."""
    texts = [draw_text(text, CAPTION_SIZE, CAPTION_COLOUR) for text in (left, middle, right)]
    line = Image.new("RGB", (width, texts[0].height), BACKGROUND)
    line.paste(texts[0], (0, 0))
    if middle:
        line.paste(texts[1], ((width - texts[1].width) // 2, 0))
    line.paste(texts[2], (width - texts[2].width, 0))
    return line


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    row = Image.new("RGB", (left.width + TILE_GAP + right.width, max(left.height, right.height)), BACKGROUND)
    row.paste(left, (0, 0))
    row.paste(right, (left.width + TILE_GAP, 0))
    return row


def _stack(pictures: Sequence[Image.Image], gap: int, least_width: int = 0) -> Image.Image:
    """Draws pictures one below the other, each at the left edge, on a page that is at least `least_width` wide."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    stack = Image.new("RGB", (max(least_width, *(picture.width for picture in pictures)), height), BACKGROUND)
    top = 0
    for picture in pictures:
        stack.paste(picture, (0, top))
        top += picture.height + gap
    return stack
