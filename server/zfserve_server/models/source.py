"""Where versions of models come from: found in folders, opened one by one. Built by `serve_command`, and by tests.

Both functions block, and are called in threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from zfserve_engines.catalogue import Opening, Report
from zfserve_runtime.bundle import Manifest, load_bundle
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.model_folders import FoundVersion, ModelFolders

from zfserve_server.config import ServerConfig
from zfserve_server.models.engine_choice import EngineChoice, choose_engine


@dataclass(frozen=True, eq=False)
class OpenedVersion:
    """A bundle whose digests were checked, and the engine that runs it, warm and verified."""

    manifest: Manifest
    choice: EngineChoice

    def close(self) -> None:
        self.choice.close()


@dataclass(frozen=True)
class ModelSource:
    """
    Attributes:
        look: every version there is. Raises BundleError or OSError where that cannot be said.
        open: makes one ready to serve; whatever it raises but EngineLost says why that cannot be.
    """

    look: Callable[[], Sequence[FoundVersion]]
    open: Callable[[FoundVersion, Report], OpenedVersion]


def models_on_disk(config: ServerConfig) -> ModelSource:
    """What lies in the folders of the settings, on the engine of the settings."""
    return ModelSource(ModelFolders(config.model).look, partial(_open, config))


def _open(config: ServerConfig, found: FoundVersion, report: Report) -> OpenedVersion:
    bundle = load_bundle(found.folder)
    opening = Opening(
        bundle,
        min(config.max_batch_size, config.max_queue),  # more are never admitted
        # Every model may use them all: they are seldom busy at once, and engines that wait do not spin.
        config.threads or available_cpus(),
        config.instances,
        config.engine_cache,
        config.on_engine_refusal,
    )
    return OpenedVersion(bundle.manifest, choose_engine(config.engine, config.precision, opening, report))
