"""Translates failed calls to the worker into errors for our own callers.

This is the only module that knows how a call to the worker can fail. Used by `client`.
"""

import logging
from typing import TypeVar

import grpc
from zfserve_runtime.errors import (
    DeadlineExceeded,
    EngineFailed,
    ServiceError,
    ShuttingDown,
    Unimplemented,
    WorkerMismatch,
    WorkerUnavailable,
)
from zfserve_runtime.grpc.status import from_call_error
from zfserve_runtime.release import RELEASE

logger = logging.getLogger(__name__)

M = TypeVar("M")

_RETRY_AFTER_S = 2.0
"""A worker that restarts needs about this time to import torch and to load the weights."""


def worker_unavailable() -> ServiceError:
    return WorkerUnavailable(
        f"the projection worker is not available now; try again in {_RETRY_AFTER_S:.0f} s",
        retry_after_s=_RETRY_AFTER_S,
    )


def worker_mismatch(worker_release: str = RELEASE) -> ServiceError:
    """Returns the error for a network that the worker does not hold.

    Args:
        worker_release: the release of the worker; "" for a release before 0.2.0, which did not tell it.
    """
    if worker_release == RELEASE:
        sentence = "the projection worker holds other weights than this server; start both on the same bundle"
    elif worker_release:
        sentence = (
            f"the projection worker is of release {worker_release}, this server of release {RELEASE}, and the worker "
            "does not hold this network; upgrade the workers first, and give both the same model folders"
        )
    else:
        sentence = (
            "the projection worker is of a release before 0.2.0, which reads bundles of schema 1 only, and does not "
            "hold this network; upgrade the workers first"
        )
    return WorkerMismatch(sentence)


def parsed(message: M | None) -> M:
    """Returns `message`. Raises EngineFailed for None, which gRPC gives if it cannot parse the bytes."""
    if message is None:
        raise EngineFailed("the worker's answer cannot be read; try again")
    return message


def translate(error: grpc.aio.AioRpcError) -> ServiceError:
    """Returns the error that our caller gets for a failed call to the worker."""
    own = from_call_error(error)
    if isinstance(own, ShuttingDown):  # the worker shuts down, not this service
        return worker_unavailable()
    if own is not None:
        return own
    code = error.code()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return worker_unavailable()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Unimplemented(
            f"the projection worker is of an earlier release than this server ({RELEASE}) and does not know this call; "
            "upgrade the workers first"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the worker needs longer than this call allows; ask for fewer maps or allow more time")
    logger.error("the worker failed", extra={"status": code.name, "details": error.details()})
    return EngineFailed("the worker failed on this projection; try again")


def short_text(error: grpc.aio.AioRpcError | EngineFailed) -> str:
    """Returns a few words about `error` for the log."""
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else error.message
