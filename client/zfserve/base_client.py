"""Holds the code that `Client` and `AsyncClient` share: their settings, and the steps before and after each call."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING

import grpc
from zfserve_protos.channel_options import Options
from zfserve_protos.limits import MAX_MESSAGE_BYTES
from zfserve_protos.metadata import Priority
from zfserve_protos.v1 import zfserve_pb2

from zfserve.channel import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    TlsOptions,
    caller_metadata,
    channel_options,
    channel_target,
    token_metadata,
)
from zfserve.errors import Cancelled, Overloaded, translated
from zfserve.throttle import ALLOWANCE, Throttle
from zfserve.tracing import Metadata, traced

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


THROTTLES = 64
"""A client keeps this many throttles, one for each method of each model, and drops the least recently used one."""


class BaseClient(ABC):
    """Holds the settings of a client. `Client` explains the arguments."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tls: TlsOptions | None = None,
        token: str | None = None,
        priority: Priority = "interactive",
        client_id: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        adaptive_throttling: bool = True,
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._tracer_provider = tracer_provider
        self._max_message_bytes = max_message_bytes
        self._closed = False
        allowance = ALLOWANCE if adaptive_throttling else math.inf
        self._throttles = lru_cache(THROTTLES)(lambda *_method_and_model: Throttle(allowance))
        target = channel_target(address)
        self._metadata = (*token_metadata(token, target, tls), *caller_metadata(priority, client_id))
        self._open(target, channel_options(target, max_message_bytes, tls), tls)

    @abstractmethod
    def _open(self, target: str, options: Options, tls: TlsOptions | None) -> None:
        """Opens the channels."""

    def _timeout(self, timeout_s: float | None) -> float:
        """Returns the timeout of a call, in seconds. None means the client's timeout."""
        return self._timeout_s if timeout_s is None else timeout_s

    def _throttle(self, method: str, model: zfserve_pb2.ModelSelector) -> Throttle:
        return self._throttles(method, model.name, model.version)

    @contextmanager
    def _call(self, method: str, throttle: Throttle | None = None) -> Iterator[Metadata]:
        """Surrounds one call with its span, its throttle and the translation of errors. Yields the metadata to send.

        Args:
            method: the method's full name, such as "/zfserve.v1.VisionService/Classify".
            throttle: limits the call. None means that the call is always sent.

        Raises:
            ZfserveError: the call failed or was not sent.
        """
        limited = nullcontext() if throttle is None else throttle.limit()
        with traced(method, self._tracer_provider) as trace, limited, self._translated():
            yield (*self._metadata, *trace)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raises a ZfserveError for each gRPC error of the body, and if the client is closed."""
        self._check_open()
        with translated():
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("the client is closed; make another", grpc.StatusCode.CANCELLED)


def pause_before_retry(error: Overloaded, deadline_s: float) -> float:
    """Returns the number of seconds to wait before the call is sent again.

    Args:
        error: the refusal of the busy server.
        deadline_s: the deadline of the call, in seconds of `time.monotonic()`.

    Raises:
        Overloaded: `error` itself, if the server does not say when to retry, or if that is after the deadline.
    """
    if error.retry_after_s is None or time.monotonic() + error.retry_after_s >= deadline_s:
        raise error
    return error.retry_after_s
