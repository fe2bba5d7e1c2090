import threading
from pathlib import Path

import pytest
from zfserve_runtime.file_lock import exclusive_lock, is_in_use, is_locked, remove_unless_in_use, shared_lock

# flock(2) excludes file descriptors, not processes. So one process suffices here; tests of the engine store use
# several.


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with exclusive_lock(file, on_wait=None):
        assert is_locked(file)
        with pytest.raises(BlockingIOError), exclusive_lock(file, on_wait=None):
            pytest.fail("two hold it")


def test_a_released_lock_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path / "lock", on_wait=None):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_waiting_threads_get_the_lock_one_by_one(tmp_path: Path) -> None:
    """Each holder removes the file that the others wait for. None of them may mistake the removed file for the lock."""
    waiting, inside, visits = threading.Semaphore(0), threading.Lock(), []

    def visit() -> None:
        with exclusive_lock(tmp_path / "lock", on_wait=waiting.release):
            assert inside.acquire(blocking=False), "two hold it"
            visits.append(threading.get_ident())
            inside.release()

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    with exclusive_lock(tmp_path / "lock", on_wait=None):
        for visitor in visitors:
            visitor.start()
        for _ in visitors:
            waiting.acquire()
    for visitor in visitors:
        visitor.join()
    assert len(visits) == 4


def test_a_lock_file_that_was_left_behind_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.touch()
    assert not is_locked(file)
    with exclusive_lock(file, on_wait=None):
        assert is_locked(file)


def test_a_file_in_use_is_not_removed(tmp_path: Path) -> None:
    file = tmp_path / "plan"
    file.write_bytes(b"plan")
    with shared_lock(file), shared_lock(file):
        assert is_in_use(file)
        assert not is_locked(file)
        assert not remove_unless_in_use(file)
    assert not is_in_use(file)
    assert remove_unless_in_use(file)
    assert not file.exists()
    assert remove_unless_in_use(file)
