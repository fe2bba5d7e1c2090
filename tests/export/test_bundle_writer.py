import errno
import stat
from pathlib import Path

import pytest
from zfserve_export.bundle_writer import bundle_draft, next_version, publish
from zfserve_runtime.bundle import Bundle, BundleError, Manifest, file_digest


@pytest.fixture
def manifest(bundle: Bundle) -> Manifest:
    return bundle.manifest.model_copy(update={"files": {}})


def test_publish_moves_the_draft_and_lists_its_files(tmp_path: Path, manifest: Manifest) -> None:
    target = tmp_path / "models" / "tiny" / "1"
    with bundle_draft(target) as draft:
        assert draft.parent == target.parent, "a rename must not cross file systems"
        assert draft.name.startswith("."), "readers must pass over it"
        (draft / "engines").mkdir()
        (draft / "engines" / "a.plan").write_bytes(b"plan")
        (draft / "model.onnx").write_bytes(b"graph")
        publish(draft, target, manifest)
    assert [entry.name for entry in target.parent.iterdir()] == ["1"]
    written = Manifest.model_validate_json((target / "manifest.json").read_text())
    assert written.files == {name: file_digest(target / name) for name in ("engines/a.plan", "model.onnx")}


def test_others_may_read_a_bundle(tmp_path: Path, manifest: Manifest) -> None:
    """safetensors writes files that only their owner can read, but the worker may run as another user."""
    with bundle_draft(tmp_path / "1") as draft:
        (draft / "weights.safetensors").write_bytes(b"weights")
        (draft / "weights.safetensors").chmod(0o600)
        (tmp_path / "ordinary").write_bytes(b"")
        publish(draft, tmp_path / "1", manifest)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "ordinary", *(tmp_path / "1").iterdir())}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:

    def export() -> None:
        with bundle_draft(tmp_path / "models" / "tiny" / "1") as draft:
            (draft / "model.onnx").write_bytes(b"half a gra")
            raise error

    with pytest.raises(error):
        export()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("a file")
    with pytest.raises(BundleError, match=r"tiny cannot be written: Not a directory; choose another --output"):
        bundle_draft(tmp_path / "tiny" / "1").__enter__()
    with pytest.raises(BundleError, match="cannot be read: File name too long; choose another --output"):
        bundle_draft(tmp_path / ("a" * 300) / "1").__enter__()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"cannot be written: No space left on device; .* make room there"),
        bundle_draft(tmp_path / "tiny" / "1"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_what_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "tiny" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match="later"), bundle_draft(tmp_path / "tiny" / "2"):
        raise ValueError("later")
    assert [entry.name for entry in (tmp_path / "tiny").iterdir()] == ["1"]


def test_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(BundleError, match="never overwritten; choose another --version"), bundle_draft(tmp_path / "1"):
        pytest.fail("entered")


def test_of_two_exports_of_one_version_the_later_fails(tmp_path: Path, manifest: Manifest) -> None:
    target = tmp_path / "1"
    with bundle_draft(target) as draft:
        target.mkdir()
        (target / "manifest.json").write_text("the other's")
        with pytest.raises(BundleError, match="run the export again"):
            publish(draft, target, manifest)
    assert (target / "manifest.json").read_text() == "the other's"
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("held", "following"), [((), "1"), (("1",), "2"), (("9", "10"), "11"), (("1", "2.0-rc1", ".3.77.partial"), "2")]
)
def test_next_version(tmp_path: Path, held: tuple[str, ...], following: str) -> None:
    for name in held:
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == following


def test_next_version_of_a_model_without_a_folder(tmp_path: Path) -> None:
    assert next_version(tmp_path / "none") == "1"
