"""Caches the networks of a worker by the fingerprint of their weights. Built by `app`, used by `service`.

The cache loads a network that it lacks from the model folders. Projections of other networks wait only while the load
occupies the torch thread. When the cache is full, it evicts the least recently used network. A projection in flight
keeps its network until it is done.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from zfserve_runtime.bundle import Bundle, BundleError, Manifest, load_bundle
from zfserve_runtime.errors import WorkerMismatch
from zfserve_runtime.model_repository import FoundVersion, Listing, group_by_model
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_worker.projector import Projector
from zfserve_worker.torch_thread import TorchThread

_log = logging.getLogger(__name__)


class NetworkCache:
    """Loads and evicts networks. Use it from the event loop's thread only.

    Args:
        scan: returns all versions in the model folders; blocks.
        open_projector: loads a network; runs in the torch thread. Raises BundleError if the weights cannot be used.
        torch_thread: runs `open_projector`.
        spare_networks: the number of networks to keep besides those that a server has announced, because other servers
            may still ask for the previous version. A server talks to one of several workers. The other workers have no
            announcement; they count one network of each model as announced.
        metrics: shows the loaded models.
        scan_interval_s: the shortest time between two scans for missing networks.
    """

    def __init__(
        self,
        scan: Callable[[], Sequence[FoundVersion]],
        open_projector: Callable[[Bundle], Projector],
        torch_thread: TorchThread,
        spare_networks: int,
        metrics: Metrics,
        scan_interval_s: float = 1.0,
    ) -> None:
        self._scan = scan
        self._open_projector = open_projector
        self._torch_thread = torch_thread
        self._spare_networks = spare_networks
        self._metrics = metrics
        self._scan_interval_s = scan_interval_s
        self._announced: frozenset[str] = frozenset()  # fingerprints
        self._projectors: OrderedDict[str, Projector] = OrderedDict()  # by fingerprint, the least recently used first
        self._found: Sequence[FoundVersion] = ()
        self._scanned_s = -math.inf
        self._refused: dict[Path, Listing] = {}
        self._load_lock = asyncio.Lock()
        self._loads: dict[str, asyncio.Task[None]] = {}  # by fingerprint

    @property
    def manifests(self) -> list[Manifest]:
        """The manifests of the loaded networks, the least recently used first."""
        return [projector.manifest for projector in self._projectors.values()]

    async def start(self) -> None:
        """Loads the newest usable version of each model, until the cache is full.

        Raises:
            BundleError: there is no usable version of any model.
        """
        self._found = await asyncio.to_thread(self._scan)
        errors: list[BundleError] = []
        for versions in group_by_model(self._found).values():
            for found in versions:
                if len(self._projectors) == self._capacity():
                    return
                try:
                    await self._load(found)
                    break
                except BundleError as error:
                    errors.append(error)
        if not self._projectors:
            raise BundleError("; ".join(map(str, errors)))

    async def announce(self, fingerprints: Collection[str]) -> None:
        """Takes the complete list of networks that a server will ask for, and loads the missing ones if they exist."""
        self._announced = frozenset(fingerprints)
        # The loaded ones come first, so that no load evicts one of them.
        for fingerprint in sorted(fingerprints, key=lambda fingerprint: fingerprint not in self._projectors):
            await self._ensure_loaded(fingerprint)
        self._evict()

    async def find(self, fingerprint: str) -> Projector:
        """Returns the projector of the network with these weights, which it loads if necessary.

        Raises:
            WorkerMismatch: no model folder has such weights.
        """
        await self._ensure_loaded(fingerprint)
        projector = self._projectors.get(fingerprint)
        if projector is None:
            raise WorkerMismatch(
                "the projection worker has no such weights; give server and worker the same model folders"
            )
        return projector

    async def _ensure_loaded(self, fingerprint: str) -> None:
        """Loads the network if it is missing and can be found, and marks it as the most recently used."""
        if fingerprint not in self._projectors:
            task = self._loads.get(fingerprint)
            if task is None:
                task = self._loads[fingerprint] = asyncio.create_task(self._load_missing(fingerprint))
                task.add_done_callback(lambda _: self._loads.pop(fingerprint))
            await asyncio.shield(task)  # A caller that is cancelled must not stop the load for the others.
        if fingerprint in self._projectors:
            self._projectors.move_to_end(fingerprint)

    async def _load_missing(self, fingerprint: str) -> None:
        async with self._load_lock:
            if time.monotonic() - self._scanned_s >= self._scan_interval_s:
                try:
                    self._found = await asyncio.to_thread(self._scan)
                except (BundleError, OSError) as error:
                    _log.warning("the model folders cannot be read", extra={"reason": str(error)})
                self._scanned_s = time.monotonic()
            for found in self._found:
                if found.fingerprint == fingerprint and self._refused.get(found.folder) != found.files:
                    try:
                        await self._load(found)
                        return
                    except BundleError:
                        continue

    async def _load(self, found: FoundVersion) -> None:
        """Loads this version and evicts another one if the cache is full.

        Raises:
            BundleError: the version cannot be used.
        """
        log_fields = {"model": found.name, "version": found.version}
        began_s = time.monotonic()
        try:
            bundle = await asyncio.to_thread(load_bundle, found.folder)
            projector = await self._torch_thread.run(self._open_projector, bundle)
        except BundleError as error:
            self._refused[found.folder] = found.files
            _log.error("the network is refused", extra={**log_fields, "reason": str(error)})
            raise
        manifest = projector.manifest
        self._projectors[manifest.fingerprint] = projector
        self._metrics.model_info.labels(manifest.name, manifest.version, manifest.fingerprint).set(1)
        _log.info("the network is loaded", extra={**log_fields, "seconds": round(time.monotonic() - began_s, 3)})
        self._evict()

    def _capacity(self) -> int:
        """Returns how many networks the cache may hold."""
        models = {found.name for found in self._found}
        return (len(self._announced) or max(1, len(models))) + self._spare_networks

    def _evict(self) -> None:
        while len(self._projectors) > self._capacity():
            _, projector = self._projectors.popitem(last=False)
            name, version = projector.manifest.name, projector.manifest.version
            self._metrics.forget_model(name, version)
            _log.info("the network is evicted", extra={"model": name, "version": version})
