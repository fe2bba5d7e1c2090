"""Describes the companion models of the Open Inference Protocol, `NAME.project` and `NAME.explain`.

They answer `Project` and `Explain` of the model NAME. Used by `inference_companions` and `inference_service`.
"""

from dataclasses import dataclass

from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_protos.inference import model_config_pb2
from zfserve_protos.methods import EXPLAIN, PROJECT
from zfserve_runtime.bundle import GRAPH_INPUT, Manifest

from zfserve_server.models.registry import ModelRegistry
from zfserve_server.requests.inference_tensors import FILE_INPUT

PLATFORM = "zfserve_worker"
"""The worker runs the companions, not the engine. Triton has no name for it."""

_ANY = -1
"""This size in a shape depends on the request."""

_TYPES = {
    "INT64": model_config_pb2.TYPE_INT64,
    "FP32": model_config_pb2.TYPE_FP32,
    "BYTES": model_config_pb2.TYPE_STRING,
}


@dataclass(frozen=True)
class Output:
    """Describes one output tensor. Its shape has -1 where the size depends on the request."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Companion:
    """Describes one kind of companion.

    Attributes:
        suffix: the end of its name, behind the name of the model.
        method: the full name of the method that it stands for. A caller needs the permission for it.
        options: the parameters of a request that are options of that method.
        outputs: the output tensors.
    """

    suffix: str
    method: str
    options: tuple[str, ...]
    outputs: tuple[Output, ...]

    def name_for(self, manifest: Manifest) -> str:
        """Returns the name of the companion of a model."""
        return manifest.name + self.suffix

    def exists_for(self, manifest: Manifest) -> bool:
        """Returns True if the network has a layer for which the method can answer."""
        return bool(manifest.layers) and not (self is EXPLAIN_COMPANION and manifest.attribution_obstacle)


_CLASS = (Output("class_index", "INT64", (1,)), Output("label", "BYTES", (1,)), Output("probability", "FP32", (1,)))

PROJECT_COMPANION = Companion(
    ".project",
    PROJECT,
    ("layer", "strongest", "maps", "for_class", "unit"),
    (
        Output("maps", "INT64", (_ANY,)),
        Output("activations", "FP32", (_ANY,)),
        Output("attributions", "FP32", (_ANY,)),
        Output("units", "INT64", (_ANY, 2)),
        Output("boxes", "INT64", (_ANY, 4)),
        Output("input_boxes", "INT64", (_ANY, 4)),
        Output("pictures", "BYTES", (_ANY,)),
        Output("patches", "BYTES", (_ANY,)),
        Output("layer", "BYTES", (1,)),
        Output("rule", "BYTES", (1,)),
        *_CLASS,
    ),
)
EXPLAIN_COMPANION = Companion(
    ".explain",
    EXPLAIN,
    ("layer", "class_name", "method"),
    (
        Output("heatmap", "FP32", (_ANY, _ANY)),
        Output("overlay", "BYTES", (1,)),
        Output("scale", "FP32", (1,)),
        *_CLASS,
        Output("served_probability", "FP32", (1,)),
        Output("served_precision", "BYTES", (1,)),
        Output("score", "FP32", (1,)),
        Output("baseline_score", "FP32", (1,)),
        Output("completeness_gap", "FP32", (1,)),
        Output("box", "INT64", (4,)),
        Output("layer", "BYTES", (1,)),
    ),
)
COMPANIONS = (PROJECT_COMPANION, EXPLAIN_COMPANION)


def split_name(name: str, models: ModelRegistry) -> tuple[str, Companion | None]:
    """Returns the name of the model, and the companion that a request names, or None if it names the model itself.

    A model whose own name ends like a companion's has precedence.
    """
    if not models.knows(name):
        for companion in COMPANIONS:
            if name.endswith(companion.suffix):
                return name.removesuffix(companion.suffix), companion
    return name, None


def describe_companion(companion: Companion, manifest: Manifest, versions: list[str]) -> pb.ModelMetadataResponse:
    """Describes a companion.

    Args:
        versions: the versions of the model that are ready.
    """
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=companion.name_for(manifest),
        versions=versions,
        platform=PLATFORM,
        inputs=[
            tensor(name=GRAPH_INPUT, datatype="UINT8", shape=_pixel_shape(manifest)),
            tensor(name=FILE_INPUT, datatype="BYTES", shape=[1, 1]),
        ],
        outputs=[
            tensor(name=output.name, datatype=output.datatype, shape=output.shape) for output in companion.outputs
        ],
    )


def configure_companion(companion: Companion, manifest: Manifest) -> model_config_pb2.ModelConfig:
    """Returns the configuration of a companion as Triton writes it. It takes no batches, so `max_batch_size` is 0."""
    parameters = {"fingerprint": manifest.fingerprint, "precision": "fp32", "options": ", ".join(companion.options)}
    return model_config_pb2.ModelConfig(
        name=companion.name_for(manifest),
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=0,
        # Both inputs are optional, because a request holds one of them.
        input=[
            model_config_pb2.ModelInput(
                name=GRAPH_INPUT, data_type=model_config_pb2.TYPE_UINT8, dims=_pixel_shape(manifest), optional=True
            ),
            model_config_pb2.ModelInput(
                name=FILE_INPUT, data_type=model_config_pb2.TYPE_STRING, dims=[1, 1], optional=True
            ),
        ],
        output=[
            model_config_pb2.ModelOutput(name=output.name, data_type=_TYPES[output.datatype], dims=output.shape)
            for output in companion.outputs
        ],
        parameters={key: model_config_pb2.ModelParameter(string_value=value) for key, value in parameters.items()},
        model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=False),
    )


def _pixel_shape(manifest: Manifest) -> tuple[int, int, int, int]:
    return 1, manifest.input.height, manifest.input.width, 3
