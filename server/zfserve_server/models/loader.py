"""Loads a version of a model beside those that already serve. Built by `app`, called by the reconciler."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from zfserve_engines.opening import Report, Step
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.model_repository import FoundVersion
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.admission.admission import Admission
from zfserve_server.batching.batcher import Batcher
from zfserve_server.batching.watchdog import WatchdogPolicy
from zfserve_server.models.opening_thread import OpeningThread
from zfserve_server.models.served_model import ServedModel
from zfserve_server.models.source import OpenedVersion


@dataclass(frozen=True)
class ServingPolicy:
    """Holds the settings that apply to every version.

    Attributes:
        max_queue: the largest number of images in flight for each version.
        engine_timeout_s: the longest time that one run may take.
        on_engine_lost: called when an engine is lost permanently.
        on_stall: called with True when a version has no working engine left, and with False when it has one again.
    """

    max_queue: int
    engine_timeout_s: float
    on_engine_lost: Callable[[], None]
    on_stall: Callable[[bool], None]


class ModelLoader:
    """Loads one version at a time. Use from the event loop's thread only.

    Args:
        open_version: opens a version's engine; blocks. It runs in a thread.
        policy: the settings that apply to every version.
        metrics: gets the metrics of each version.
    """

    def __init__(
        self, open_version: Callable[[FoundVersion, Report], OpenedVersion], policy: ServingPolicy, metrics: Metrics
    ) -> None:
        self._open = open_version
        self._policy = policy
        self._metrics = metrics
        self._thread = OpeningThread()

    async def load(self, found: FoundVersion, on_step: Callable[[Step], None]) -> ServedModel:
        """Returns the version, ready to answer. It is not in the registry yet.

        Args:
            found: the version to load.
            on_step: called on the event loop with each step of the load.

        Raises:
            EngineLost: a device failed permanently; only a new process can serve again.
            Exception: the version cannot serve.
        """
        began_s = time.monotonic()
        opened = await self._thread.run(partial(self._open, found), on_step)
        manifest, choice = opened.manifest, opened.choice
        if (manifest.name, manifest.version) != (found.name, found.version):
            opened.close()
            raise BundleError("another version replaced its manifest while it was read")
        metrics = self._metrics.of_model(manifest.name, manifest.version)
        watchdog_policy = WatchdogPolicy(self._policy.engine_timeout_s, choice.reopen, self._policy.on_stall)
        shape = (manifest.input.height, manifest.input.width, 3)
        batcher = Batcher(choice.instances, shape, metrics, self._policy.on_engine_lost, watchdog_policy)
        batcher.start()
        metrics.queue_depth.set_function(lambda: batcher.queue_depth)
        admission = Admission(self._policy.max_queue, batcher.service_rate)
        return ServedModel(manifest, choice, batcher, admission, metrics, time.monotonic() - began_s)

    def cancel(self) -> None:
        """Asks the current load, whose caller was cancelled, to end soon."""
        self._thread.cancel()

    async def close(self, grace_s: float) -> None:
        """Cancels the current load and waits for its end.

        Raises:
            StillOpening: it did not end within `grace_s` seconds. The process must not wait for it.
        """
        await self._thread.close(grace_s)
