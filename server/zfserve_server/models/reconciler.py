"""The reconciler serves the versions that are in the model folders: it loads new ones and retires old ones.

For each model it serves the newest versions that can serve, up to the number to keep, and the pinned versions, whose
own folders were named. A new version is loaded beside the others and then takes over (`serving_set`). A version that
cannot be loaded is refused. It is tried again when its files have changed and no longer change, or when a rescan is
requested (`failed_versions`). The last version of a model is always kept: neither a refused version nor a missing
folder removes it, because on a network volume a missing folder may mean anything. Built by `app`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from zfserve_engines.opening import Step
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.model_repository import FoundVersion, group_by_model
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.models.failed_versions import FailedVersions
from zfserve_server.models.loader import ModelLoader
from zfserve_server.models.registry import ModelRegistry, ModelState, ModelStatus
from zfserve_server.models.served_model import ServedModel
from zfserve_server.models.serving_set import Key, ServingSet, key_of
from zfserve_server.models.startup_progress import describe_step

logger = logging.getLogger(__name__)

OnStep = Callable[[FoundVersion, Step], None]


class Reconciler:
    """Makes the served versions match those that a scan finds. Use from the event loop's thread only.

    Args:
        scan: returns all versions that exist now; blocks.
        loader: loads a version.
        serving: the versions that serve.
        models: the registry; gets the status of versions that load or have failed.
        metrics: counts the loads.
        keep: the number of unpinned versions to serve for each model.
    """

    def __init__(
        self,
        scan: Callable[[], Sequence[FoundVersion]],
        loader: ModelLoader,
        serving: ServingSet,
        models: ModelRegistry,
        metrics: Metrics,
        keep: int,
    ) -> None:
        self._scan = scan
        self._loader = loader
        self._serving = serving
        self._models = models
        self._metrics = metrics
        self._keep = keep
        self._failed = FailedVersions(models, metrics)
        self._scan_error = ""  # of the last scan
        self._on_step: OnStep = _StepLog()

    async def start(self, found: Sequence[FoundVersion], on_step: OnStep, strict: bool) -> None:
        """Loads the versions that were found at the start.

        Args:
            found: the versions.
            on_step: called with each step of each load.
            strict: if True, each model needs a version that can serve. If False, one model is enough.

        Raises:
            BundleError, EngineUnavailable: versions cannot serve (see `strict`).
            EngineLost: a device failed permanently.
        """
        step_log, self._on_step = self._on_step, on_step
        await self._reconcile(found, retry=False)
        self._on_step = step_log
        served = self._serving.names
        missing = [name for name in group_by_model(found) if name not in served]
        if missing and (strict or not served):
            raise self._failed.error(missing)

    async def run(self, interval_s: float, rescan: asyncio.Event) -> None:
        """Scans and reconciles every `interval_s` seconds (0: never) and whenever `rescan` is set, until cancelled.

        Raises:
            EngineLost: a device failed permanently.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(rescan.wait(), interval_s or None)
            retry = rescan.is_set()
            rescan.clear()
            try:
                found = await asyncio.to_thread(self._scan)
            except Exception as error:  # no error may end the models that serve
                self._log_scan_error(error)
                continue
            self._scan_error = ""
            try:
                await self._reconcile(found, retry)
            except EngineLost:
                raise
            except Exception:  # no error may end the models that serve
                logger.exception("the models cannot be reconciled")

    def _log_scan_error(self, error: Exception) -> None:
        if str(error) != self._scan_error:
            expected = isinstance(error, BundleError | OSError)
            logger.warning(
                "the model folders cannot be scanned; the served models stay",
                extra={"reason": str(error)},
                exc_info=None if expected else error,
            )
        self._scan_error = str(error)

    async def _reconcile(self, found: Sequence[FoundVersion], retry: bool) -> None:
        self._failed.begin_scan(retry)
        by_name = group_by_model(found)
        for version in self._to_load(by_name):
            self._set_loading(version, "it waits for others to be loaded")
        for versions in by_name.values():
            await self._reconcile_model(versions)
        self._failed.end_scan(found)

    def _to_load(self, by_name: Mapping[str, Sequence[FoundVersion]]) -> Iterator[FoundVersion]:
        """Yields the versions that will be loaded if none of the loads fails."""
        for versions in by_name.values():
            usable = [version for version in versions if not self._failed.blocks(version)]
            newest = [version for version in usable if not version.pinned][: self._keep]
            yield from (
                version
                for version in usable
                if (version.pinned or version in newest) and not self._serving.is_current(version)
            )

    async def _reconcile_model(self, versions: Sequence[FoundVersion]) -> None:
        """Reconciles one model, whose versions come newest first."""
        kept: dict[Key, FoundVersion] = {}
        newest = 0
        for found in versions:
            if not found.pinned and newest == self._keep:
                continue
            if (same := kept.get(key_of(found))) is not None:
                if found.files != same.files and not self._failed.blocks(found):  # equal files: a link to that folder
                    self._failed.add(found, BundleError(f"it is in two folders; only {same.folder.name} is served"))
            elif await self._ensure_served(found):
                kept[key_of(found)] = found
                newest += not found.pinned
        if kept:
            self._serving.retire_others(versions[0].name, kept)

    async def _ensure_served(self, found: FoundVersion) -> bool:
        """Loads the version unless it is served. Returns True if it is served now, even with its earlier content."""
        if self._serving.is_current(found):
            self._failed.forget(found.folder)
            return True
        if self._failed.blocks(found):
            return self._serving.is_served(found)
        self._serving.loading = key_of(found)
        try:
            model = await self._load(found)
        except EngineLost:
            raise
        except Exception as error:
            self._failed.add(found, error)
            return self._serving.is_served(found)
        finally:
            self._serving.loading = None
        self._failed.forget(found.folder)
        self._serving.add(found, model)
        self._metrics.model_loads.labels(found.name, "ready").inc()
        logger.info("model version served", extra={**_log_fields(found), "seconds": round(model.startup_s, 3)})
        return True

    async def _load(self, found: FoundVersion) -> ServedModel:
        model = await self._loader.load(found, partial(self._report_step, found))
        try:
            await self._serving.announce(model)
        except BaseException:
            await model.close_engines()
            raise
        return model

    def _report_step(self, found: FoundVersion, step: Step) -> None:
        self._set_loading(found, describe_step(step))
        self._on_step(found, step)

    def _set_loading(self, found: FoundVersion, reason: str) -> None:
        self._models.set_status(ModelStatus(found.name, found.version, ModelState.LOADING, reason, found.fingerprint))


class _StepLog:
    """Logs a line for each phase of a load."""

    def __init__(self) -> None:
        self._last: tuple[object, ...] = ()

    def __call__(self, found: FoundVersion, step: Step) -> None:
        current = (found.folder, step.engine, step.phase)
        if current != self._last:
            self._last = current
            fields = {**_log_fields(found), "engine": step.engine, "phase": step.phase}
            logger.info("model version loads", extra=fields)


def _log_fields(found: FoundVersion) -> dict[str, str]:
    return {"model": found.name, "version": found.version}
