"""The models that a server holds, found by what a request asks for. Filled by `model_watch`, asked by the services.

A service finds the model and is admitted to it in one step of the event loop, so that a version which is retired in
between cannot lose the request:

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
    """What the server does with a version. RETIRING: it answers what it has accepted, and nothing else."""

    LOADING = enum.auto()
    READY = enum.auto()
    FAILED = enum.auto()
    RETIRING = enum.auto()


@dataclass(frozen=True)
class ModelStatus:
    """One version of a model, whether it is served or not.

    Attributes:
        reason: a sentence for callers. Of a version that failed, why; of one that loads, what that is at; of one
            that is ready, why what lies in its folder now does not take its place. Else empty.
        fingerprint: empty until its manifest was read.
        is_default: whether a request that names no model gets this version.
    """

    name: str
    version: str
    state: ModelState
    reason: str = ""
    fingerprint: str = ""
    is_default: bool = False


class Models:
    """Models that are ready: warm, verified, and answering; and what is known of those that are not.

    Use from the event loop's thread only.

    Args:
        refusal: what a call meets while there is none.
        default: the name of the model that is meant where none is named; None: the first that was told of.
    """

    def __init__(self, refusal: Callable[[], ServiceError], default: str | None = None) -> None:
        self._refusal = refusal
        self._default = default
        self._versions: dict[str, list[ServedModel]] = {}  # by name, the newest version last
        self._told: dict[tuple[str, str], ModelStatus] = {}  # by name and version

    def __iter__(self) -> Iterator[ServedModel]:
        for versions in self._versions.values():
            yield from versions

    def __len__(self) -> int:
        return sum(map(len, self._versions.values()))

    def add(self, model: ServedModel) -> None:
        """From now on `model` is found; one of the same version is found no more."""
        name, version = model.manifest.name, model.manifest.version
        others = [other for other in self._versions.get(name, ()) if other.manifest.version != version]
        self._versions[name] = sorted([*others, model], key=lambda served: version_key(served.manifest.version))
        self._told.pop((name, version), None)
        self._settle_default(name)

    def remove(self, model: ServedModel) -> None:
        """From now on `model` is not found."""
        versions = self._versions.get(model.manifest.name, [])
        if model in versions:
            versions.remove(model)

    def tell(self, status: ModelStatus) -> None:
        """What is known of a version that is not ready, or of what would take the place of one that is."""
        self._told[status.name, status.version] = status
        self._versions.setdefault(status.name, [])
        self._settle_default(status.name)

    def forget(self, status: ModelStatus) -> None:
        """What `tell` said does not hold any more; if something else was told of that version since, that stays."""
        if self._told.get((status.name, status.version)) is status:
            del self._told[status.name, status.version]

    def statuses(self) -> list[ModelStatus]:
        """Of all that is known, by model, the default one first; the newest version of each first."""
        known = dict(self._told)
        for model in self:
            manifest = model.manifest
            told = known.get((manifest.name, manifest.version))
            known[manifest.name, manifest.version] = ModelStatus(
                manifest.name,
                manifest.version,
                ModelState.READY,
                reason="" if told is None else told.reason,
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
        """The model asked for; by default the default one, and of each its newest version.

        Raises:
            NotFound: it is not served here; the message says what is.
            Starting: it is not ready yet.
            ServiceError: none is served yet.
        """
        model = self._look_up(name or self._default or "", version)
        note_model(model.manifest.name, model.manifest.version)
        return model

    def find_like(self, manifest: Manifest) -> ServedModel:
        """That very version, else one with the same weights and input.

        Raises:
            NotFound: there is none.
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

    @property
    def waiting(self) -> int:
        """Images that wait for an engine."""
        return sum(model.batcher.waiting for model in self)

    def _settle_default(self, name: str) -> None:
        self._default = self._default or name

    def _look_up(self, name: str, version: str) -> ServedModel:
        versions = self._versions.get(name)
        for model in reversed(versions or ()):
            if version in ("", model.manifest.version):
                return model
        if not len(self):
            raise self._refusal()
        for status in self._told.values():
            if status.name == name and version in ("", status.version):
                raise _not_ready(status)
        if not versions:
            served = ", ".join(name for name, held in self._versions.items() if held)
            raise NotFound(f"there is no model {name!r} here, only {served}", field="model.name")
        held = ", ".join(model.manifest.version for model in versions)
        raise NotFound(f"{name} is not served in version {version!r}, only in {held}", field="model.version")


def _not_ready(status: ModelStatus) -> ServiceError:
    which = f"{status.name} {status.version}"
    if status.state is ModelState.LOADING:
        return Starting(f"{which} is being loaded; try again in {_RETRY_AFTER_S:.0f} s", retry_after_s=_RETRY_AFTER_S)
    if status.state is ModelState.FAILED:
        return NotFound(f"{which} cannot be served: {status.reason}", field="model.version")
    return NotFound(f"{which} is not served any more", field="model.version")
