"""Several networks in one worker: found when they are asked for, and let go when there is no room."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from fakes.serving import MANIFEST
from zfserve_runtime.bundle import GOLDEN, WEIGHTS, Bundle, BundleError, Manifest, file_digest
from zfserve_runtime.errors import WorkerMismatch
from zfserve_runtime.model_repository import ModelRepository
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_worker.networks import Networks
from zfserve_worker.projector import Projector
from zfserve_worker.torch_thread import TorchThread


class FakeProjector:
    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest


class Worker:
    """What `Networks` needs, with networks that are nothing but their manifests.

    Attributes:
        opened: versions, in the order in which they were opened.
        open: cleared, it holds every opening until it is set again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = Metrics()
        self.opened: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.torch_thread = TorchThread(1, 1)

    def write(self, version: str, name: str = "tiny") -> str:
        """A version on disk; returns its fingerprint."""
        bundle = self.folder / name / version
        bundle.mkdir(parents=True)
        for file in (WEIGHTS, GOLDEN):
            (bundle / file).write_text(version)
        fields = {
            "name": name,
            "version": version,
            "fingerprint": version * 64,
            "artefacts": {},
            "files": {file: file_digest(bundle / file) for file in (WEIGHTS, GOLDEN)},
        }
        (bundle / "manifest.json").write_text(MANIFEST.model_copy(update=fields).model_dump_json())
        return version * 64

    def networks(self, spare: int = 1) -> Networks:
        def open_projector(bundle: Bundle) -> Projector:
            assert self.open.wait(timeout=30)
            self.opened.append(bundle.manifest.version)
            return cast("Projector", FakeProjector(bundle.manifest))

        look = ModelRepository([self.folder]).scan
        return Networks(look, open_projector, self.torch_thread, spare, self.metrics, look_every_s=0.0)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.open.set()
    worker.torch_thread.close()


def held(networks: Networks) -> list[str]:
    return [projector.manifest.version for projector in networks.held]


async def test_the_newest_that_can_be_used_is_held_from_the_start(worker: Worker) -> None:
    for version in "123":
        worker.write(version)
    (worker.folder / "tiny" / "3" / WEIGHTS).write_text("damaged")
    networks = worker.networks()
    await networks.start()
    assert held(networks) == ["2"]


async def test_without_a_usable_network_there_is_no_start(worker: Worker) -> None:
    worker.write("1")
    (worker.folder / "tiny" / "1" / WEIGHTS).write_text("damaged")
    with pytest.raises(BundleError, match="differs from its digest"):
        await worker.networks().start()


async def test_a_network_that_comes_later_is_found_when_it_is_asked_for(worker: Worker) -> None:
    worker.write("1")
    networks = worker.networks()
    await networks.start()
    with pytest.raises(WorkerMismatch):
        await networks.find("2" * 64)
    fingerprint = worker.write("2")
    assert (await networks.find(fingerprint)).manifest.version == "2"
    assert held(networks) == ["1", "2"]


async def test_those_who_ask_together_have_it_loaded_once_and_may_give_up(worker: Worker) -> None:
    worker.write("1")
    networks = worker.networks()
    await networks.start()
    fingerprint = worker.write("2")
    worker.open.clear()
    impatient, *others = [asyncio.create_task(networks.find(fingerprint)) for _ in range(3)]
    await asyncio.sleep(0)
    impatient.cancel()
    worker.open.set()
    assert {(await other).manifest.version for other in others} == {"2"}
    assert worker.opened == ["1", "2"]


async def test_the_least_recently_used_makes_way_and_its_memory_returns(worker: Worker) -> None:
    fingerprints = [worker.write(version) for version in "123"]
    networks = worker.networks()
    for fingerprint in (fingerprints[0], fingerprints[1], fingerprints[0]):
        await networks.find(fingerprint)
    leaving = weakref.ref(await networks.find(fingerprints[1]))
    await networks.find(fingerprints[0])
    await networks.find(fingerprints[2])
    assert held(networks) == ["1", "3"]
    gc.collect()
    assert leaving() is None
    labels = {"model": "tiny", "version": "2", "fingerprint": fingerprints[1]}
    assert worker.metrics.registry.get_sample_value("zfserve_model_info", labels) is None


async def test_there_is_room_for_all_that_a_server_announces_and_no_longer(worker: Worker) -> None:
    fingerprints = [worker.write(version) for version in "123"]
    networks = worker.networks(spare=0)
    await networks.announce(fingerprints)
    assert held(networks) == ["1", "2", "3"]
    await networks.announce([fingerprints[1], "f" * 64])
    assert "2" in held(networks)
    await networks.announce([fingerprints[1]])
    assert held(networks) == ["2"]


async def test_before_a_server_announces_anything_there_is_room_for_each_model(worker: Worker) -> None:
    for version, name in (("1", "tiny"), ("2", "other"), ("3", "third")):
        worker.write(version, name)
    networks = worker.networks(spare=0)
    await networks.start()
    assert sorted(network.manifest.name for network in networks.held) == ["other", "third", "tiny"]


async def test_folders_that_are_gone_cost_nothing_that_is_held(worker: Worker) -> None:
    worker.write("1")
    networks = worker.networks(spare=0)
    await networks.start()
    (worker.folder / "tiny").rename(worker.folder / ".gone")
    with pytest.raises(WorkerMismatch):
        await networks.find("2" * 64)
    assert (await networks.find("1" * 64)).manifest.version == "1"
