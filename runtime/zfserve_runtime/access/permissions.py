"""Which methods there are to permit, in groups that an operator can name. Used by `callers_file` and `access`."""

import re

from zfserve_protos.methods import (
    CLASSIFY,
    DESCRIBE_MODEL,
    INFERENCE_SERVICE,
    LIST_MODELS,
    MODEL_INFER,
    MODEL_STREAM_INFER,
    PROJECT,
    WORKER_DESCRIBE,
    WORKER_PROJECT,
)

_INFERENCE = f"/{INFERENCE_SERVICE}"
_REFLECTION = ("/grpc.reflection.v1.ServerReflection", "/grpc.reflection.v1alpha.ServerReflection")

_SHARED_MEMORY = ("Status", "Register", "Unregister")

EVERYTHING = "all"

GROUPS: dict[str, frozenset[str]] = {
    "classify": frozenset({CLASSIFY}),
    "project": frozenset({PROJECT}),
    "describe": frozenset(
        {
            DESCRIBE_MODEL,
            LIST_MODELS,
            *(f"{_INFERENCE}/{name}" for name in ("ServerMetadata", "ModelMetadata", "ModelConfig")),
            *(f"{_INFERENCE}/{name}" for name in ("ModelStatistics", "RepositoryIndex")),
            *(f"{service}/ServerReflectionInfo" for service in _REFLECTION),
        }
    ),
    "infer": frozenset({MODEL_INFER, MODEL_STREAM_INFER}),
    "manage": frozenset(
        f"{_INFERENCE}/{name}"
        for name in (
            *("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
            *(f"{kind}SharedMemory{action}" for kind in ("System", "Cuda") for action in _SHARED_MEMORY),
        )
    ),
    "worker": frozenset({WORKER_DESCRIBE, WORKER_PROJECT}),
}
"""Full method names by the word that permits them. A method in no group is permitted by its own name, or by `all`."""

_OPEN = tuple(f"{_INFERENCE}/{name}" for name in ("ServerLive", "ServerReady", "ModelReady"))
_METHOD = re.compile(r"/[A-Za-z0-9_.]+/[A-Za-z0-9_]+")


def is_open(method: str) -> bool:
    """Whether anyone may call it: whether a server lives is no secret, and probes have no tokens."""
    return method.startswith("/grpc.health.v1.Health/") or method in _OPEN


def permitted_methods(words: tuple[str, ...]) -> frozenset[str] | None:
    """Full names of what `words`, groups and full method names, permit; None for everything.

    Raises:
        ValueError: a word is neither.
    """
    unknown = [word for word in words if word not in GROUPS and word != EVERYTHING and not _METHOD.fullmatch(word)]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} permits nothing; choose from {', '.join(GROUPS)}, {EVERYTHING}, or a method's full "
            f"name such as {CLASSIFY}"
        )
    if EVERYTHING in words:
        return None
    return frozenset().union(*(GROUPS.get(word, {word}) for word in words))
