"""Defines the errors that callers see, each with its gRPC status. Only the interceptor turns errors into statuses.

    ServiceError
    ├── InvalidInput            INVALID_ARGUMENT      names the field
    │   ├── ImageUndecodable
    │   └── ImageTooLarge
    ├── Unauthenticated         UNAUTHENTICATED       no token, or an unknown one
    ├── PermissionDenied        PERMISSION_DENIED     the caller is known and may not call this method
    ├── NotFound                NOT_FOUND             an unknown or expired image reference, an unknown layer
    ├── OutOfRange              OUT_OF_RANGE          a map or a unit that the layer does not have
    ├── Unimplemented           UNIMPLEMENTED         a part of a standard protocol that this service lacks
    ├── Overloaded              RESOURCE_EXHAUSTED    says when to try again
    │   └── RateExceeded                              one client exceeds its rate limit
    ├── DeadlineExceeded        DEADLINE_EXCEEDED
    ├── Cancelled               CANCELLED
    ├── WorkerUnavailable       UNAVAILABLE           projections only; says when to try again
    ├── WorkerMismatch          FAILED_PRECONDITION   the worker holds other weights
    ├── BundleOutdated          FAILED_PRECONDITION   a bundle of schema 1 lacks what the call needs
    ├── Starting                UNAVAILABLE           says what is starting, and when to try again
    ├── ShuttingDown            UNAVAILABLE
    └── EngineFailed            INTERNAL
        ├── EngineHung                                the engine did not answer and is being replaced
        └── EngineLost          UNAVAILABLE           permanent: the process ends and is restarted

The message is for the caller. It is a sentence that says what to do, without a path, a traceback or the text of another
library.
"""

from typing import ClassVar

import grpc


class ServiceError(Exception):
    """The base of all errors. Each subclass has a `status` and a `reason`; each instance has a sentence for the caller.

    Attributes:
        status: the gRPC status code.
        reason: the value of google.rpc.ErrorInfo.reason. It is in UPPER_SNAKE_CASE and stable across releases.
        field: the request field at fault, such as "image.encoded". It becomes a google.rpc.BadRequest.
        retry_after_s: the seconds after which a retry can succeed. They become a google.rpc.RetryInfo.
    """

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidInput(ServiceError):
    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_INPUT"


class ImageUndecodable(InvalidInput):
    reason = "IMAGE_UNDECODABLE"


class ImageTooLarge(InvalidInput):
    reason = "IMAGE_TOO_LARGE"


class Unauthenticated(ServiceError):
    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    status = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class NotFound(ServiceError):
    status = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class OutOfRange(ServiceError):
    status = grpc.StatusCode.OUT_OF_RANGE
    reason = "OUT_OF_RANGE"


class Unimplemented(ServiceError):
    status = grpc.StatusCode.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class Overloaded(ServiceError):
    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class RateExceeded(Overloaded):
    reason = "RATE_EXCEEDED"


class DeadlineExceeded(ServiceError):
    status = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(ServiceError):
    status = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class WorkerUnavailable(ServiceError):
    status = grpc.StatusCode.UNAVAILABLE
    reason = "WORKER_UNAVAILABLE"


class WorkerMismatch(ServiceError):
    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "WORKER_MISMATCH"


class BundleOutdated(ServiceError):
    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "BUNDLE_OUTDATED"


class Starting(ServiceError):
    status = grpc.StatusCode.UNAVAILABLE
    reason = "STARTING"


class ShuttingDown(ServiceError):
    status = grpc.StatusCode.UNAVAILABLE
    reason = "SHUTTING_DOWN"


class EngineFailed(ServiceError):
    reason = "ENGINE_FAILED"


class EngineHung(EngineFailed):
    reason = "ENGINE_HUNG"


class EngineLost(EngineFailed):
    status = grpc.StatusCode.UNAVAILABLE
    reason = "ENGINE_LOST"
