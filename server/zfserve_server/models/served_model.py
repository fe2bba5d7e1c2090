"""A served model is one version of a model that is ready to answer. Built by the loader, used by the services."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import LayerEntry, Manifest
from zfserve_runtime.grpc.in_flight import InFlight
from zfserve_runtime.telemetry.metrics import ModelMetrics

from zfserve_server.admission.admission import Admission
from zfserve_server.batching.batcher import Batcher
from zfserve_server.models.engine_choice import EngineChoice
from zfserve_server.models.reading_engines import ReadingEngines

PROJECTION_RULES = {
    "paper": pb.ProjectionRule.PROJECTION_RULE_PAPER,
    "extended": pb.ProjectionRule.PROJECTION_RULE_EXTENDED,
}


@dataclass(frozen=True, eq=False)
class ServedModel:
    """Holds a bundle's manifest, the engine that runs one of its artefacts, and the batcher and admission before it.

    Attributes:
        choice: the engine that serves.
        admission: bounds the images in flight.
        metrics: the metrics of this version.
        startup_s: seconds from the start of the load until it was ready.
        projections_in_flight: counts the projections in flight. The worker must hold the network until they end.
        studies_in_flight: counts the studies in flight. Their images have no places in `admission`.
    """

    manifest: Manifest
    choice: EngineChoice
    batcher: Batcher
    admission: Admission
    metrics: ModelMetrics
    startup_s: float
    projections_in_flight: InFlight = field(default_factory=InFlight)
    studies_in_flight: InFlight = field(default_factory=InFlight)

    async def close(self) -> None:
        """Waits until all accepted calls are answered, then closes the engines. Remove it from the registry first."""
        await self.admission.emptied()
        await self.projections_in_flight.wait_none()
        await self.studies_in_flight.wait_none()
        await self.close_engines()

    async def close_engines(self) -> None:
        """Refuses the images that wait, and closes the engines. No call may use the model any more."""
        await self.batcher.close()
        await self.readings.close()

    @cached_property
    def readings(self) -> ReadingEngines:
        """The engines that read what layers compute."""
        return ReadingEngines(self.choice.open_reading)

    @cached_property
    def identity(self) -> pb.ModelIdentity:
        manifest = self.manifest
        return pb.ModelIdentity(name=manifest.name, version=manifest.version, fingerprint=manifest.fingerprint)

    def add_best_classes(
        self, response: pb.ClassifyResponse, probabilities: npt.NDArray[np.float32], count: int
    ) -> None:
        """Adds the `count` most probable classes, the most probable first. Equal ones keep the model's order.

        Args:
            probabilities: float32 (K,).
        """
        order = np.argsort(-probabilities, kind="stable")[:count]
        response.classes.extend(self.class_score(probabilities, index) for index in order.tolist())

    def class_score(self, probabilities: npt.NDArray[np.float32], index: int | None = None) -> pb.ClassScore:
        """Returns a class with its probability. Without `index` it is the most probable class, of equal ones the first.

        Args:
            probabilities: float32 (K,).
        """
        chosen = int(probabilities.argmax()) if index is None else index
        entry = self.manifest.classes[chosen]
        return pb.ClassScore(
            label=entry.label, class_id=entry.class_id, index=chosen, probability=float(probabilities[chosen])
        )

    def describe(self, projection_available: bool) -> pb.DescribeModelResponse:
        """Describes the model. Parity and accuracy cover all artefacts; `engine.precision` says which one serves."""
        manifest = self.manifest
        return pb.DescribeModelResponse(
            model=self.identity,
            architecture=manifest.architecture,
            classes=[
                pb.ClassScore(label=entry.label, class_id=entry.class_id, index=index)
                for index, entry in enumerate(manifest.classes)
            ],
            input=pb.InputSpec(**manifest.input.model_dump()),
            layers=[_layer_message(layer) for layer in manifest.layers],
            parity=[pb.ParityFigure(**figure.model_dump()) for figure in manifest.parity],
            accuracy=[pb.AccuracyFigure(**figure.model_dump()) for figure in manifest.accuracy],
            engine=self._engine(),
            feature_width=manifest.feature_width,
            projection_available=projection_available,
            source=manifest.source,
            projection_obstacle=manifest.projection_obstacle,
            fixed_batch_size=manifest.fixed_batch_size,
        )

    def _engine(self) -> pb.Engine:
        choice = self.choice
        info = choice.instances[0].info
        return pb.Engine(
            runtime=info.runtime,
            provider=info.provider,
            precision=info.precision,
            max_batch_size=info.max_batch_size,
            threads=info.threads,
            name=choice.name,
            device=info.device,
            instances=len(choice.instances),
            not_taken=[pb.EngineNotTaken(name=entry.engine, reason=entry.reason) for entry in choice.not_taken],
            startup_seconds=self.startup_s,
        )


def _layer_message(layer: LayerEntry) -> pb.Layer:
    """Returns a layer as the interface describes it. The fields for columns stay unset where columns are like rows."""
    unset = {"tensor", "rule"}
    for name in ("receptive_field", "stride", "offset"):
        if getattr(layer, name) == getattr(layer, f"{name}_width"):
            unset.add(f"{name}_width")
    return pb.Layer(**layer.model_dump(exclude=unset), rule=PROJECTION_RULES[layer.rule])
