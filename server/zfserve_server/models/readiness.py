"""What the server's health says, from what is served and how that fares. Built by `app`, which tells it of changes.

Gone for good is what `Health.drain` says; nothing here takes that back.
"""

from zfserve_runtime.grpc.health import INFERENCE_SERVICE, PROJECTION, SERVER, VISION_SERVICE, Health

from zfserve_server.models.registry import Models

SERVICES = (SERVER, VISION_SERVICE, INFERENCE_SERVICE)


class Readiness:
    """SERVING from the end of the start on, but for while a model has no engine that works.

    Use from the event loop's thread only.
    """

    def __init__(self, health: Health, models: Models) -> None:
        self._health = health
        self._models = models
        self._begun = False
        self._lost = False
        self._projects = False

    @property
    def lost(self) -> bool:
        """Whether an engine is lost for good."""
        return self._lost

    def begin(self) -> None:
        """The start is over."""
        self._begun = True
        self.settle()

    def lose(self) -> None:
        """An engine is lost for good, and the process ends."""
        self._lost = True
        self.settle()

    def project(self, possible: bool) -> None:
        """Whether all that is served can be projected."""
        self._projects = possible
        self.settle()

    def settle(self) -> None:
        """Look at the models again."""
        stalled = any(model.batcher.stalled for model in self._models)
        self._tell(self._begun and not self._lost and not stalled, *SERVICES)
        self._tell(self._begun and not self._lost and self._projects, PROJECTION)

    def _tell(self, serving: bool, *services: str) -> None:
        (self._health.serving if serving else self._health.not_serving)(*services)
