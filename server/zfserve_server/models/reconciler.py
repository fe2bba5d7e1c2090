"""Keeps what is served true to what lies in the models' folders: new versions come, are proved, and take over.

Of every model the newest versions that can serve are served, as many as are to be kept, and those that were asked for
by their own folders. A version is loaded beside the others and takes over between two requests; those that it replaces
answer what they have accepted and are closed. One that cannot be loaded is refused, and tried again when its files have
changed and come to rest, or when somebody asks for a look. The last version of a model is never given up: neither for
one that is refused, nor because its folder is gone, which on a network volume may mean anything. Built by `app`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from zfserve_engines.catalogue import Step
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.model_folders import FoundVersion, by_model
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.allocator import release_freed_memory
from zfserve_server.models.loader import ModelLoader
from zfserve_server.models.refused_versions import RefusedVersions
from zfserve_server.models.registry import Models, ModelState, ModelStatus
from zfserve_server.models.served_model import ServedModel

logger = logging.getLogger(__name__)

_Key = tuple[str, str]
"""Name and version of a model."""

OnStep = Callable[[FoundVersion, Step], None]


@dataclass(frozen=True)
class _Served:
    model: ServedModel
    content: str


class Reconciler:
    """Use from the event loop's thread only.

    Args:
        look: every version there is; blocks.
        models: where services find them.
        keep: how many versions of every model to serve.
        prepare: called with the fingerprints of all that is served, before one is added and after one has gone.
        on_change: called whenever a version is found from now on, or is not any more.
    """

    def __init__(
        self,
        look: Callable[[], Sequence[FoundVersion]],
        loader: ModelLoader,
        models: Models,
        metrics: Metrics,
        keep: int,
        prepare: Callable[[Collection[str]], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        self._look = look
        self._loader = loader
        self._models = models
        self._metrics = metrics
        self._keep = keep
        self._prepare = prepare
        self._on_change = on_change
        self._served: dict[_Key, _Served] = {}
        self._loading: _Key | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._refused = RefusedVersions(models, metrics)
        self._fault = ""  # of the last look
        self._lost = False
        self._on_step: OnStep = _LoggedSteps()

    async def start(self, found: Sequence[FoundVersion], on_step: OnStep, strict: bool) -> None:
        """Load what was found at the start; `on_step` is told how far that is.

        Raises:
            BundleError, EngineUnavailable: a model has no version that can serve; unless `strict`, none has.
            EngineLost: a device failed for good.
        """
        logged, self._on_step = self._on_step, on_step
        await self._settle_all(found, retry=False)
        self._on_step = logged
        without = [name for name in by_model(found) if not any(name == served for served, _ in self._served)]
        if without and (strict or not self._served):
            raise self._refused.error(without)

    async def run(self, interval_s: float, asked: asyncio.Event) -> None:
        """Look every `interval_s` seconds (0: never) and whenever `asked` is set, until cancelled.

        Raises:
            EngineLost: a device failed for good.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), interval_s or None)
            retry = asked.is_set()
            asked.clear()
            try:
                found = await asyncio.to_thread(self._look)
            except Exception as error:  # whatever it is must not end what serves well
                if str(error) != self._fault:
                    expected = isinstance(error, BundleError | OSError)
                    logger.warning(
                        "the models cannot be looked at; what is served stays",
                        extra={"reason": str(error)},
                        exc_info=None if expected else error,
                    )
                self._fault = str(error)
                continue
            self._fault = ""
            try:
                await self._settle_all(found, retry)
            except EngineLost:
                raise
            except Exception:  # must not end what serves well
                logger.exception("the models could not be brought up to date")

    async def close(self) -> None:
        """Once nobody asks any more: close all that is served or was."""
        await asyncio.gather(*self._retiring)
        while self._served:
            _, served = self._served.popitem()
            await served.model.batcher.close()
            self._lost = self._lost or served.model.batcher.lost

    @property
    def lost(self) -> bool:
        """Whether an engine was lost, if only when all was closed."""
        return self._lost

    async def _settle_all(self, found: Sequence[FoundVersion], retry: bool) -> None:
        versions = by_model(found)
        for due in self._due(versions, retry):
            self._tell_loading(due, "it waits for others to be loaded")
        for of_one in versions.values():
            await self._settle(of_one, retry)
        self._refused.forgive_absent(found)

    def _due(self, versions: Mapping[str, Sequence[FoundVersion]], retry: bool) -> Iterator[FoundVersion]:
        """What has to be loaded, unless something is refused on the way."""
        for of_one in versions.values():
            usable = [version for version in of_one if not self._is_refused(version, retry)]
            newest = [version for version in usable if not version.pinned][: self._keep]
            yield from (
                version for version in usable if (version.pinned or version in newest) and not self._serves(version)
            )

    async def _settle(self, versions: Sequence[FoundVersion], retry: bool) -> None:
        """Serve what is to be served of one model, whose versions come newest first; retire the rest."""
        kept: dict[_Key, FoundVersion] = {}
        newest = 0
        for found in versions:
            if not found.pinned and newest == self._keep:
                continue
            if (same := kept.get(_key(found))) is not None:
                if found.files != same.files and not self._is_refused(found, retry):  # else a link to the same folder
                    self._refused.refuse(
                        found, BundleError(f"it lies in two folders; only {same.folder.name} is looked at")
                    )
            elif await self._serve(found, retry):
                kept[_key(found)] = found
                newest += not found.pinned
        gone = [key for key in self._served if key[0] == versions[0].name and key not in kept]
        for key in gone if kept else ():
            self._retire(self._served.pop(key).model)
            self._on_change()

    async def _serve(self, found: FoundVersion, retry: bool) -> bool:
        """Whether that version is served in the end, if only as it was before its files changed."""
        if self._serves(found):
            self._refused.forgive(found.folder)
            return True
        before = self._served.get(_key(found))
        if self._is_refused(found, retry):
            return before is not None
        self._loading = _key(found)
        try:
            model = await self._load(found)
        except EngineLost:
            raise
        except Exception as error:
            self._refused.refuse(found, error)
            return before is not None
        finally:
            self._loading = None
        self._refused.forgive(found.folder)
        self._served[_key(found)] = _Served(model, found.content)
        self._models.add(model)
        if before is not None:
            self._retire(before.model)
        self._on_change()
        self._metrics.model_info.labels(*_key(found), model.manifest.fingerprint).set(1)
        self._metrics.model_loads.labels(found.name, "ready").inc()
        logger.info("model version served", extra={**_about(found), "seconds": round(model.startup_s, 3)})
        return True

    async def _load(self, found: FoundVersion) -> ServedModel:
        model = await self._loader.load(found, partial(self._enter, found))
        try:
            await self._prepare({*self._fingerprints(), model.manifest.fingerprint})
        except BaseException:
            await model.batcher.close()
            raise
        return model

    def _enter(self, found: FoundVersion, step: Step) -> None:
        share = "" if step.share is None else f" ({step.share:.0%})"
        self._tell_loading(found, f"{step.phase} the engine {step.engine}{share}")
        self._on_step(found, step)

    def _retire(self, model: ServedModel) -> None:
        """From now on nobody finds `model`; it is closed when it has answered all that it accepted."""
        self._models.remove(model)
        manifest = model.manifest
        status = ModelStatus(manifest.name, manifest.version, ModelState.RETIRING, fingerprint=manifest.fingerprint)
        if (manifest.name, manifest.version) not in self._served:
            self._models.tell(status)  # in the same step: at no moment is it unknown and still at work
        self._metrics.model_info.remove(manifest.name, manifest.version, manifest.fingerprint)
        task = asyncio.create_task(self._close(model, status))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close(self, model: ServedModel, status: ModelStatus) -> None:
        key = status.name, status.version
        await model.close()
        self._models.forget(status)
        if key not in self._served and key != self._loading:
            self._metrics.forget_model(*key)
        await self._prepare(self._fingerprints())
        await asyncio.to_thread(release_freed_memory)
        logger.info("model version retired", extra={"model": status.name, "version": status.version})

    def _is_refused(self, found: FoundVersion, retry: bool) -> bool:
        return not retry and self._refused.holds(found)

    def _serves(self, found: FoundVersion) -> bool:
        served = self._served.get(_key(found))
        return served is not None and served.content == found.content

    def _tell_loading(self, found: FoundVersion, what: str) -> None:
        self._models.tell(ModelStatus(found.name, found.version, ModelState.LOADING, what, found.fingerprint))

    def _fingerprints(self) -> set[str]:
        return {served.model.manifest.fingerprint for served in self._served.values()}


class _LoggedSteps:
    """A line in the log for every phase of a load."""

    def __init__(self) -> None:
        self._last: tuple[object, ...] = ()

    def __call__(self, found: FoundVersion, step: Step) -> None:
        here = (found.folder, step.engine, step.phase)
        if here != self._last:
            self._last = here
            logger.info("model version loads", extra={**_about(found), "engine": step.engine, "phase": step.phase})


def _key(found: FoundVersion) -> _Key:
    return found.name, found.version


def _about(found: FoundVersion) -> dict[str, str]:
    return {"model": found.name, "version": found.version}
