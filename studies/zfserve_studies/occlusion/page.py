"""Makes a page of one HTML file that shows what the network says while the user moves the square over the photo.

The page needs no other file and no network. Its code is in `page.html`.
"""

import base64
import html
import io
import json
from importlib import resources
from typing import Any

import matplotlib
from PIL import Image, ImageStat
from zfserve_cli.short_number import short_number

from zfserve_studies.figures.style import SEQUENTIAL
from zfserve_studies.occlusion.categories import categories
from zfserve_studies.occlusion.document import occlusion_document
from zfserve_studies.occlusion.study import OccludedPhoto
from zfserve_studies.occlusion.text import method_text, summary_text, title_text

LONGEST_SIDE = 1200
"""The photo is scaled down to this side, in pixels, so that the page stays small."""


def occlusion_page(result: OccludedPhoto, photo: Image.Image) -> str:
    """Returns the page, as the text of an HTML file.

    Args:
        result: the answers of the service.
        photo: the upright photo, mode RGB.
    """
    shown = photo.copy()
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    texts = {
        "TITLE": title_text(result),
        "HEADING": title_text(result),
        "METHOD": method_text(result),
        "SUMMARY": summary_text(result),
        "ALT": f"the photo {result.name}",
        "PHOTO": _jpeg(shown),
    }
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    for name, text in texts.items():
        page = page.replace(f"@@{name}@@", html.escape(text))
    # A label may have "</script>", so no "<" may stand in the data.
    return page.replace("@@DATA@@", json.dumps(_page_data(result, photo)).replace("<", "\\u003c"))


def _page_data(result: OccludedPhoto, photo: Image.Image) -> dict[str, Any]:
    seen = result.seen(photo)
    box = {"left": seen.left, "top": seen.top, "right": seen.right, "bottom": seen.bottom}
    mean = ImageStat.Stat(photo.crop((seen.left, seen.top, seen.right, seen.bottom))).mean
    return occlusion_document(result) | {
        "seen": box,
        "photo": {"width": photo.width, "height": photo.height},
        "mean_colour": f"rgb({','.join(str(round(value)) for value in mean)})",
        "palette": _palette(),
        "categories": [
            {
                "indices": each.indices,
                "label": each.label,
                "count": each.count,
                "letter": each.letter,
                "colour": each.colour,
                "hatch": each.hatch,
            }
            for each in categories(result)
        ],
        "pictures": _pictures(result),
    }


def _palette() -> list[str]:
    """Returns 256 colours of the palette for values, from low to high."""
    colours = matplotlib.colormaps[SEQUENTIAL](range(256), bytes=True)
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue, _ in colours.tolist()]


def _pictures(result: OccludedPhoto) -> list[dict[str, str]]:
    """Returns the projection, the part of the photo behind it, and the projections from other photos, with captions."""
    found = []
    projection = result.projection
    if projection is not None and projection.png is not None:
        activation = short_number(projection.activation)
        found.append((_png(projection.png), f"projection of map {projection.map}, activation {activation}"))
        found.append((_png(projection.patch_png), "the part of the photo behind it"))
    for each in result.references:
        data = io.BytesIO()
        each.projection.save(data, "png")
        found.append(
            (_png(data.getvalue()), f"the same map in {each.photo}, activation {short_number(each.activation)}")
        )
    return [{"source": source, "caption": caption} for source, caption in found]


def _jpeg(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "jpeg", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _png(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
