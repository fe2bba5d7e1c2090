"""Tests the engine store with several real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.engine_store import AHEAD, Builder, quiet
from zfserve_engines.store.store import EngineStore

TESTS = Path(__file__).parents[2]
SIZE_BYTES = 1 << 20


class BuilderProcess:
    """Runs tests/fakes/builder_process.py, whose plan consists of `letter`."""

    def __init__(self, folder: Path, letter: str) -> None:
        command = [sys.executable, "-m", "fakes.builder_process", str(folder), letter, str(SIZE_BYTES)]
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def read_event(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def send(self, order: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()


@contextmanager
def building(folder: Path, letter: str) -> Iterator[BuilderProcess]:
    builder = BuilderProcess(folder, letter)
    try:
        yield builder
    finally:
        builder.process.kill()
        builder.process.communicate()


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def test_one_of_two_processes_builds_and_both_get_the_engine(store: EngineStore) -> None:
    with building(store.folder, "a") as first, building(store.folder, "b") as second:
        starts = {first.read_event(): first, second.read_event(): second}
        assert set(starts) == {"building", "waiting"}
        starts["building"].send("go")
        answers = {starts["building"].read_event(), starts["waiting"].read_event()}
    assert len(answers) == 1
    assert f"has {store.find(AHEAD).plan[:1].decode()}" in answers
    assert len(list(store.folder.iterdir())) == 2


def test_a_process_that_waits_builds_when_the_builder_is_killed(store: EngineStore) -> None:
    with building(store.folder, "a") as first:
        assert first.read_event() == "building"
        with building(store.folder, "b") as second:
            assert second.read_event() == "waiting"
            first.process.kill()
            assert second.read_event() == "building"
            second.send("go")
            assert second.read_event() == "has b"
    assert store.find(AHEAD).plan == b"b" * SIZE_BYTES


def test_a_builder_that_dies_while_it_writes_leaves_no_engine_and_no_lock(store: EngineStore) -> None:
    with building(store.folder, "a") as builder:
        assert builder.read_event() == "building"
        builder.send("die")
        assert builder.process.wait() < 0
    (half,) = store.partial_files()
    assert half.stat().st_size == SIZE_BYTES // 2
    assert store.entries() == []
    assert store.find_or_build(AHEAD, Builder(b"plan"), quiet).plan == b"plan"
    assert store.partial_files() == []


def test_a_full_disk_is_reported_and_leaves_no_files(store: EngineStore) -> None:
    with building(store.folder, "a") as builder:
        assert builder.read_event() == "building"
        builder.send("full")
        assert builder.read_event() == (
            f"unavailable the engine was built but cannot be kept, and {store.folder} cannot be written "
            "(File too large); name another folder with --engine-cache"
        )
    assert list(store.folder.iterdir()) == []
