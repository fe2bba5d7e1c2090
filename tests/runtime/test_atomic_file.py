import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.engine_store import unprivileged
from zfserve_runtime.atomic_file import ChecksummedFile, write_atomically


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"first, and longer", b"second"):
        write_atomically(file, content)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        write_atomically(folder, b"content")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_checksummed_file_returns_what_was_written(tmp_path: Path) -> None:
    cache = ChecksummedFile(tmp_path / "cache")
    assert cache.read() is None
    for content in (b"measurements", b""):
        cache.write(content)
        assert cache.read() == content


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content[:9], lambda content: b""])
def test_a_damaged_cache_is_ignored(
    tmp_path: Path, change: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    cache = ChecksummedFile(tmp_path / "cache")
    cache.write(b"measurements")
    cache.path.write_bytes(change(cache.path.read_bytes()))
    assert cache.read() is None
    assert "is damaged" in caplog.text


def test_an_inaccessible_cache_is_no_failure(open_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = ChecksummedFile(open_folder / "cache")
    cache.write(b"measurements")
    cache.path.chmod(0)
    open_folder.chmod(0o555)
    with unprivileged():
        cache.write(b"others")
        assert cache.read() is None
    assert [record.getMessage().rpartition("/")[2] for record in caplog.records] == [
        "cache cannot be written: Permission denied",
        "cache cannot be read: Permission denied",
    ]
