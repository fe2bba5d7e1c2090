"""Tests which versions a scan finds, and when a version counts as changed."""

import logging
import os
import shutil
from pathlib import Path

import pytest
from fakes.serving import MANIFEST
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.model_repository import FoundVersion, ModelRepository, group_by_model


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


def test_a_folder_holds_a_bundle_a_model_or_several_models(models: Path) -> None:
    several = ModelRepository([models]).scan()
    assert names(several) == [("birds", "10"), ("birds", "9"), ("fish", "1")]
    assert names(ModelRepository([models / "birds"]).scan()) == [("birds", "10"), ("birds", "9")]
    (pinned,) = ModelRepository([models / "birds" / "9"]).scan()
    assert pinned.pinned
    assert not any(version.pinned for version in several)
    together = ModelRepository([models / "fish", models / "birds" / "9"]).scan()
    assert names(together) == [("fish", "1"), ("birds", "9")]
    assert {name: len(versions) for name, versions in group_by_model(several).items()} == {"birds": 2, "fish": 1}


@pytest.mark.parametrize("missing", ["nowhere", "models/birds/11"])
def test_a_folder_with_nothing_in_it_is_an_error(models: Path, missing: str) -> None:
    with pytest.raises(BundleError, match="there is no bundle at"):
        ModelRepository([models, models.parent / missing]).scan()


def test_a_manifest_that_cannot_be_read_takes_its_name_from_its_neighbours(models: Path) -> None:
    (models / "birds").rename(models / "mounted")
    broken = models / "mounted" / "11" / "manifest.json"
    broken.write_text('{"schema_version": 2}')
    repository = ModelRepository([models / "mounted"])
    assert names(repository.scan()) == [("birds", "11"), ("birds", "10"), ("birds", "9")]
    assert repository.scan()[0].fingerprint == ""


def test_a_changed_bundle_differs_from_one_that_was_only_touched(models: Path) -> None:
    repository, bundle = ModelRepository([models / "fish" / "1"]), models / "fish" / "1"

    def found() -> FoundVersion:
        return repository.scan()[0]

    first = found()
    assert found() == first
    os.utime(bundle / "manifest.json", ns=(1, 1))
    touched = found()
    assert (touched.manifest_digest, touched.files != first.files) == (first.manifest_digest, True)
    (bundle / "model.onnx").write_bytes(b"arrives during the copy")
    (bundle / "engines").mkdir()  # compiled engines come and go in it
    assert found().files != touched.files
    manifest = MANIFEST.model_copy(update={"name": "fish", "version": "1", "fingerprint": "0" * 64})
    (bundle / "manifest.json").write_text(manifest.model_dump_json())
    assert found().manifest_digest != first.manifest_digest
    assert found().fingerprint == "0" * 64


def test_a_new_mode_counts_as_a_change(models: Path) -> None:
    repository = ModelRepository([models / "fish"])
    (before,) = repository.scan()
    (models / "fish" / "1" / "manifest.json").chmod(0o600)
    (after,) = repository.scan()
    assert after.files != before.files


def test_an_unreadable_folder_counts_as_unchanged_and_hides_no_other(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = ModelRepository([models])
    repository.scan()
    manifest = models / "birds" / "10" / "manifest.json"
    manifest.unlink()
    manifest.symlink_to(manifest)  # not even root can follow it
    write(models / "fish" / "2", "fish", "2")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert names(repository.scan()) == [("birds", "10"), ("birds", "9"), ("fish", "2"), ("fish", "1")]
    (logged,) = [record for record in caplog.records if record.message == "a folder cannot be read"]
    assert logged.__dict__["folder"] == str(manifest.parent)
    assert names(ModelRepository([models]).scan()) == [("birds", "9"), ("fish", "2"), ("fish", "1")]


def test_one_of_several_folders_may_become_empty(models: Path) -> None:
    repository = ModelRepository([models / "fish", models / "birds"])
    repository.scan()
    shutil.rmtree(models / "fish")
    assert names(repository.scan()) == [("birds", "10"), ("birds", "9")]
    shutil.rmtree(models / "birds")
    with pytest.raises(BundleError, match=r"there is no bundle at .* any more"):
        repository.scan()
    write(models / "fish" / "3", "fish", "3")
    assert names(repository.scan()) == [("fish", "3")]


@pytest.mark.parametrize("text", ["[" * 200_000, '{"schema_version": 1', ""])
def test_a_broken_manifest_does_not_hide_other_versions(models: Path, text: str) -> None:
    (models / "birds" / "10" / "manifest.json").write_text(text)
    assert names(ModelRepository([models]).scan()) == [("birds", "10"), ("birds", "9"), ("fish", "1")]


def test_a_version_of_thousands_of_digits_is_a_word(models: Path) -> None:
    write(models / "birds" / "long", "birds", "1" * 5000)
    assert [version.version[:2] for version in ModelRepository([models / "birds"]).scan()] == ["10", "9", "11"]
