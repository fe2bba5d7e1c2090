"""The demo's steps: the service it starts is a stand-in, the calls go to the fake service."""

import io
import json
import os
import re
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from rich.console import Console
from zfserve_client import Client, demo
from zfserve_client.demo import DemoFailed, ensure_bundle, explain_photos, running_service
from zfserve_client.demo_page import Explained, render_page

ROOT = Path(__file__).parent.parent.parent
SAMPLES = sorted((ROOT / "samples").glob("*.jpg"))

STAND_IN = """
import json, os, pathlib, signal, sys, threading

def add_arguments(parser):
    for name in ("--model", "--port", "--metrics-port", "--ready-file"):
        parser.add_argument(name)

def run(arguments):
    {body}
"""


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose text becomes the body of `zfserve serve` in child processes."""
    package = tmp_path / "stand-in" / "zfserve_server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return package / "serve_command.py"


def test_the_service_runs_while_it_is_needed_and_no_longer(
    stand_in: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
    signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("stopped").touch(), os._exit(0)))
    ready = pathlib.Path(arguments.ready_file)
    told = {"port": 1234, "pid": os.getpid(), "environment": dict(os.environ)}
    ready.with_name("partial").write_text(json.dumps(told))
    ready.with_name("partial").replace(ready)
    threading.Event().wait()"""
    stand_in.write_text(STAND_IN.format(body=body))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZFSERVE_PORT", "1")
    with running_service(Path("models/zfnet"), tmp_path, console) as address:
        assert address == "localhost:1234"
        told = json.loads((tmp_path / "service.ready").read_text())
        pid = told["pid"]
        os.kill(pid, 0)
        assert not any(name.startswith("ZFSERVE_") for name in told["environment"])
    assert (tmp_path / "stopped").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_service_that_ends_at_once_is_quoted(stand_in: Path, tmp_path: Path, console: Console) -> None:
    stand_in.write_text(STAND_IN.format(body='print("no bundle there"); return 2'))
    with (
        pytest.raises(DemoFailed, match="ended before it was ready:\nno bundle there"),
        running_service(Path("models/zfnet"), tmp_path, console),
    ):
        pass


def test_a_service_that_is_never_ready_is_stopped(
    stand_in: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "STARTING_S", 0.3)
    stand_in.write_text(STAND_IN.format(body="threading.Event().wait()"))
    with pytest.raises(DemoFailed, match="not ready within"), running_service(Path("m"), tmp_path, console):
        pass


def test_the_body_may_fail_and_the_service_is_stopped(stand_in: Path, tmp_path: Path, console: Console) -> None:
    body = 'pathlib.Path(arguments.ready_file).write_text(json.dumps({"port": os.getpid()})); threading.Event().wait()'
    stand_in.write_text(STAND_IN.format(body=body))
    with suppress(KeyboardInterrupt), running_service(Path("m"), tmp_path, console) as address:
        pid = int(address.split(":")[1])
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_bundle_that_is_there_is_not_exported_again(tmp_path: Path, console: Console) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "manifest.json").touch()
    ensure_bundle(tmp_path, tmp_path / "none.safetensors", console)


def test_missing_weights(tmp_path: Path, console: Console) -> None:
    with pytest.raises(DemoFailed, match="no weights at"):
        ensure_bundle(tmp_path / "model", tmp_path / "none.safetensors", console)


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
    # Per photo: itself, and nine projections with their patches.
    assert len(parsed.images) == 2 * (1 + 2 * 9)
    assert all(source.startswith("data:image/webp;base64,") and alt for source, alt in parsed.images)
    assert not parsed.links
    assert "Peter Haas · CC BY-SA 3.0" in page.read_text()


def test_a_page_escapes_what_it_is_told(address: str, tmp_path: Path) -> None:
    photo = tmp_path / "a<b>.png"
    Image.new("RGB", (4, 4)).save(photo)
    with Client(address) as client:
        answer, description = client.classify(photo), client.describe()
    page = render_page(
        [Explained(photo, answer, {})],
        replace(description, model=replace(description.model, name="<script>")),
        description.layers[:0],
    )
    assert "<script>" not in page
    assert "<b>" not in page


@pytest.mark.parametrize("photo", SAMPLES, ids=lambda photo: photo.name)
def test_every_sample_says_what_it_shows_whose_it_is_and_its_licence(photo: Path) -> None:
    with Image.open(photo) as opened:
        exif = opened.getexif()
        assert 200 <= max(opened.size) <= 700
    row = next(line for line in (ROOT / "samples/ATTRIBUTION.md").read_text().splitlines() if f"`{photo.name}`" in line)
    assert exif[ExifTags.Base.ImageDescription]
    for tag in (ExifTags.Base.Artist, ExifTags.Base.Copyright):
        first = re.split(r" \(", exif[tag])[0]
        assert first.lower() in row.lower()


def test_the_samples_are_several_and_small() -> None:
    assert 4 <= len(SAMPLES) <= 8
    assert sum(photo.stat().st_size for photo in SAMPLES) < 1_500_000


class PageParts(HTMLParser):
    """The pictures of a page, and whatever it would load from elsewhere."""

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
