"""A model source finds versions of models and opens them. Built by `server_process`, and by tests.

Both of its functions block. Call them in threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from zfserve_engines.opening import EngineOptions, Report
from zfserve_runtime.bundle import Manifest, load_bundle
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.model_repository import FoundVersion, ModelRepository

from zfserve_server.config import ServerConfig
from zfserve_server.models.engine_choice import EngineChoice, choose_engine


@dataclass(frozen=True, eq=False)
class OpenedVersion:
    """Holds a bundle whose digests were checked, and the engine that runs it, warm and verified."""

    manifest: Manifest
    choice: EngineChoice

    def close(self) -> None:
        self.choice.close()


@dataclass(frozen=True)
class ModelSource:
    """Finds versions of models and opens them.

    Attributes:
        scan: returns all versions that exist now. Raises BundleError or OSError if they cannot be listed.
        open: makes a version ready to serve. Raises EngineLost if a device failed permanently, and any other error if
            the version cannot serve.
    """

    scan: Callable[[], Sequence[FoundVersion]]
    open: Callable[[FoundVersion, Report], OpenedVersion]


def models_on_disk(config: ServerConfig) -> ModelSource:
    """Returns the source that reads the model folders of `config` and opens its engine."""
    return ModelSource(ModelRepository(config.model).scan, partial(_open, config))


def _max_batch_size(config: ServerConfig, manifest: Manifest) -> int:
    """Returns the largest number of images in one run. More than `max_queue` images are never admitted."""
    wanted = min(config.max_batch_size, config.max_queue)
    return min(wanted, manifest.fixed_batch_size or wanted)


def _open(config: ServerConfig, found: FoundVersion, report: Report) -> OpenedVersion:
    bundle = load_bundle(found.folder)
    options = EngineOptions(
        bundle,
        _max_batch_size(config, bundle.manifest),
        # Each model may use all CPUs. The models are seldom busy at the same time, and an idle engine does not spin.
        config.threads or available_cpus(),
        config.instances,
        config.engine_cache,
        config.on_engine_refusal,
    )
    return OpenedVersion(bundle.manifest, choose_engine(config.engine, config.precision, options, report))
