"""Versions that were found and cannot be served: why, and when it is worth another try. Kept by `model_watch`."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zfserve_engines.contract import EngineUnavailable
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import ServiceError
from zfserve_runtime.model_folders import FoundVersion, Listing
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.models.registry import Models, ModelState, ModelStatus

logger = logging.getLogger(__name__)

_DIRECTORIES = re.compile(r"(?<![\w.:/-])(?:/[\w.@+-]+)+/(?=[\w.@+-])")
"""Of absolute paths. An answer tells nobody where things lie."""


@dataclass(frozen=True)
class _Refusal:
    found: FoundVersion
    status: ModelStatus
    error: Exception


class RefusedVersions:
    """Use from the event loop's thread only.

    Args:
        models: told of every refusal.
    """

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._refusals: dict[Path, _Refusal] = {}  # by the version's folder
        self._seen: Mapping[Path, Listing] = {}  # in the last look

    def refuse(self, found: FoundVersion, error: Exception) -> None:
        self.forgive(found.folder)
        about = {"model": found.name, "version": found.version}
        if not isinstance(error, BundleError | EngineUnavailable | ServiceError | OSError):
            logger.error("a model version failed to load", extra=about, exc_info=error)
        reason = _reason(found, error)
        status = ModelStatus(found.name, found.version, ModelState.FAILED, reason, found.fingerprint)
        self._refusals[found.folder] = _Refusal(found, status, error)
        self._models.tell(status)
        self._metrics.model_refused.labels(found.name, found.version).set(1)
        self._metrics.model_loads.labels(found.name, "refused").inc()
        logger.error("model version refused", extra={**about, "reason": reason})

    def forgive(self, folder: Path) -> None:
        """What lies there is served, or gone."""
        refusal = self._refusals.pop(folder, None)
        if refusal is not None:
            self._models.forget(refusal.status)
            about = {"model": refusal.found.name, "version": refusal.found.version}
            self._metrics.model_refused.remove_by_labels(about)

    def forgive_absent(self, found: Sequence[FoundVersion]) -> None:
        """At the end of a look that found these."""
        self._seen = {version.folder: version.files for version in found}
        for folder in self._refusals.keys() - self._seen.keys():
            self.forgive(folder)

    def holds(self, found: FoundVersion) -> bool:
        """Whether it was refused and is not worth another try: its files are the same, or change from look to look, as
        while they are copied."""
        refusal = self._refusals.get(found.folder)
        if refusal is None:
            return False
        return refusal.found.files == found.files or self._seen.get(found.folder) != found.files

    def error(self, names: Collection[str]) -> Exception:
        """What keeps these models from being served, in the words of whoever runs the server."""
        refusals = [refusal for refusal in self._refusals.values() if refusal.found.name in names]
        if len(refusals) == 1:
            return refusals[0].error
        said = (f"{refusal.found.name} {refusal.found.version}: {refusal.error}" for refusal in refusals)
        return BundleError(f"no version of {', '.join(names)} can serve: {'; '.join(said)}")


def _reason(found: FoundVersion, error: Exception) -> str:
    """For callers."""
    if isinstance(error, OSError):
        return f"its files cannot be read or written: {error.strerror or type(error).__name__}"
    if not isinstance(error, BundleError | EngineUnavailable | ServiceError):
        return f"it failed in a way nobody foresaw ({type(error).__name__}); the log says more"
    said = str(error).replace(str(found.folder), f"{found.name} {found.version}")
    return _DIRECTORIES.sub("", said)
