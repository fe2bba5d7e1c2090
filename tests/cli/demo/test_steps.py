"""Tests the steps of the demo against a fake service."""

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from rich.console import Console
from zfserve import Client
from zfserve.results import Box
from zfserve_cli.demo.page import ExplainedPhoto, render_page
from zfserve_cli.demo.photo_truth import Verdict
from zfserve_cli.demo.steps import DemoFailed, check_names, ensure_bundle, explain_photos
from zfserve_cli.exit_statuses import UNUSABLE

ROOT = Path(__file__).parents[3]
SAMPLES = sorted((ROOT / "samples").glob("*.jpg"))


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_the_demo_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zfserve_cli.demo", "--photos", str(tmp_path / "none"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == UNUSABLE, done.stderr
    assert done.stdout.startswith("error: ")


def test_an_existing_bundle_is_not_exported_again(tmp_path: Path, console: Console) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "manifest.json").touch()
    ensure_bundle(tmp_path, str(tmp_path / "none.safetensors"), console)


def test_missing_weights_are_an_error(tmp_path: Path, console: Console) -> None:
    with pytest.raises(DemoFailed, match="no weights at"):
        ensure_bundle(tmp_path / "model", str(tmp_path / "none.safetensors"), console)


def test_photos_that_would_replace_each_other_or_themselves_are_refused(tmp_path: Path) -> None:
    check_names([tmp_path / "a.jpg", tmp_path / "b.jpg"], tmp_path / "out")
    with pytest.raises(ValueError, match="several photos called a;"):
        check_names([tmp_path / "one" / "a.jpg", tmp_path / "two" / "a.png"], tmp_path / "out")
    with pytest.raises(ValueError, match="give another folder"):
        check_names([tmp_path / "a.jpg"], tmp_path)


def test_a_page_and_sheets_for_every_photo(address: str, tmp_path: Path, console: Console) -> None:
    photos = [photo for photo in SAMPLES if photo.stem in ("church", "perch")]
    with Client(address) as client:
        page = explain_photos(client, photos, tmp_path, console)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "church-conv1.png",
        "church.jpg",
        "index.html",
        "perch-conv1.png",
        "perch.jpg",
    ]
    parsed = PageParts()
    parsed.feed(page.read_text())
    # Each photo has itself, one picture of all projections in their places, and nine projections with their patches.
    assert len(parsed.images) == 2 * (1 + 1 + 2 * 9)
    assert all(source.startswith("data:image/webp;base64,") and alt for source, alt in parsed.images)
    assert not parsed.links
    assert "Peter Haas · CC BY-SA 3.0" in page.read_text()
    printed = console.file
    assert isinstance(printed, io.StringIO)
    # The `why` of the samples is about other weights than the fake service has, so it must not appear.
    for text in (page.read_text(), printed.getvalue()):
        assert "the photo shows “yellow perch”, none of its 3 classes" in text
        assert "gill cover" not in text


def test_a_second_network_is_asked_about_the_same_photos(address: str, tmp_path: Path, console: Console) -> None:
    with Client(address) as client:
        page = explain_photos(client, SAMPLES[:1], tmp_path, console, second="birds")
    assert (tmp_path / "church-birds.png").is_file()
    parsed = PageParts()
    parsed.feed(page.read_text())
    assert len(parsed.images) == 1 + 1 + 1 + 2 * 9
    assert "Red places speak for" in page.read_text()
    assert "knows 3 classes, and says" in page.read_text()
    printed = console.file
    assert isinstance(printed, io.StringIO)
    assert "birds calls church.jpg" in printed.getvalue()


def test_a_page_escapes_every_text(address: str, tmp_path: Path) -> None:
    photo = tmp_path / "a<b>.png"
    Image.new("RGB", (4, 4)).save(photo)
    with Client(address) as client:
        answer, description = client.classify(photo), client.describe()
        projections = list(client.project(photo, "conv1"))
    page = render_page(
        [ExplainedPhoto(photo, answer, {"conv1": projections}, Verdict("wrong", "Wrong: <b>", "<b>"))],
        replace(description, model=replace(description.model, name="<script>")),
        description.layers[:1],
    )
    assert "<script>" not in page
    assert "<b>" not in page
    assert "Wrong: &lt;b&gt;</strong> &lt;b&gt;" in page


def test_projections_are_in_their_places_in_the_upright_photo(address: str, tmp_path: Path) -> None:
    photo = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(photo, exif=exif)
    with Client(address) as client:
        answer, description = client.classify(photo), client.describe()
        (projection,) = client.project(photo, "conv1", strongest=1)
    png = io.BytesIO()
    Image.new("RGB", (2, 2), "white").save(png, "PNG")
    projection = replace(projection, png=png.getvalue(), source_box=Box(4, 20, 12, 28))
    page = render_page(
        [ExplainedPhoto(photo, answer, {"conv1": [projection]}, None)], description, description.layers[:1]
    )
    parsed = PageParts()
    parsed.feed(page)
    shown, placed = (_picture(source) for source, _ in parsed.images[:2])
    assert shown.size == placed.size == (20, 40)
    bright = placed.convert("L").point(lambda value: 255 if value > 200 else 0)
    assert bright.getbbox() == (4, 20, 12, 28)
    assert placed.getpixel((1, 1)) == (128, 128, 128)


@pytest.mark.parametrize("photo", SAMPLES, ids=lambda photo: photo.name)
def test_every_sample_names_its_content_its_author_and_its_licence(photo: Path) -> None:
    with Image.open(photo) as opened:
        exif = opened.getexif()
        assert 200 <= max(opened.size) <= 700
    row = next(line for line in (ROOT / "samples/ATTRIBUTION.md").read_text().splitlines() if f"`{photo.name}`" in line)
    assert exif[ExifTags.Base.ImageDescription]
    for tag in (ExifTags.Base.Artist, ExifTags.Base.Copyright):
        first = re.split(r" \(", exif[tag])[0]
        assert first.lower() in row.lower()


def test_the_samples_are_few_and_small() -> None:
    assert 4 <= len(SAMPLES) <= 8
    assert sum(photo.stat().st_size for photo in SAMPLES) < 1_500_000


def _picture(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


class PageParts(HTMLParser):
    """Collects the pictures of a page, and the links to anything outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, str]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if tag == "img":
            self.images.append((given["src"], given["alt"]))
        for name in ("src", "href"):
            if not given.get(name, "#").startswith(("#", "data:")):
                self.links.append(given[name])
