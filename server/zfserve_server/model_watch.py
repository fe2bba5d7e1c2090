"""Keeps what is served true to what lies in the models' folders: new versions come, are proved, and take over.

Of every model the newest versions that can serve are served, as many as are to be kept, and those that were asked for
by their own folders. A version is loaded beside the others and takes over between two requests; those that it replaces
answer what they have accepted and are closed. One that cannot be loaded is refused, and tried again when its files have
changed and come to rest, or when somebody asks for a look. The last version of a model is never given up: neither for
one that is refused, nor because its folder is gone, which on a network volume may mean anything. Built by `app`.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zfserve_runtime.bundle import BundleError
from zfserve_runtime.engine import EngineUnavailable
from zfserve_runtime.engine_catalogue import Step
from zfserve_runtime.errors import EngineLost, ServiceError
from zfserve_runtime.metrics import Metrics
from zfserve_runtime.model_folders import FoundVersion, Listing, by_model

from zfserve_server.allocator import release_freed_memory
from zfserve_server.model_loader import ModelLoader
from zfserve_server.models import Models, ModelState, ModelStatus
from zfserve_server.served_model import ServedModel

logger = logging.getLogger(__name__)

_Key = tuple[str, str]
"""Name and version of a model."""

OnStep = Callable[[FoundVersion, Step], None]

_DIRECTORIES = re.compile(r"(?<![\w.:/-])(?:/[\w.@+-]+)+/(?=[\w.@+-])")
"""Of absolute paths. An answer tells nobody where things lie."""


@dataclass(frozen=True)
class _Served:
    model: ServedModel
    content: str


@dataclass(frozen=True)
class _Refusal:
    found: FoundVersion
    status: ModelStatus
    error: Exception


class ModelWatch:
    """Use from the event loop's thread only.

    Args:
        look: every version there is; blocks.
        models: where services find them.
        keep: how many versions of every model to serve.
        prepare: called with the fingerprints of all that is served, before one is added and after one has gone.
    """

    def __init__(
        self,
        look: Callable[[], Sequence[FoundVersion]],
        loader: ModelLoader,
        models: Models,
        metrics: Metrics,
        keep: int,
        prepare: Callable[[Collection[str]], Awaitable[None]],
    ) -> None:
        self._look = look
        self._loader = loader
        self._models = models
        self._metrics = metrics
        self._keep = keep
        self._prepare = prepare
        self._served: dict[_Key, _Served] = {}
        self._loading: _Key | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._refused: dict[Path, _Refusal] = {}
        self._seen: Mapping[Path, Listing] = {}  # in the last look
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
            raise _unservable([refusal for refusal in self._refused.values() if refusal.found.name in without])

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
            except (BundleError, OSError) as error:
                if str(error) != self._fault:
                    logger.warning("the models cannot be looked at; what is served stays", extra={"reason": str(error)})
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
            self._tell(due, ModelState.LOADING, "it waits for others to be loaded")
        for of_one in versions.values():
            await self._settle(of_one, retry)
        present = {version.folder for version in found}
        for folder in self._refused.keys() - present:
            self._forgive(folder)
        self._seen = {version.folder: version.files for version in found}

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
                    self._refuse(found, BundleError(f"it lies in two folders; only {same.folder.name} is looked at"))
            elif await self._serve(found, retry):
                kept[_key(found)] = found
                newest += not found.pinned
        gone = [key for key in self._served if key[0] == versions[0].name and key not in kept]
        for key in gone if kept else ():
            self._retire(self._served.pop(key).model)

    async def _serve(self, found: FoundVersion, retry: bool) -> bool:
        """Whether that version is served in the end, if only as it was before its files changed."""
        if self._serves(found):
            self._forgive(found.folder)
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
            self._refuse(found, error)
            return before is not None
        finally:
            self._loading = None
        self._forgive(found.folder)
        self._served[_key(found)] = _Served(model, found.content)
        self._models.add(model)
        if before is not None:
            self._retire(before.model)
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
        self._tell(found, ModelState.LOADING, f"{step.phase} the engine {step.engine}{share}")
        self._on_step(found, step)

    def _retire(self, model: ServedModel) -> None:
        """From now on nobody finds `model`; it is closed when it has answered all that it accepted."""
        self._models.remove(model)
        manifest = model.manifest
        self._metrics.model_info.remove(manifest.name, manifest.version, manifest.fingerprint)
        task = asyncio.create_task(self._close(model))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close(self, model: ServedModel) -> None:
        name, version = key = model.manifest.name, model.manifest.version
        status = ModelStatus(name, version, ModelState.RETIRING, fingerprint=model.manifest.fingerprint)
        if key not in self._served:
            self._models.tell(status)
        await model.close()
        self._models.forget(status)
        if key not in self._served and key != self._loading:
            self._metrics.forget_model(*key)
        await self._prepare(self._fingerprints())
        await asyncio.to_thread(release_freed_memory)
        logger.info("model version retired", extra={"model": name, "version": version})

    def _refuse(self, found: FoundVersion, error: Exception) -> None:
        if not isinstance(error, BundleError | EngineUnavailable | ServiceError | OSError):
            logger.error("a model version failed to load", extra=_about(found), exc_info=error)
        self._forgive(found.folder)
        reason = _reason(found, error)
        status = self._tell(found, ModelState.FAILED, reason)
        self._refused[found.folder] = _Refusal(found, status, error)
        self._metrics.model_refused.labels(*_key(found)).set(1)
        self._metrics.model_loads.labels(found.name, "refused").inc()
        logger.error("model version refused", extra={**_about(found), "reason": reason})

    def _forgive(self, folder: Path) -> None:
        refusal = self._refused.pop(folder, None)
        if refusal is not None:
            self._models.forget(refusal.status)
            self._metrics.model_refused.remove_by_labels(_about(refusal.found))

    def _is_refused(self, found: FoundVersion, retry: bool) -> bool:
        refusal = self._refused.get(found.folder)
        if refusal is None or retry:
            return False
        # Files that change from look to look are still being copied.
        at_rest = self._seen.get(found.folder) == found.files
        return refusal.found.files == found.files or not at_rest

    def _serves(self, found: FoundVersion) -> bool:
        served = self._served.get(_key(found))
        return served is not None and served.content == found.content

    def _tell(self, found: FoundVersion, state: ModelState, reason: str) -> ModelStatus:
        status = ModelStatus(found.name, found.version, state, reason, found.fingerprint)
        self._models.tell(status)
        return status

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


def _reason(found: FoundVersion, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"its files cannot be read or written: {error.strerror or type(error).__name__}"
    if not isinstance(error, BundleError | EngineUnavailable | ServiceError):
        return f"it failed in a way nobody foresaw ({type(error).__name__}); the log says more"
    said = str(error).replace(str(found.folder), f"{found.name} {found.version}")
    return _DIRECTORIES.sub("", said)


def _unservable(refusals: Sequence[_Refusal]) -> Exception:
    """What keeps the server from starting."""
    if len(refusals) == 1:
        return refusals[0].error
    said = "; ".join(f"{refusal.found.name} {refusal.found.version}: {refusal.error}" for refusal in refusals)
    return BundleError(f"no version of these can serve: {said}")
