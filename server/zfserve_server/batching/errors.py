"""Makes the errors that an image can meet in the batcher. Each call returns a new exception.

Several tasks must not raise the same exception object, because it would collect the tracebacks of all of them.
"""

from zfserve_runtime.errors import DeadlineExceeded, EngineFailed, EngineHung, EngineLost, ServiceError, ShuttingDown


def not_running() -> ServiceError:
    return ShuttingDown("the service is starting or shutting down; try another instance, or try again shortly")


def engine_failed() -> ServiceError:
    return EngineFailed("the engine failed on this image; try again, or send another image")


def not_finite() -> ServiceError:
    return EngineFailed("the network's output for this image is not finite; try again, or send another image")


def engine_hung() -> ServiceError:
    return EngineHung("the engine did not answer in time and is being replaced; try again, or send another image")


def engine_lost() -> ServiceError:
    return EngineLost("this server lost its engine and shuts down; try another instance, or try again shortly")


def deadline_expired() -> ServiceError:
    return DeadlineExceeded("the deadline passed while the image waited for the engine; allow more time")
