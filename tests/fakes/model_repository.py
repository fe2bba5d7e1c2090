"""This model repository in memory replaces model folders. A test puts versions there and removes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fakes.reading_engine import FakeReadingEngine
from zfserve_engines.contract import Engine, EngineName
from zfserve_engines.opening import Phase, Report, Step
from zfserve_engines.readings.plan import ReadingEngine, ReadingPlan
from zfserve_runtime.bundle import BundleError, Manifest
from zfserve_runtime.model_repository import FoundVersion
from zfserve_server.models.engine_choice import EngineChoice
from zfserve_server.models.source import ModelSource, OpenedVersion


@dataclass
class FakeModelRepository:
    """Holds versions of models.

    Attributes:
        opened: name and version of each version that was opened, in order, those included that failed to open.
        scans: the number of scans.
        fault: raised by each scan while it is set.
        reopen: opens engines in place of hung ones; None: no engine can be opened.
        engine: the name of the engine that all versions claim to use.
        open_reading: opens the engines that read layers.
    """

    opened: list[tuple[str, str]] = field(default_factory=list)
    scans: int = 0
    fault: Exception | None = None
    reopen: Callable[[], Engine] | None = None
    engine: EngineName = "onnx-cpu"
    open_reading: Callable[[ReadingPlan], ReadingEngine] = FakeReadingEngine
    _versions: dict[Path, tuple[FoundVersion, Manifest, tuple[Engine, ...], Exception | None]] = field(
        default_factory=dict
    )
    _puts: int = 0

    def put(
        self,
        manifest: Manifest,
        *engines: Engine,
        error: Exception | None = None,
        pinned: bool = False,
        folder: str | None = None,
    ) -> FoundVersion:
        """Adds a version with its engines, or one that fails to open with `error`. The next scan finds it.

        A second put of the same version changes its files. The folder has the name of the version unless it is given.
        """
        self._puts += 1
        path = Path("/repository", manifest.name, folder or manifest.version)
        files = (("manifest.json", 1, self._puts, self._puts, 1),)
        found = FoundVersion(
            path, manifest.name, manifest.version, manifest.fingerprint, f"content {self._puts}", files, pinned
        )
        self._versions[path] = found, manifest, engines, error
        return found

    def remove(self, manifest: Manifest) -> None:
        """Removes a version. The next scan does not find it."""
        del self._versions[Path("/repository", manifest.name, manifest.version)]

    @property
    def source(self) -> ModelSource:
        return ModelSource(self._scan, self._open)

    def _scan(self) -> list[FoundVersion]:
        self.scans += 1
        if self.fault is not None:
            raise self.fault
        if not self._versions:
            raise BundleError("the repository is empty")
        return [found for found, *_ in self._versions.values()]

    def _open(self, found: FoundVersion, report: Report) -> OpenedVersion:
        self.opened.append((found.name, found.version))
        _, manifest, engines, error = self._versions[found.folder]
        report(Step(self.engine, Phase.LOADING))
        if error is not None:
            raise error
        choice = EngineChoice(self.engine, engines, reopen=self.reopen, open_reading=self.open_reading)
        return OpenedVersion(manifest, choice)
