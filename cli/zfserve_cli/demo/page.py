"""Renders the page of the demo: one HTML file with the photos, their classes and the projections."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import ExifTags, Image, ImageChops, ImageOps
from zfserve.model_description import Layer, ModelDescription
from zfserve.results import Box, Classification, Projection

from zfserve_cli.demo.photo_truth import Verdict
from zfserve_cli.demo.second_opinion import SecondOpinion

STYLE = Path(__file__).with_name("page.css")
LONGEST_SIDE = 720
"""An embedded picture has at most this many pixels on its longest side."""
ZERO = (128, 128, 128)
"""A projection shows zero in this colour, RGB."""

_FEATURES = {
    "conv1": "edges and colours",
    "conv2": "corners, and edges with colours",
    "conv3": "textures and patterns",
    "conv4": "parts typical of a class",
    "conv5": "whole objects",
}
"""Zeiler & Fergus found these features in each layer (ECCV 2014, section 4, figure 2)."""


@dataclass(frozen=True)
class ExplainedPhoto:
    """Holds a photo with its classes and projections.

    Attributes:
        photo: the file of the photo.
        classification: the answer of the network.
        projections: the projections of each layer, by the layer's name.
        verdict: the comparison of the answer with the truth. None if no truth is known.
        second: the answer of a second network. None if none was asked.
    """

    photo: Path
    classification: Classification
    projections: Mapping[str, Sequence[Projection]]
    verdict: Verdict | None
    second: SecondOpinion | None = None


def render_page(photos: Sequence[ExplainedPhoto], description: ModelDescription, layers: Sequence[Layer]) -> str:
    """Returns the page as HTML. It loads nothing from elsewhere: the style and the pictures are part of it.

    Args:
        photos: the photos, at least one.
        description: the model that answered.
        layers: the layers, from the input upwards, at least one. The page shows the last one first and largest. Its
            maps are those that add most to the most probable class.
    """
    model = description.model
    accuracy = "".join(
        f", {figure.top1:.1%} of {figure.count:,} validation photos right ({figure.precision})"
        for figure in description.accuracy
        if figure.precision == description.engine.precision
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>zfserve: what the network saw</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>What the network saw</h1>
<p class="lead">A convolutional network with {len(description.classes)} classes was shown these photos. Beside each
photo are its answer, and the pixels that drove the feature maps that add most to that answer.{_second_lead(photos)}</p>
<nav aria-label="Photos">{"".join(map(_link, photos))}</nav>
<p class="notes">Below, each feature map has two pictures. The upper one shows the pixels that drove the map (a
deconvnet projection, Zeiler &amp; Fergus 2014); grey is zero. The lower one is the part of the photo that the map sees,
in the shape in which the network gets it. Under them are the map's number and what the map adds to the score of the
class. The lower layers show the maps with the strongest activations, and that activation: these maps
are the most active, but they did not necessarily decide the answer.</p>
<p class="notes">{escape(model.name)} {escape(model.version)}{accuracy}
· weights <code>{escape(model.fingerprint[:12])}</code>
· {escape(description.engine.runtime)}, {escape(description.engine.precision)}</p>
</header>
<main>
{"".join(_section(entry, layers, opened=entry is photos[0]) for entry in photos)}</main>
<footer><p>The network has these classes only: {escape(", ".join(entry.label for entry in description.classes))}.
A photo of anything else gets one of these classes, too. Made by <code>make demo</code>.</p></footer>
</body>
</html>
"""


def _second_lead(photos: Sequence[ExplainedPhoto]) -> str:
    opinion = next((entry.second for entry in photos if entry.second), None)
    if opinion is None:
        return ""
    return f" Below stands what a second network says, with {opinion.classes:,} classes, and which places say so."


def _link(entry: ExplainedPhoto) -> str:
    said, mark = escape(entry.classification.classes[0].label), ""
    if verdict := entry.verdict:
        mark = f' <span class="{verdict.word}" role="img" aria-label="{verdict.word}">{verdict.mark}</span>'
    return f'<a href="#{_anchor(entry)}">{escape(_name(entry))}: <strong>{said}</strong>{mark}</a>\n'


def _section(entry: ExplainedPhoto, layers: Sequence[Layer], opened: bool) -> str:
    with Image.open(entry.photo) as file:
        exif = file.getexif()
        photo = ImageOps.exif_transpose(file)
    shows = str(exif.get(ExifTags.Base.ImageDescription, "")) or f"The photo {entry.photo.name}"
    credit = " · ".join(str(exif[tag]) for tag in (ExifTags.Base.Artist, ExifTags.Base.Copyright) if tag in exif)
    timings = entry.classification.timings
    *lower, last = layers
    shown = entry.projections[last.name]
    said = entry.classification.classes[0].label
    saw = f"The pixels that drove the {len(shown)} maps of {last.name} that add most to “{said}”"
    return f"""<section id="{_anchor(entry)}" aria-labelledby="{_anchor(entry)}-said">
<h2 id="{_anchor(entry)}-said"><small>{escape(entry.photo.name)}: the network says</small>
{escape(said)}</h2>
{_judgement(entry.verdict)}<div class="answer">
<figure><img src="{_data_uri(photo, LONGEST_SIDE)}" alt="{escape(shows)}">
<figcaption>{escape(shows)}{f'. <span class="credit">{escape(credit)}</span>' if credit else ""}</figcaption></figure>
<figure><img src="{_data_uri(_in_place(photo.size, shown), LONGEST_SIDE)}"
alt="{escape(saw)}, each in its place in the photo">
<figcaption>{escape(saw)}, each in its place</figcaption></figure>
<div>
<table class="scores"><caption class="hidden">Classes and their probabilities</caption>
{"".join(_score_row(score.label, score.probability) for score in entry.classification.classes)}</table>
<p class="figures">{photo.width} × {photo.height} pixels · decoded in {timings.decode_ms:.1f} ms
· classified in {timings.inference_ms:.1f} ms</p>
</div>
</div>
{_second(entry)}{_strip(last, shown)}<details{" open" if opened else ""}>
<summary>The layers below, down to edges and colours</summary>
{"".join(_strip(layer, entry.projections[layer.name]) for layer in reversed(lower))}</details>
</section>
"""


def _second(entry: ExplainedPhoto) -> str:
    """Returns what the second network says, and the places that speak for it. "" if none was asked."""
    if (opinion := entry.second) is None:
        return ""
    model, best, why = opinion.classification.model.name, opinion.classification.classes[0].label, opinion.explanation
    with Image.open(io.BytesIO(why.overlay_png)) as overlay:
        heatmap = _data_uri(overlay, LONGEST_SIDE)
    caption = f"Red places speak for “{best}”, blue ones against it ({why.layer}, as {model} sees the photo)"
    return f"""<div class="second">
<h3>{escape(model)} knows {opinion.classes:,} classes, and says <strong>{escape(best)}</strong></h3>
{_judgement(opinion.verdict)}<div class="answer">
<figure><img src="{heatmap}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>
<div>
<table class="scores"><caption class="hidden">Classes of {escape(model)} and their probabilities</caption>
{"".join(_score_row(score.label, score.probability) for score in opinion.classification.classes)}</table>
<p class="figures">classified in {opinion.classification.timings.inference_ms:.1f} ms</p>
</div>
</div>
</div>
"""


def _judgement(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    sentence = f'<span aria-hidden="true">{verdict.mark}</span> {escape(verdict.sentence)}'
    return f'<p class="verdict"><strong class="{verdict.word}">{sentence}</strong> {escape(verdict.why)}</p>\n'


def _in_place(size: tuple[int, int], projections: Sequence[Projection]) -> Image.Image:
    """Returns a picture of the photo's size with every projection in its place. Overlaps keep the extreme values."""
    brightest = darkest = Image.new("RGB", size, ZERO)
    for projection in projections:
        if (box := projection.source_box) and projection.png:
            layer = Image.new("RGB", size, ZERO)
            with Image.open(io.BytesIO(projection.png)) as picture:
                layer.paste(picture.resize((box.right - box.left, box.bottom - box.top)), (box.left, box.top))
            brightest, darkest = ImageChops.lighter(brightest, layer), ImageChops.darker(darkest, layer)
    return ImageChops.add(brightest, darkest, offset=-ZERO[0])


def _score_row(label: str, probability: float) -> str:
    return (
        f'<tr><th scope="row">{escape(label)}</th><td class="bar"><span style="width:{probability:.2%}"></span></td>'
        f"<td>{probability:.1%}</td></tr>\n"
    )


def _strip(layer: Layer, projections: Sequence[Projection]) -> str:
    sees = f"{_FEATURES[layer.name]}; " if layer.name in _FEATURES else ""
    side = layer.receptive_field
    return f"""<div class="layer">
<h3>{escape(layer.name)} <small>{sees}a unit sees {side} × {side} pixels</small></h3>
<ol>{"".join(_tile(layer, projection) for projection in projections)}</ol>
</div>
"""


def _tile(layer: Layer, projection: Projection) -> str:
    where = _box_words(projection.source_box or projection.box)
    name = f"map {projection.map} of {layer.name}"
    crisp = ' class="crisp"' if layer.receptive_field < 40 else ""
    return f"""<li><img{crisp} src="{_data_uri_of(projection.png or b"")}" alt="Pixels that drove {name}">
<img{crisp} src="{_data_uri_of(projection.patch_png)}" alt="The photo at {where}">
<span>map {projection.map} <i>{_strength(projection)}</i></span></li>
"""


def _strength(projection: Projection) -> str:
    return f"{projection.activation:.1f}" if projection.attribution is None else f"{projection.attribution:+.2f}"


def _box_words(box: Box) -> str:
    return f"columns {box.left} to {box.right}, rows {box.top} to {box.bottom}"


def _anchor(entry: ExplainedPhoto) -> str:
    return escape(entry.photo.stem.replace(" ", "-"))


def _name(entry: ExplainedPhoto) -> str:
    return entry.photo.stem.replace("-", " ")


def _data_uri_of(png: bytes) -> str:
    with Image.open(io.BytesIO(png)) as picture:
        return _data_uri(picture, LONGEST_SIDE)


def _data_uri(picture: Image.Image, longest: int) -> str:
    """Returns the picture as WebP, a fifth of PNG's size. Small pictures are lossless: their pixels are visible."""
    picture = picture.convert("RGB")
    picture.thumbnail((longest, longest))
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=max(picture.size) < 40, quality=82)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
