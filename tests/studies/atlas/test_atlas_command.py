"""Tests `zfserve atlas` against a service that computes activations from the bytes of photos, over real gRPC."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from fakes.atlas_service import AtlasService, activations
from fakes.vision_service import DESCRIPTION, Failure, listening
from PIL import Image
from zfserve_cli.main import main
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_studies.atlas import question, scan

Run = Callable[..., int]


@pytest.fixture
def service() -> AtlasService:
    return AtlasService(description=DESCRIPTION)


@pytest.fixture
def run(service: AtlasService) -> Iterator[Run]:
    with listening(service) as port:
        yield lambda *arguments: main([*map(str, arguments), "--address", f"127.0.0.1:{port}", "--timeout", "20"])


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(question, "BATCH_PHOTOS", 4)
    monkeypatch.setattr(scan, "CHECKPOINT_BATCHES", 2)
    folder = tmp_path / "images"
    for number in range(100):
        file = folder / f"class{number % 3}" / f"{number:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(number.to_bytes(2, "big"))
    return folder


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def files_of(folder: Path) -> dict[str, bytes]:
    names = ("atlas.json", "atlas.html", "page-001.png")
    return {name: (folder / name).read_bytes() for name in names}


def test_an_atlas_has_the_strongest_photos_of_each_map(run: Run, images: Path, tmp_path: Path) -> None:
    (images / "copy.jpg").write_bytes((7).to_bytes(2, "big"))
    output = tmp_path / "atlas"
    assert run("atlas", "--images", images, "--layer", "conv1", "--maps", "0-2,40", "--output", output) == 0
    atlas = json.loads((output / "atlas.json").read_text())
    assert (atlas["layer"], atlas["photos"], atlas["dead"]) == ("conv1", 101, [1])
    assert [each["map"] for each in atlas["maps"]] == [0, 1, 2, 40]
    contents = {file.read_bytes() for file in images.rglob("*.jpg")}
    expected = sorted(contents, key=lambda each: (-activations(each)[40], hashlib.sha256(each).hexdigest()))[:9]
    assert [each["sha256"] for each in atlas["maps"][3]["photos"]] == [
        hashlib.sha256(each).hexdigest() for each in expected
    ]
    first = atlas["maps"][3]["photos"][0]
    assert (first["row"], first["column"]) == (2, 40)
    for name in ("projection", "patch"):
        assert size_of(output / first[name]) == (4, 2)
    page = (output / "atlas.html").read_text()
    assert page.count("<figure id=") == 4
    assert "http" not in page.replace("http-equiv", "")


def test_shards_merge_to_the_whole(run: Run, images: Path, tmp_path: Path) -> None:
    options = ("--images", images, "--layer", "conv1", "--maps", "0-11")
    assert run("atlas", *options, "--output", tmp_path / "whole") == 0
    shards = [tmp_path / f"shard{number}" for number in range(3)]
    for number, shard in enumerate(shards):
        assert run("atlas", *options, "--shard", f"{number}/3", "--output", shard) == 0
    merged = tmp_path / "merged"
    assert run("atlas", "merge", *shards[::-1], "--images", images, "--output", merged) == 0
    assert files_of(merged) == files_of(tmp_path / "whole")


def test_a_run_that_was_killed_continues_to_the_same_result(
    run: Run, service: AtlasService, images: Path, tmp_path: Path
) -> None:
    options = ("atlas", "--images", images, "--layer", "conv1", "--maps", "0-3")
    assert run(*options, "--output", tmp_path / "whole") == 0
    killed = tmp_path / "killed"
    service.interrupt_after = 17
    assert run(*options, "--output", killed) == 1
    done = json.loads((killed / "scan.json").read_text())["batches"]
    assert 0 < done < 25
    assert done % 2 == 0
    service.interrupt_after = -1
    service.study_requests.clear()
    assert run(*options, "--output", killed) == 0
    assert len(service.study_requests) == 25 - done
    assert files_of(killed) == files_of(tmp_path / "whole")
    service.project_requests.clear()
    assert run(*options, "--output", killed) == 0
    assert not service.project_requests, "all tiles are there"


def test_a_server_that_restarts_is_waited_for(run: Run, service: AtlasService, images: Path, tmp_path: Path) -> None:
    away = Failure(grpc.StatusCode.UNAVAILABLE, "stopping", "SHUTTING_DOWN", pushback_ms=-1)
    service.failures = [away, away]
    service.project_failures = [away]
    assert run("atlas", "--images", images, "--layer", "conv1", "--maps", "0", "--output", tmp_path / "a") == 0


def test_a_photo_that_cannot_be_decoded_is_skipped(
    run: Run, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "bad.jpg").write_bytes(b"no photo")
    output = tmp_path / "atlas"
    assert run("atlas", "--images", images, "--layer", "conv1", "--maps", "0", "--output", output) == 1
    atlas = json.loads((output / "atlas.json").read_text())
    assert atlas["photos"] == 100
    assert atlas["skipped"] == [{"photo": "bad.jpg", "reason": "the photo cannot be decoded"}]
    assert "bad.jpg: the photo cannot be decoded" in capsys.readouterr().err


def test_photos_are_ranked_by_what_they_add_to_a_class(
    run: Run, service: AtlasService, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "atlas"
    options = ("--for-class", "church", "--class-maps", 4, "--maps", "2", "--no-patches")
    assert run("atlas", "--images", images, "--layer", "conv1", *options, "--output", output) == 0
    atlas = json.loads((output / "atlas.json").read_text())
    assert (atlas["ranked_by"], atlas["computed"]) == ("attribution", ["fp32 on the worker"])
    best = atlas["maps"][0]["photos"][0]
    assert best["value"] == best["activation"] - 0.5 > 0
    assert best["patch"] is None
    assert not service.study_requests


def test_a_network_that_cannot_be_projected_has_patches(
    run: Run, service: AtlasService, images: Path, tmp_path: Path
) -> None:
    service.description = pb.DescribeModelResponse()
    service.description.CopyFrom(DESCRIPTION)
    service.description.projection_available = False
    for file in images.rglob("*.jpg"):
        Image.new("RGB", (30, 20), (file.stat().st_mtime_ns % 256, int(file.stem), 0)).save(file, "PNG")
    output = tmp_path / "atlas"
    assert run("atlas", "--images", images, "--layer", "conv1", "--maps", "0", "--output", output) == 0
    first = json.loads((output / "atlas.json").read_text())["maps"][0]["photos"][0]
    assert first["projection"] is None
    assert size_of(output / first["patch"]) == (6, 7), "column 0 begins one pixel left of the input"
    assert not service.project_requests


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--layer", "conv9"), "zfnet has no layer 'conv9'; did you mean conv1?"),
        (("--layer", "conv1", "--maps", "90-99"), "conv1 has the maps 0 to 95, and not 90-99"),
        (("--layer", "conv1", "--maps", "a"), "--maps 'a' is not like 0-15,40"),
        (("--layer", "conv1", "--for-class", "bee", "--class-maps", "0"), "--class-maps is 0, and conv1 has 96 maps"),
        (("--layer", "conv1", "--weights", "gone.safetensors", "--maps", "0"), "gone.safetensors cannot be read"),
    ],
)
def test_bad_arguments(
    run: Run,
    images: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("atlas", "--images", images, *arguments, "--output", tmp_path / "atlas") == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_what_does_not_belong_together_is_refused(
    run: Run, service: AtlasService, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shard(number: int, of: int, name: str, *options: str) -> Path:
        folder = tmp_path / name
        wanted = options or ("--maps", "0")
        flags = ("--images", images, "--layer", "conv1", *wanted, "--shard", f"{number}/{of}", "--output", folder)
        assert run("atlas", *flags) == 0
        return folder

    def refused(sentence: str, *folders: Path) -> None:
        capsys.readouterr()
        assert run("atlas", "merge", *folders, "--images", images, "--output", tmp_path / "merged") == 2
        told = " ".join(capsys.readouterr().err.split())
        assert sentence in told
        assert "Traceback" not in told

    first, second = shard(0, 2, "first"), shard(1, 2, "second")
    refused("shard 1 of 2 is missing", first)
    refused("both hold shard 0", first, first)
    refused("is one of 2 shards, and", first, shard(1, 3, "third"))
    refused("hold shards with maps [0] and [1]", first, shard(1, 2, "other-maps", "--maps", "1"))
    refused("holds no shard", first, tmp_path)
    state = json.loads((second / "scan.json").read_text())
    (second / "scan.json").write_text(json.dumps(state | {"finished": False}))
    refused("is not finished; give its command again", first, second)
    (second / "scan.json").write_text(json.dumps(state | {"computed": ["fp32 on onnx-cpu"]}))
    refused("serve with one --precision", first, second)
    (second / "scan.json").write_text(json.dumps(state))
    plan = json.loads((second / "run.json").read_text())
    plan["model"]["fingerprint"] = "cd34"
    (second / "run.json").write_text(json.dumps(plan))
    refused("hold shards of different models", first, second)
    plan["model"]["fingerprint"] = "ab12"
    (second / "run.json").write_text(json.dumps(plan))
    (images / "class0" / "000.jpg").write_bytes(b"longer")
    refused("have changed since the shards were read", first, second)
    assert run("atlas", "--images", images, "--layer", "conv1", "--maps", "0", "--shard", "0/2", "--output", first) == 2
    assert "the photos have changed since the run" in " ".join(capsys.readouterr().err.split())


def test_a_photo_that_changed_after_it_was_read(
    run: Run, service: AtlasService, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("atlas", "--images", images, "--layer", "conv1", "--maps", "0", "--output", tmp_path / "atlas")
    service.project_failures = [Failure(grpc.StatusCode.INTERNAL, "lost")]
    assert run(*options) == 1
    for file in images.rglob("*.jpg"):
        file.write_bytes(bytes(reversed(file.read_bytes())) if file.read_bytes()[1] else b"zz")
    for tile in (tmp_path / "atlas" / "tiles").iterdir():
        tile.unlink()
    assert run(*options) == 2
    assert "has changed since it was read" in " ".join(capsys.readouterr().err.split())
