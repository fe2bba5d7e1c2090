"""Remembers the versions that could not be loaded, and decides when to try them again. Used by the reconciler."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zfserve_engines.contract import EngineUnavailable
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import ServiceError
from zfserve_runtime.model_repository import FoundVersion, Listing
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.models.registry import ModelRegistry, ModelState, ModelStatus

logger = logging.getLogger(__name__)

_DIRECTORIES = re.compile(r"(?<![\w.:/-])(?:/[\w.@+-]+)+/(?=[\w.@+-])")
"""Matches the directories of absolute paths. Answers to callers must not reveal where files are."""


@dataclass(frozen=True)
class _Failure:
    found: FoundVersion
    status: ModelStatus
    error: Exception


class FailedVersions:
    """Holds the failed versions, by their folders. Use from the event loop's thread only.

    Args:
        models: gets the status of each failed version.
        metrics: counts the failures.
    """

    def __init__(self, models: ModelRegistry, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._failures: dict[Path, _Failure] = {}  # by the version's folder
        self._last_files: Mapping[Path, Listing] = {}  # by folder, as of the last scan
        self._retry = False

    def begin_scan(self, retry: bool) -> None:
        """Starts a scan. With `retry`, every failed version may be tried again in it."""
        self._retry = retry

    def end_scan(self, found: Sequence[FoundVersion]) -> None:
        """Ends a scan that found these versions. Forgets failed versions whose folder is gone."""
        self._last_files = {version.folder: version.files for version in found}
        for folder in self._failures.keys() - self._last_files.keys():
            self.forget(folder)

    def add(self, found: FoundVersion, error: Exception) -> None:
        """Records that a version cannot be loaded."""
        self.forget(found.folder)
        fields = {"model": found.name, "version": found.version}
        if not isinstance(error, BundleError | EngineUnavailable | ServiceError | OSError):
            logger.error("a model version failed to load", extra=fields, exc_info=error)
        reason = _public_reason(found, error)
        status = ModelStatus(found.name, found.version, ModelState.FAILED, reason, found.fingerprint)
        self._failures[found.folder] = _Failure(found, status, error)
        self._models.set_status(status)
        self._metrics.model_refused.labels(found.name, found.version).set(1)
        self._metrics.model_loads.labels(found.name, "refused").inc()
        logger.error("model version refused", extra={**fields, "reason": reason})

    def forget(self, folder: Path) -> None:
        """Forgets the failure of the version in `folder`, because it is served or gone."""
        failure = self._failures.pop(folder, None)
        if failure is not None:
            self._models.clear_status(failure.status)
            labels = {"model": failure.found.name, "version": failure.found.version}
            self._metrics.model_refused.remove_by_labels(labels)

    def blocks(self, found: FoundVersion) -> bool:
        """Returns True if the version failed and must not be tried again yet.

        It is tried again when its files have changed since the failure and are the same as in the scan before. Files
        that change from scan to scan are still being copied.
        """
        failure = self._failures.get(found.folder)
        if failure is None or self._retry:
            return False
        return failure.found.files == found.files or self._last_files.get(found.folder) != found.files

    def error(self, names: Collection[str]) -> Exception:
        """Returns the error that says why the models `names` cannot be served. It has paths, so it is for operators."""
        failures = [failure for failure in self._failures.values() if failure.found.name in names]
        if len(failures) == 1:
            return failures[0].error
        reasons = (f"{failure.found.name} {failure.found.version}: {failure.error}" for failure in failures)
        return BundleError(f"no version of {', '.join(names)} can serve: {'; '.join(reasons)}")


def _public_reason(found: FoundVersion, error: Exception) -> str:
    """Returns the reason as callers may read it, without directories and without the text of unknown errors."""
    if isinstance(error, OSError):
        return f"its files cannot be read or written: {error.strerror or type(error).__name__}"
    if not isinstance(error, BundleError | EngineUnavailable | ServiceError):
        return f"it failed with an unexpected error ({type(error).__name__}); see the server's log"
    text = str(error).replace(str(found.folder), f"{found.name} {found.version}")
    return _DIRECTORIES.sub("", text)
