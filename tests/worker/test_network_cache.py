"""Tests how a worker loads networks when they are asked for, and evicts them when the cache is full."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from fakes.serving import MANIFEST
from zfserve_runtime.bundle import GOLDEN, GRAPH, Bundle, BundleError, Manifest, file_digest
from zfserve_runtime.errors import WorkerMismatch
from zfserve_runtime.model_repository import ModelRepository
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_worker.network_cache import NetworkCache
from zfserve_worker.projector import Projector
from zfserve_worker.torch_thread import TorchThread


class FakeProjector:
    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest


class Worker:
    """Makes a `NetworkCache` whose networks are only manifests.

    Attributes:
        opened: the versions in the order in which they were opened.
        may_open: while this event is cleared, every load waits.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = Metrics()
        self.opened: list[str] = []
        self.may_open = threading.Event()
        self.may_open.set()
        self.torch_thread = TorchThread(1, 1)

    def write(self, version: str, name: str = "tiny") -> str:
        """Writes a version to disk. Returns its fingerprint."""
        bundle = self.folder / name / version
        bundle.mkdir(parents=True)
        for file in (GRAPH, GOLDEN):
            (bundle / file).write_text(version)
        fields = {
            "name": name,
            "version": version,
            "fingerprint": version * 64,
            "artefacts": {},
            "files": {file: file_digest(bundle / file) for file in (GRAPH, GOLDEN)},
        }
        (bundle / "manifest.json").write_text(MANIFEST.model_copy(update=fields).model_dump_json())
        return version * 64

    def networks(self, spare: int = 1) -> NetworkCache:
        def open_projector(bundle: Bundle) -> Projector:
            assert self.may_open.wait(timeout=30)
            self.opened.append(bundle.manifest.version)
            return cast("Projector", FakeProjector(bundle.manifest))

        scan = ModelRepository([self.folder]).scan
        return NetworkCache(scan, open_projector, self.torch_thread, spare, self.metrics, scan_interval_s=0.0)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.may_open.set()
    worker.torch_thread.close()


def versions(networks: NetworkCache) -> list[str]:
    """Returns the versions of the loaded networks, the least recently used first."""
    return [manifest.version for manifest in networks.manifests]


async def test_the_newest_usable_version_is_loaded_at_the_start(worker: Worker) -> None:
    for version in "123":
        worker.write(version)
    (worker.folder / "tiny" / "3" / GRAPH).write_text("damaged")
    networks = worker.networks()
    await networks.start()
    assert versions(networks) == ["2"]


async def test_the_start_fails_without_a_usable_network(worker: Worker) -> None:
    worker.write("1")
    (worker.folder / "tiny" / "1" / GRAPH).write_text("damaged")
    with pytest.raises(BundleError, match="differs from its digest"):
        await worker.networks().start()


async def test_a_network_that_is_added_later_is_loaded_when_it_is_asked_for(worker: Worker) -> None:
    worker.write("1")
    networks = worker.networks()
    await networks.start()
    with pytest.raises(WorkerMismatch):
        await networks.find("2" * 64)
    fingerprint = worker.write("2")
    assert (await networks.find(fingerprint)).manifest.version == "2"
    assert versions(networks) == ["1", "2"]


async def test_callers_that_ask_together_share_one_load_and_may_be_cancelled(worker: Worker) -> None:
    worker.write("1")
    networks = worker.networks()
    await networks.start()
    fingerprint = worker.write("2")
    worker.may_open.clear()
    cancelled, *others = [asyncio.create_task(networks.find(fingerprint)) for _ in range(3)]
    await asyncio.sleep(0)
    cancelled.cancel()
    worker.may_open.set()
    assert {(await other).manifest.version for other in others} == {"2"}
    assert worker.opened == ["1", "2"]


async def test_the_least_recently_used_network_is_evicted_and_its_memory_freed(worker: Worker) -> None:
    fingerprints = [worker.write(version) for version in "123"]
    networks = worker.networks()
    for fingerprint in (fingerprints[0], fingerprints[1], fingerprints[0]):
        await networks.find(fingerprint)
    evicted = weakref.ref(await networks.find(fingerprints[1]))
    await networks.find(fingerprints[0])
    await networks.find(fingerprints[2])
    assert versions(networks) == ["1", "3"]
    gc.collect()
    assert evicted() is None
    labels = {"model": "tiny", "version": "2", "fingerprint": fingerprints[1]}
    assert worker.metrics.registry.get_sample_value("zfserve_model_info", labels) is None


async def test_the_cache_holds_every_network_that_a_server_announces_as_long_as_it_does(worker: Worker) -> None:
    fingerprints = [worker.write(version) for version in "123"]
    networks = worker.networks(spare=0)
    await networks.announce(fingerprints)
    assert versions(networks) == ["1", "2", "3"]
    await networks.announce([fingerprints[1], "f" * 64])
    assert "2" in versions(networks)
    await networks.announce([fingerprints[1]])
    assert versions(networks) == ["2"]


async def test_without_an_announcement_the_cache_holds_one_network_of_each_model(worker: Worker) -> None:
    for version, name in (("1", "tiny"), ("2", "other"), ("3", "third")):
        worker.write(version, name)
    networks = worker.networks(spare=0)
    await networks.start()
    assert sorted(manifest.name for manifest in networks.manifests) == ["other", "third", "tiny"]


async def test_missing_folders_evict_nothing(worker: Worker) -> None:
    worker.write("1")
    networks = worker.networks(spare=0)
    await networks.start()
    (worker.folder / "tiny").rename(worker.folder / ".gone")
    with pytest.raises(WorkerMismatch):
        await networks.find("2" * 64)
    assert (await networks.find("1" * 64)).manifest.version == "1"
