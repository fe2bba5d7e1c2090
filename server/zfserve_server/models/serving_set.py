"""The serving set holds the versions that serve now. It publishes new ones and retires old ones.

It changes the set between two requests. A version that is retired answers the requests that it has accepted. Then its
engines are closed. Built by `app`, used by the reconciler.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from zfserve_runtime.model_repository import FoundVersion
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.tuning import release_freed_memory

from zfserve_server.models.registry import ModelRegistry, ModelState, ModelStatus
from zfserve_server.models.served_model import ServedModel

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""The name and version of a model."""


def key_of(found: FoundVersion) -> Key:
    return found.name, found.version


@dataclass(frozen=True)
class _Served:
    """Holds a model that serves, and the digest of the manifest that it was loaded from."""

    model: ServedModel
    manifest_digest: str


class ServingSet:
    """Holds the versions that serve, by name and version. Use from the event loop's thread only.

    Args:
        models: the registry in which the services find the versions.
        metrics: shows the versions that serve.
        announce: called with the fingerprints of all versions that serve, before one is added and after one is closed.
            The worker loads their networks.
        on_change: called after each version that was added or retired.

    Attributes:
        loading: the version that is being loaded. It keeps its metrics when a retired version of that key is closed.
    """

    def __init__(
        self,
        models: ModelRegistry,
        metrics: Metrics,
        announce: Callable[[Collection[str]], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._announce = announce
        self._on_change = on_change
        self._served: dict[Key, _Served] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._engine_lost = False
        self.loading: Key | None = None

    @property
    def names(self) -> set[str]:
        """The names of the models that serve."""
        return {name for name, _ in self._served}

    @property
    def engine_lost(self) -> bool:
        """True if `close` found a lost engine."""
        return self._engine_lost

    def is_current(self, found: FoundVersion) -> bool:
        """Returns True if that version serves with the content that was found."""
        served = self._served.get(key_of(found))
        return served is not None and served.manifest_digest == found.manifest_digest

    def is_served(self, found: FoundVersion) -> bool:
        """Returns True if that version serves, even if its folder has another content now."""
        return key_of(found) in self._served

    async def announce(self, model: ServedModel) -> None:
        """Announces `model` together with all versions that serve. Call it before `add`."""
        await self._announce({*self._fingerprints(), model.manifest.fingerprint})

    def add(self, found: FoundVersion, model: ServedModel) -> None:
        """Publishes a version that was loaded. It retires the earlier content of the same version."""
        key = key_of(found)
        before = self._served.get(key)
        self._served[key] = _Served(model, found.manifest_digest)
        self._models.add(model)
        if before is not None:
            self._retire(before.model)
        self._on_change()
        self._metrics.model_info.labels(*key, model.manifest.fingerprint).set(1)

    def retire_others(self, name: str, kept: Collection[Key]) -> None:
        """Retires all versions of the model `name` except `kept`."""
        for key in [key for key in self._served if key[0] == name and key not in kept]:
            self._retire(self._served.pop(key).model)
            self._on_change()

    async def close(self) -> None:
        """Closes all versions, the retiring ones included. Call it once the server accepts no more calls."""
        await asyncio.gather(*self._retiring)
        while self._served:
            _, served = self._served.popitem()
            await served.model.close_engines()
            self._engine_lost = self._engine_lost or served.model.batcher.engine_lost

    def _retire(self, model: ServedModel) -> None:
        """Removes `model` from the registry, and closes it when it has answered all that it accepted."""
        self._models.remove(model)
        manifest = model.manifest
        status = ModelStatus(manifest.name, manifest.version, ModelState.RETIRING, fingerprint=manifest.fingerprint)
        if (manifest.name, manifest.version) not in self._served:
            self._models.set_status(status)  # in the same step, so that a version that still answers is never unknown
        self._metrics.model_info.remove(manifest.name, manifest.version, manifest.fingerprint)
        task = asyncio.create_task(self._close_retired(model, status))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close_retired(self, model: ServedModel, status: ModelStatus) -> None:
        key = status.name, status.version
        await model.close()
        self._models.clear_status(status)
        if key not in self._served and key != self.loading:
            self._metrics.forget_model(*key)
        await self._announce(self._fingerprints())
        await asyncio.to_thread(release_freed_memory)
        logger.info("model version retired", extra={"model": status.name, "version": status.version})

    def _fingerprints(self) -> set[str]:
        return {served.model.manifest.fingerprint for served in self._served.values()}
