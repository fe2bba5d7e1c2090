"""The networks that a worker holds, each known by the fingerprint of its weights. Built by `app`, asked by the service.

A network that it lacks is looked for in the folders of the models and loaded, which blocks projections of others only
while it is in the torch thread. What there is no room for makes way, the least recently used first; a projection that
is under way keeps its own until it is done.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from zfserve_runtime.bundle import Bundle, BundleError, load_bundle
from zfserve_runtime.errors import WorkerMismatch
from zfserve_runtime.model_repository import FoundVersion, Listing, group_by_model
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_worker.projector import Projector
from zfserve_worker.torch_thread import TorchThread

_log = logging.getLogger(__name__)


class Networks:
    """Use from the event loop's thread only.

    Args:
        look: every version there is; blocks.
        open_projector: runs in the torch thread. Raises BundleError where the weights cannot be used.
        spare: how many networks to hold beside those that a server has announced: others may still ask for the version
            before. Of several workers a server talks to one, so the others count one of each model as announced.
        look_every_s: at most this often are the folders looked at for a network that is not there.
    """

    def __init__(
        self,
        look: Callable[[], Sequence[FoundVersion]],
        open_projector: Callable[[Bundle], Projector],
        torch_thread: TorchThread,
        spare: int,
        metrics: Metrics,
        look_every_s: float = 1.0,
    ) -> None:
        self._look = look
        self._open_projector = open_projector
        self._torch_thread = torch_thread
        self._spare = spare
        self._metrics = metrics
        self._look_every_s = look_every_s
        self._announced: frozenset[str] = frozenset()
        self._held: OrderedDict[str, Projector] = OrderedDict()  # the least recently used first
        self._found: Sequence[FoundVersion] = ()
        self._looked_s = -math.inf
        self._refused: dict[Path, Listing] = {}
        self._loading = asyncio.Lock()
        self._loads: dict[str, asyncio.Task[None]] = {}  # by fingerprint

    @property
    def held(self) -> Collection[Projector]:
        return self._held.values()

    async def start(self) -> None:
        """Load the newest version of every model that can be loaded, as far as there is room.

        Raises:
            BundleError: there is none.
        """
        self._found = await asyncio.to_thread(self._look)
        errors: list[BundleError] = []
        for versions in group_by_model(self._found).values():
            for found in versions:
                if len(self._held) == self._room():
                    return
                try:
                    await self._load(found)
                    break
                except BundleError as error:
                    errors.append(error)
        if not self._held:
            raise BundleError("; ".join(map(str, errors)))

    async def announce(self, fingerprints: Collection[str]) -> None:
        """What a server will ask for, and all of it. Loads what is missing, as far as it can be found."""
        self._announced = frozenset(fingerprints)
        # Those that are held first, so that none of them makes way for the others.
        for fingerprint in sorted(fingerprints, key=lambda fingerprint: fingerprint not in self._held):
            await self._obtain(fingerprint)
        self._make_room()

    async def find(self, fingerprint: str) -> Projector:
        """Raises WorkerMismatch where there is no such network here."""
        await self._obtain(fingerprint)
        projector = self._held.get(fingerprint)
        if projector is None:
            raise WorkerMismatch(
                "the projection worker has no such weights; give server and worker the same models' folders"
            )
        return projector

    async def _obtain(self, fingerprint: str) -> None:
        """Have it be held, as the last to make way, where it can be found."""
        if fingerprint not in self._held:
            task = self._loads.get(fingerprint)
            if task is None:
                task = self._loads[fingerprint] = asyncio.create_task(self._search(fingerprint))
                task.add_done_callback(lambda _: self._loads.pop(fingerprint))
            await asyncio.shield(task)  # whoever gives up waiting must not stop it for the others
        if fingerprint in self._held:
            self._held.move_to_end(fingerprint)

    async def _search(self, fingerprint: str) -> None:
        async with self._loading:
            if time.monotonic() - self._looked_s >= self._look_every_s:
                try:
                    self._found = await asyncio.to_thread(self._look)
                except (BundleError, OSError) as error:
                    _log.warning("the models cannot be looked at", extra={"reason": str(error)})
                self._looked_s = time.monotonic()
            for found in self._found:
                if found.fingerprint == fingerprint and self._refused.get(found.folder) != found.files:
                    try:
                        await self._load(found)
                        return
                    except BundleError:
                        continue

    async def _load(self, found: FoundVersion) -> None:
        """Raises BundleError where it cannot be used."""
        about = {"model": found.name, "version": found.version}
        began_s = time.monotonic()
        try:
            bundle = await asyncio.to_thread(load_bundle, found.folder)
            projector = await self._torch_thread.run(self._open_projector, bundle)
        except BundleError as error:
            self._refused[found.folder] = found.files
            _log.error("network refused", extra={**about, "reason": str(error)})
            raise
        manifest = projector.manifest
        self._held[manifest.fingerprint] = projector
        self._metrics.model_info.labels(manifest.name, manifest.version, manifest.fingerprint).set(1)
        _log.info("network loaded", extra={**about, "seconds": round(time.monotonic() - began_s, 3)})
        self._make_room()

    def _room(self) -> int:
        return (len(self._announced) or max(1, len({found.name for found in self._found}))) + self._spare

    def _make_room(self) -> None:
        while len(self._held) > self._room():
            _, projector = self._held.popitem(last=False)
            name, version = projector.manifest.name, projector.manifest.version
            self._metrics.forget_model(name, version)
            _log.info("network let go", extra={"model": name, "version": version})
