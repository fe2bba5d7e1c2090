"""Describes the server and its models in the messages of the Open Inference Protocol. Called by `inference_service`.

These are metadata, configuration, statistics and the index of the repository.
"""

from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_protos.inference import model_config_pb2
from zfserve_runtime.bundle import GRAPH_INPUT, Manifest
from zfserve_runtime.release import RELEASE
from zfserve_runtime.telemetry.model_statistics import Total

from zfserve_server.models.registry import ModelState, ModelStatus
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.inference_tensors import FILE_INPUT

EXTENSIONS = ("classification", "model_configuration", "parameters", "schedule_policy", "statistics")
"""Triton's names of the extensions that this server implements as Triton documents them."""

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan", "tensorrt-rtx": "tensorrt_plan"}
"""Triton's names of platforms, by the engine's runtime. Other runtimes keep their own name."""

_BACKENDS = {"tensorrt-rtx": "tensorrt"}

_STATES = {
    ModelState.LOADING: "LOADING",
    ModelState.READY: "READY",
    ModelState.FAILED: "UNAVAILABLE",
    ModelState.RETIRING: "UNLOADING",
}

_ANY_SIZE = -1
"""The size of the batch axis in a shape: any size."""


def describe_server() -> pb.ServerMetadataResponse:
    """Names the server, its version and its extensions."""
    return pb.ServerMetadataResponse(name="zfserve", version=RELEASE, extensions=EXTENSIONS)


def describe_model(model: ServedModel, versions: list[str]) -> pb.ModelMetadataResponse:
    """Describes a model.

    Args:
        versions: the versions of that name that are ready.
    """
    manifest = model.manifest
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=manifest.name,
        versions=versions,
        platform=_platform(model),
        inputs=[
            tensor(name=GRAPH_INPUT, datatype="UINT8", shape=[_ANY_SIZE, *_pixel_dims(manifest)]),
            tensor(name=FILE_INPUT, datatype="BYTES", shape=[_ANY_SIZE, 1]),
        ],
        outputs=[
            tensor(name=name, datatype="FP32", shape=[_ANY_SIZE, width])
            for name, width in manifest.output_widths.items()
        ],
    )


def configure_model(model: ServedModel) -> model_config_pb2.ModelConfig:
    """Returns the configuration with which a Triton server would serve as this server does."""
    manifest, info = model.manifest, model.choice.instances[0].info
    kinds = model_config_pb2.ModelInstanceGroup
    parameters = {"fingerprint": manifest.fingerprint, "precision": info.precision, "device": info.device}
    return model_config_pb2.ModelConfig(
        name=manifest.name,
        platform=_platform(model),
        backend=_BACKENDS.get(info.runtime, info.runtime),
        max_batch_size=info.max_batch_size,
        # Both inputs are optional, because a request holds one of them.
        input=[
            model_config_pb2.ModelInput(
                name=GRAPH_INPUT, data_type=model_config_pb2.TYPE_UINT8, dims=_pixel_dims(manifest), optional=True
            ),
            model_config_pb2.ModelInput(
                name=FILE_INPUT, data_type=model_config_pb2.TYPE_STRING, dims=[1], optional=True
            ),
        ],
        output=[
            model_config_pb2.ModelOutput(name=name, data_type=model_config_pb2.TYPE_FP32, dims=[width])
            for name, width in manifest.output_widths.items()
        ],
        instance_group=[
            kinds(
                name=f"{manifest.name}_0",
                kind=kinds.KIND_GPU if model.choice.on_gpu else kinds.KIND_CPU,
                count=len(model.choice.instances),
                gpus=(0,) if model.choice.on_gpu else (),  # every engine runs on the first card that the process sees
            )
        ],
        dynamic_batching=_dynamic_batching(model.admission.limit),
        parameters={key: model_config_pb2.ModelParameter(string_value=value) for key, value in parameters.items()},
        model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=False),
    )


def _dynamic_batching(max_queue_size: int) -> model_config_pb2.ModelDynamicBatching:
    policy = model_config_pb2.ModelQueuePolicy
    return model_config_pb2.ModelDynamicBatching(
        max_queue_delay_microseconds=0,  # an idle engine starts at once
        priority_levels=2,
        default_priority_level=1,
        default_queue_policy=policy(
            timeout_action=policy.REJECT, allow_timeout_override=True, max_queue_size=max_queue_size
        ),
    )


def describe_statistics(model: ServedModel) -> pb.ModelStatistics:
    """Returns what the model has done since it was loaded, for requests of both services.

    The time of an engine's run includes the time to fill its batch and to split its outputs.
    """
    counted = model.metrics.statistics
    return pb.ModelStatistics(
        name=model.manifest.name,
        version=model.manifest.version,
        last_inference=int(counted.last_answer_s * 1e3),
        inference_count=counted.image_count,
        execution_count=counted.run_count,
        inference_stats=pb.InferStatistics(
            success=_duration(counted.answered),
            fail=_duration(counted.failed),
            queue=_duration(counted.queueing),
            compute_input=_duration(counted.decoding),
            compute_infer=_duration(counted.inference),
            compute_output=_duration(counted.writing),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(total))
            for size, total in sorted(counted.runs.items())
        ],
    )


def index_entry(status: ModelStatus) -> pb.RepositoryIndexResponse.ModelIndex:
    """Describes one version, served or not, for the index of the repository."""
    return pb.RepositoryIndexResponse.ModelIndex(
        name=status.name, version=status.version, state=_STATES[status.state], reason=status.reason
    )


def _duration(total: Total) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=round(total.seconds * 1e9))


def _platform(model: ServedModel) -> str:
    runtime = model.choice.instances[0].info.runtime
    return _PLATFORMS.get(runtime, runtime)


def _pixel_dims(manifest: Manifest) -> tuple[int, int, int]:
    return manifest.input.height, manifest.input.width, 3
