"""Lists the groups of methods that an operator can permit. `callers_file` and `server` use it.

Add a new RPC to one of the `GROUPS`. A test fails for an RPC that is in no group. The groups are in one table, and not
beside the handlers, so that `zfserve token` can list them without importing a service.
"""

import re

from zfserve_protos.methods import (
    ABLATE,
    ACTIVATIONS,
    CLASSIFY,
    DESCRIBE_MODEL,
    EXPLAIN,
    INFERENCE_SERVICE,
    LIST_MODELS,
    MODEL_INFER,
    MODEL_STREAM_INFER,
    OCCLUDE,
    PROJECT,
    TRANSFORM,
    WORKER_DESCRIBE,
    WORKER_EXPLAIN,
    WORKER_PROJECT,
)

_INFERENCE = f"/{INFERENCE_SERVICE}"
_REFLECTION = ("/grpc.reflection.v1.ServerReflection", "/grpc.reflection.v1alpha.ServerReflection")

_SHARED_MEMORY = ("Status", "Register", "Unregister")

ALL = "all"

GROUPS: dict[str, frozenset[str]] = {
    "classify": frozenset({CLASSIFY}),
    "project": frozenset({PROJECT}),
    "explain": frozenset({EXPLAIN, ACTIVATIONS, OCCLUDE, ABLATE, TRANSFORM}),
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
    "worker": frozenset({WORKER_DESCRIBE, WORKER_EXPLAIN, WORKER_PROJECT}),
}
"""Maps each group to the full names of its methods. A method in no group is permitted by its own full name, or by
`all`."""

_PUBLIC = tuple(f"{_INFERENCE}/{name}" for name in ("ServerLive", "ServerReady", "ModelReady"))
_METHOD = re.compile(r"/[A-Za-z0-9_.]+/[A-Za-z0-9_]+")


def is_public(method: str) -> bool:
    """Returns True if anyone may call `method`. Health is no secret, and probes have no tokens."""
    return method.startswith("/grpc.health.v1.Health/") or method in _PUBLIC


def permitted_methods(words: tuple[str, ...]) -> frozenset[str] | None:
    """Returns the full names of the methods that `words` permit, or None if they permit everything.

    Args:
        words: names of groups and full names of methods.

    Raises:
        ValueError: a word is neither a group nor a full name.
    """
    unknown = [word for word in words if word not in GROUPS and word != ALL and not _METHOD.fullmatch(word)]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} permits nothing; choose from {', '.join(GROUPS)}, {ALL}, or a method's full "
            f"name such as {CLASSIFY}"
        )
    if ALL in words:
        return None
    return frozenset().union(*(GROUPS.get(word, {word}) for word in words))
