"""The models that a server holds, found by what a request asks for. Filled by `app`, asked by the services."""

from collections.abc import Callable, Iterator

from zfserve_runtime.errors import NotFound, ServiceError

from zfserve_server.served_model import ServedModel


class Models:
    """Models that are ready: warm, verified, and answering. Use from the event loop's thread only.

    Args:
        refusal: what a call meets while there is none.
    """

    def __init__(self, refusal: Callable[[], ServiceError]) -> None:
        self._refusal = refusal
        self._versions: dict[str, list[ServedModel]] = {}  # by name, the newest version last

    def __iter__(self) -> Iterator[ServedModel]:
        for versions in self._versions.values():
            yield from versions

    def __len__(self) -> int:
        return sum(map(len, self._versions.values()))

    def add(self, model: ServedModel) -> None:
        """From now on `model` is the newest version of its name, and the default where it is the first of all."""
        self._versions.setdefault(model.manifest.name, []).append(model)

    def find(self, name: str = "", version: str = "") -> ServedModel:
        """The model asked for; by default the first one, and of each its newest version.

        Raises:
            NotFound: it is not served here; the message says what is.
            ServiceError: none is served yet.
        """
        if not self._versions:
            raise self._refusal()
        versions = self._versions.get(name) if name else next(iter(self._versions.values()))
        if versions is None:
            raise NotFound(f"there is no model {name!r} here, only {', '.join(self._versions)}", field="model.name")
        if not version:
            return versions[-1]
        for model in versions:
            if model.manifest.version == version:
                return model
        held = ", ".join(model.manifest.version for model in versions)
        raise NotFound(
            f"{versions[-1].manifest.name} is not served in version {version!r}, only in {held}", field="model.version"
        )

    @property
    def waiting(self) -> int:
        """Images that wait for an engine."""
        return sum(model.batcher.waiting for model in self)
