"""What is found in folders, and when it counts as changed."""

import os
from pathlib import Path

import pytest
from fakes.serving import MANIFEST
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.model_folders import FoundVersion, ModelFolders, by_model


def write(folder: Path, name: str, version: str) -> Path:
    folder.mkdir(parents=True)
    manifest = MANIFEST.model_copy(update={"name": name, "version": version})
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def names(found: list[FoundVersion]) -> list[tuple[str, str]]:
    return [(version.name, version.version) for version in found]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, version in (("fish", "1"), ("birds", "9"), ("birds", "10")):
        write(tmp_path / "models" / name / version, name, version)
    (tmp_path / "models" / "birds" / "11").mkdir()  # still being copied
    write(tmp_path / "models" / "birds" / ".12.partial", "birds", "12")
    (tmp_path / "models" / "README").write_text("not a folder")
    return tmp_path / "models"


def test_a_folder_is_of_a_bundle_of_a_model_or_of_several(models: Path) -> None:
    several = ModelFolders([models]).look()
    assert names(several) == [("birds", "10"), ("birds", "9"), ("fish", "1")]
    assert names(ModelFolders([models / "birds"]).look()) == [("birds", "10"), ("birds", "9")]
    (pinned,) = ModelFolders([models / "birds" / "9"]).look()
    assert pinned.pinned
    assert not any(version.pinned for version in several)
    together = ModelFolders([models / "fish", models / "birds" / "9"]).look()
    assert names(together) == [("fish", "1"), ("birds", "9")]
    assert {name: len(versions) for name, versions in by_model(several).items()} == {"birds": 2, "fish": 1}


@pytest.mark.parametrize("missing", ["nowhere", "models/birds/11"])
def test_a_folder_with_nothing_in_it_is_an_error(models: Path, missing: str) -> None:
    with pytest.raises(BundleError, match="there is no bundle at"):
        ModelFolders([models, models.parent / missing]).look()


def test_a_manifest_that_cannot_be_read_takes_its_name_from_its_neighbours(models: Path) -> None:
    (models / "birds").rename(models / "mounted")
    broken = models / "mounted" / "11" / "manifest.json"
    broken.write_text('{"schema_version": 2}')
    folders = ModelFolders([models / "mounted"])
    assert names(folders.look()) == [("birds", "11"), ("birds", "10"), ("birds", "9")]
    assert folders.look()[0].fingerprint == ""


def test_what_changed_can_be_told_from_what_was_only_touched(models: Path) -> None:
    folders, bundle = ModelFolders([models / "fish" / "1"]), models / "fish" / "1"

    def look() -> FoundVersion:
        return folders.look()[0]

    first = look()
    assert look() == first
    os.utime(bundle / "manifest.json", ns=(1, 1))
    touched = look()
    assert (touched.content, touched.files != first.files) == (first.content, True)
    (bundle / "model.onnx").write_bytes(b"arrives while the folder is copied")
    (bundle / "engines").mkdir()  # where compiled engines come and go
    assert look().files != touched.files
    manifest = MANIFEST.model_copy(update={"name": "fish", "version": "1", "fingerprint": "0" * 64})
    (bundle / "manifest.json").write_text(manifest.model_dump_json())
    assert look().content != first.content
    assert look().fingerprint == "0" * 64
