"""Sets the server's health from the state of its models. Built by `app`, which reports each change here.

After `Health.drain` all services stay NOT_SERVING, whatever is reported here.
"""

from zfserve_protos.methods import INFERENCE_SERVICE, PROJECTION, VISION_SERVICE
from zfserve_runtime.grpc.health import SERVER, Health

from zfserve_server.models.registry import ModelRegistry

SERVICES = (SERVER, VISION_SERVICE, INFERENCE_SERVICE)


class Readiness:
    """Reports SERVING once the start is over, except while a model has no working engine.

    Use from the event loop's thread only.
    """

    def __init__(self, health: Health, models: ModelRegistry) -> None:
        self._health = health
        self._models = models
        self._started = False
        self._engine_lost = False
        self._projection_available = False

    @property
    def engine_lost(self) -> bool:
        """True once an engine is lost permanently."""
        return self._engine_lost

    def set_started(self) -> None:
        """Reports that the start is over."""
        self._started = True
        self.update()

    def set_engine_lost(self) -> None:
        """Reports that an engine is lost permanently and the process ends."""
        self._engine_lost = True
        self.update()

    def set_projection_available(self, available: bool) -> None:
        """Reports if the worker can project all models that are served."""
        self._projection_available = available
        self.update()

    def update(self) -> None:
        """Sets the health again. Call it when the models or their engines have changed."""
        stalled = any(model.batcher.stalled for model in self._models)
        self._set(self._started and not self._engine_lost and not stalled, *SERVICES)
        self._set(self._started and not self._engine_lost and self._projection_available, PROJECTION)

    def _set(self, serving: bool, *services: str) -> None:
        (self._health.serving if serving else self._health.not_serving)(*services)
