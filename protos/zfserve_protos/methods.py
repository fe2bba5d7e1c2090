"""Defines the full names of services and methods. Clients, servers, benchmarks and the command line use them.

Methods are written as gRPC writes them, "/package.Service/Method". This module imports nothing, so that the command
line starts fast.
"""

VISION_SERVICE = "zfserve.v1.VisionService"
CLASSIFY = f"/{VISION_SERVICE}/Classify"
PROJECT = f"/{VISION_SERVICE}/Project"
EXPLAIN = f"/{VISION_SERVICE}/Explain"
ACTIVATIONS = f"/{VISION_SERVICE}/Activations"
OCCLUDE = f"/{VISION_SERVICE}/Occlude"
ABLATE = f"/{VISION_SERVICE}/Ablate"
TRANSFORM = f"/{VISION_SERVICE}/Transform"
DESCRIBE_MODEL = f"/{VISION_SERVICE}/DescribeModel"
LIST_MODELS = f"/{VISION_SERVICE}/ListModels"

PROJECTION = PROJECT.removeprefix("/")
"""The name under which the health service reports whether the server can project. If the worker is dead, this name
alone is NOT_SERVING."""

WORKER_SERVICE = "zfserve.worker.v1.WorkerService"
WORKER_DESCRIBE = f"/{WORKER_SERVICE}/Describe"
WORKER_PROJECT = f"/{WORKER_SERVICE}/Project"
WORKER_EXPLAIN = f"/{WORKER_SERVICE}/Explain"

INFERENCE_SERVICE = "inference.GRPCInferenceService"
"""The Open Inference Protocol."""
MODEL_INFER = f"/{INFERENCE_SERVICE}/ModelInfer"
MODEL_STREAM_INFER = f"/{INFERENCE_SERVICE}/ModelStreamInfer"


def is_probe(method: str) -> bool:
    """Returns True if `method` belongs to health or reflection. They carry no image and are not traffic."""
    return method.startswith(("/grpc.health.", "/grpc.reflection."))
