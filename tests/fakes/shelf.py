"""Models on a shelf in memory, in place of those in folders: a test puts versions there and takes them away."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from zfserve_engines.contract import Engine, EngineName
from zfserve_engines.opening import Phase, Report, Step
from zfserve_runtime.bundle import BundleError, Manifest
from zfserve_runtime.model_repository import FoundVersion
from zfserve_server.models.engine_choice import EngineChoice
from zfserve_server.models.source import ModelSource, OpenedVersion


@dataclass
class Shelf:
    """
    Attributes:
        opened: name and version of everything that was opened, in order, whether that succeeded or not.
        looks: that were taken.
        fault: raised by the next looks, until cleared.
        reopen: opens engines in place of those that hang; None: none can be had.
        engine: as which all of them are known.
    """

    opened: list[tuple[str, str]] = field(default_factory=list)
    scans: int = 0
    fault: Exception | None = None
    reopen: Callable[[], Engine] | None = None
    engine: EngineName = "onnx-cpu"
    _lying: dict[Path, tuple[FoundVersion, Manifest, tuple[Engine, ...], Exception | None]] = field(
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
        """From the next look on that version lies there, with those engines; or it fails to open with `error`.

        Put again, its files have changed. Its folder is called like the version, unless it is given.
        """
        self._puts += 1
        place = Path("/shelf", manifest.name, folder or manifest.version)
        files = (("manifest.json", 1, self._puts, self._puts, 1),)
        found = FoundVersion(
            place, manifest.name, manifest.version, manifest.fingerprint, f"content {self._puts}", files, pinned
        )
        self._lying[place] = found, manifest, engines, error
        return found

    def take(self, manifest: Manifest) -> None:
        """From the next look on it is gone."""
        del self._lying[Path("/shelf", manifest.name, manifest.version)]

    @property
    def source(self) -> ModelSource:
        return ModelSource(self._scan, self._open)

    def _scan(self) -> list[FoundVersion]:
        self.scans += 1
        if self.fault is not None:
            raise self.fault
        if not self._lying:
            raise BundleError("the shelf is empty")
        return [found for found, *_ in self._lying.values()]

    def _open(self, found: FoundVersion, report: Report) -> OpenedVersion:
        self.opened.append((found.name, found.version))
        _, manifest, engines, error = self._lying[found.folder]
        report(Step(self.engine, Phase.LOADING))
        if error is not None:
            raise error
        return OpenedVersion(manifest, EngineChoice(self.engine, engines, reopen=self.reopen))
