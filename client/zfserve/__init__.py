"""Calls a zfserve service from Python. `Client` is for ordinary code, and `AsyncClient` does the same for asyncio.

    from pathlib import Path

    from zfserve import Client

    with Client("localhost:8500") as client:
        answer = client.classify("photo.jpg")
        print(answer.classes[0].label, answer.classes[0].probability)
        for projection in client.project(answer.image_reference, strongest=9):
            print(projection.map, projection.activation)
        Path("why.png").write_bytes(client.explain(answer.image_reference).overlay_png)

The same with asyncio:

    from zfserve import AsyncClient

    async with AsyncClient("localhost:8500") as client:
        answer = await client.classify("photo.jpg")

Each name is imported at its first use, so that `import zfserve` and the command line do not load gRPC.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zfserve.async_client import AsyncClient
    from zfserve.channel import TlsOptions
    from zfserve.client import Client
    from zfserve.errors import (
        Cancelled,
        DeadlineExceeded,
        InvalidInput,
        NotFound,
        OutOfRange,
        Overloaded,
        PermissionDenied,
        PreconditionFailed,
        ServerFailed,
        Unauthenticated,
        Unavailable,
        Unimplemented,
        ZfserveError,
    )
    from zfserve.explanation import Explanation, HeatMap
    from zfserve.model_description import (
        AccuracyFigure,
        Engine,
        EngineNotTaken,
        InputSpec,
        Layer,
        ModelDescription,
        ModelStatus,
        ParityFigure,
    )
    from zfserve.occlusion import Blur, Occlusion, OcclusionPlan, OcclusionSummary, OcclusionUpdate
    from zfserve.results import (
        Box,
        Classification,
        ClassScore,
        Float32Picture,
        ImageReference,
        ModelIdentity,
        Position,
        Projection,
        Timings,
    )
    from zfserve.studies import (
        AblationStep,
        Computation,
        FeatureDistance,
        LayerActivations,
        PhotoActivations,
        TransformStep,
    )

__all__ = [
    "AblationStep",
    "AccuracyFigure",
    "AsyncClient",
    "Blur",
    "Box",
    "Cancelled",
    "ClassScore",
    "Classification",
    "Client",
    "Computation",
    "DeadlineExceeded",
    "Engine",
    "EngineNotTaken",
    "Explanation",
    "FeatureDistance",
    "Float32Picture",
    "HeatMap",
    "ImageReference",
    "InputSpec",
    "InvalidInput",
    "Layer",
    "LayerActivations",
    "ModelDescription",
    "ModelIdentity",
    "ModelStatus",
    "NotFound",
    "Occlusion",
    "OcclusionPlan",
    "OcclusionSummary",
    "OcclusionUpdate",
    "OutOfRange",
    "Overloaded",
    "ParityFigure",
    "PermissionDenied",
    "PhotoActivations",
    "Position",
    "PreconditionFailed",
    "Projection",
    "ServerFailed",
    "Timings",
    "TlsOptions",
    "TransformStep",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "ZfserveError",
]

_MODULES = (
    "client",
    "async_client",
    "channel",
    "errors",
    "results",
    "model_description",
    "explanation",
    "occlusion",
    "studies",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for part in _MODULES:
            module = importlib.import_module(f"{__name__}.{part}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
