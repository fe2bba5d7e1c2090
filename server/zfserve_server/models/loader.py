"""From a version that was found to one that can answer, beside those that do. Built by `app`; used by `model_watch`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from zfserve_engines.catalogue import Report, Step
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.model_folders import FoundVersion
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.admission.admission import Admission
from zfserve_server.batching.batcher import Batcher
from zfserve_server.batching.watchdog import WatchdogPolicy
from zfserve_server.models.opening_thread import OpeningThread
from zfserve_server.models.served_model import ServedModel
from zfserve_server.models.source import OpenedVersion


@dataclass(frozen=True)
class Terms:
    """On which every version is served.

    Attributes:
        max_queue: images accepted and not answered, of each version.
        engine_timeout_s: the longest that one run may take.
        on_death: called when an engine is lost for good.
        on_stall: called when a version has no engine left that works, with True, and when it has one again.
    """

    max_queue: int
    engine_timeout_s: float
    on_death: Callable[[], None]
    on_stall: Callable[[bool], None]


class ModelLoader:
    """Loads one version at a time. Use from the event loop's thread only."""

    def __init__(
        self, open_version: Callable[[FoundVersion, Report], OpenedVersion], terms: Terms, metrics: Metrics
    ) -> None:
        self._open = open_version
        self._terms = terms
        self._metrics = metrics
        self._thread = OpeningThread()

    async def load(self, found: FoundVersion, on_step: Callable[[Step], None]) -> ServedModel:
        """A version that answers from now on; nobody finds it yet.

        Raises:
            EngineLost: a device failed for good; only a new process can serve again.
            Exception: why the version cannot serve.
        """
        began_s = time.monotonic()
        opened = await self._thread.run(partial(self._open, found), on_step)
        manifest, choice = opened.manifest, opened.choice
        if (manifest.name, manifest.version) != (found.name, found.version):
            opened.close()
            raise BundleError("its manifest was replaced by that of another version while it was read")
        metrics = self._metrics.of_model(manifest.name, manifest.version)
        care = WatchdogPolicy(self._terms.engine_timeout_s, choice.reopen, self._terms.on_stall)
        shape = (manifest.input.height, manifest.input.width, 3)
        batcher = Batcher(choice.instances, shape, metrics, self._terms.on_death, care)
        batcher.start()
        metrics.queue_depth.set_function(lambda: batcher.waiting)
        admission = Admission(self._terms.max_queue, batcher.pace)
        return ServedModel(manifest, choice, batcher, admission, metrics, time.monotonic() - began_s)

    def cancel(self) -> None:
        """Let a load that is under way, and whose caller was cancelled, end soon."""
        self._thread.cancel()

    async def conclude(self, grace_s: float) -> None:
        """See `OpeningThread.conclude`."""
        await self._thread.conclude(grace_s)
