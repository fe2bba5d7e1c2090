"""The registry holds the models of a server. The reconciler fills it, and the services look models up in it.

A service finds the model and is admitted to it in one step of the event loop. A version that is retired in between
therefore cannot lose the request:

    model = models.find(name, version)
    with model.admission.admit():
        ...
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from zfserve_runtime.bundle import Manifest, version_key
from zfserve_runtime.errors import NotFound, ServiceError, Starting
from zfserve_runtime.telemetry.tracing import note_model

from zfserve_server.models.served_model import ServedModel

_RETRY_AFTER_S = 1.0


class ModelState(enum.StrEnum):
    """Says what the server does with a version. RETIRING: it answers what it has accepted and takes no new calls."""

    LOADING = enum.auto()
    READY = enum.auto()
    FAILED = enum.auto()
    RETIRING = enum.auto()


@dataclass(frozen=True)
class ModelStatus:
    """Describes one version of a model, which may be served or not.

    Attributes:
        reason: a sentence for callers. FAILED: why it failed. LOADING: the current step. READY: why the present
            content of its folder does not replace it. Empty in all other cases.
        fingerprint: empty until the manifest was read.
        is_default: True if a request that names no model gets this version.
    """

    name: str
    version: str
    state: ModelState
    reason: str = ""
    fingerprint: str = ""
    is_default: bool = False


class ModelRegistry:
    """Holds the models that are ready to answer, and the status of all other versions that are known.

    Use from the event loop's thread only.

    Args:
        refusal: makes the error for a call while no model is ready.
        default: the name of the model for requests that name none; None: the first model that becomes known.
    """

    def __init__(self, refusal: Callable[[], ServiceError], default: str | None = None) -> None:
        self._refusal = refusal
        self._default = default
        self._versions: dict[str, list[ServedModel]] = {}  # by name, the newest version last
        self._statuses: dict[tuple[str, str], ModelStatus] = {}  # by name and version

    def __iter__(self) -> Iterator[ServedModel]:
        for versions in self._versions.values():
            yield from versions

    def __len__(self) -> int:
        return sum(map(len, self._versions.values()))

    def add(self, model: ServedModel) -> None:
        """Adds a model that is ready. It replaces a model of the same name and version."""
        name, version = model.manifest.name, model.manifest.version
        others = [other for other in self._versions.get(name, ()) if other.manifest.version != version]
        self._versions[name] = sorted([*others, model], key=lambda served: version_key(served.manifest.version))
        self._statuses.pop((name, version), None)
        self._default = self._default or name

    def remove(self, model: ServedModel) -> None:
        """Removes `model`, unless another model has replaced it."""
        versions = self._versions.get(model.manifest.name, [])
        if model in versions:
            versions.remove(model)

    def set_status(self, status: ModelStatus) -> None:
        """Sets the status of a version that is not ready, or of new content that would replace a ready version."""
        self._statuses[status.name, status.version] = status
        self._versions.setdefault(status.name, [])
        self._default = self._default or status.name

    def clear_status(self, status: ModelStatus) -> None:
        """Removes a status that `set_status` has set, unless another one has replaced it."""
        if self._statuses.get((status.name, status.version)) is status:
            del self._statuses[status.name, status.version]

    def statuses(self) -> list[ModelStatus]:
        """Returns the status of each known version: the default model first, and the newest version of each first."""
        known = dict(self._statuses)
        for model in self:
            manifest = model.manifest
            pending = known.get((manifest.name, manifest.version))
            known[manifest.name, manifest.version] = ModelStatus(
                manifest.name,
                manifest.version,
                ModelState.READY,
                reason="" if pending is None else pending.reason,
                fingerprint=manifest.fingerprint,
            )
        default = next(iter(self._versions.get(self._default or "", [])[-1:]), None)
        if default is not None:
            key = default.manifest.name, default.manifest.version
            known[key] = replace(known[key], is_default=True)
        names = [*self._versions]
        newest_first = sorted(known.values(), key=lambda status: version_key(status.version), reverse=True)
        return sorted(newest_first, key=lambda status: (status.name != self._default, names.index(status.name)))

    def find(self, name: str = "", version: str = "") -> ServedModel:
        """Returns the model of that name and version. An empty name means the default model, an empty version the
        newest one.

        Raises:
            NotFound: it is not served here. The message lists the models or versions that are.
            Starting: it is not ready yet.
            ServiceError: no model is served yet.
        """
        model = self._look_up(name or self._default or "", version)
        note_model(model.manifest.name, model.manifest.version)
        return model

    def find_equivalent(self, manifest: Manifest) -> ServedModel:
        """Returns the version that `manifest` describes, or else a version with the same weights and the same input.

        Raises:
            NotFound: no such version is served.
        """
        same = [
            model
            for model in self
            if (model.manifest.fingerprint, model.manifest.input) == (manifest.fingerprint, manifest.input)
        ]
        if not same:
            raise NotFound(
                f"the image reference was given out by {manifest.name} {manifest.version}, which is not served any "
                "more; send the image itself",
                field="image.reference",
            )
        named = (model for model in same if model.manifest.version == manifest.version)
        model = next(named, same[-1])
        note_model(model.manifest.name, model.manifest.version)
        return model

    def knows(self, name: str) -> bool:
        """Returns True if there is or was a version of that name, in any state."""
        return name in self._versions

    def _look_up(self, name: str, version: str) -> ServedModel:
        versions = self._versions.get(name)
        for model in reversed(versions or ()):
            if version in ("", model.manifest.version):
                return model
        if not len(self):
            raise self._refusal()
        for status in self._statuses.values():
            if status.name == name and version in ("", status.version):
                raise _not_ready(status)
        if not versions:
            served = ", ".join(name for name, held in self._versions.items() if held)
            raise NotFound(f"there is no model {name!r} here, only {served}", field="model.name")
        held = ", ".join(model.manifest.version for model in versions)
        raise NotFound(f"{name} is not served in version {version!r}, only in {held}", field="model.version")


def _not_ready(status: ModelStatus) -> ServiceError:
    label = f"{status.name} {status.version}"
    if status.state is ModelState.LOADING:
        return Starting(f"{label} is being loaded; try again in {_RETRY_AFTER_S:.0f} s", retry_after_s=_RETRY_AFTER_S)
    if status.state is ModelState.FAILED:
        return NotFound(f"{label} cannot be served: {status.reason}", field="model.version")
    return NotFound(f"{label} is not served any more", field="model.version")
