"""What both clients have in common: their settings, the times of their calls, and whether they are closed."""

import math
import time
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING

import grpc
from zfserve_protos.v1 import zfserve_pb2

from zfserve.channel import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    MAX_MESSAGE_BYTES,
    Options,
    Priority,
    TlsOptions,
    call_metadata,
    channel_options,
    channel_target,
    sender_metadata,
)
from zfserve.errors import Cancelled, Overloaded
from zfserve.throttle import FREE, Throttle

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


THROTTLES = 64
"""One for each method of each model, those of late."""


class BaseClient(ABC):
    """The arguments are those of `Client`."""

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
        free = FREE if adaptive_throttling else math.inf
        self._throttles = lru_cache(THROTTLES)(lambda *_method_and_model: Throttle(free))
        target = channel_target(address)
        self._metadata = (*call_metadata(token, target, tls), *sender_metadata(priority, client_id))
        self._open(target, channel_options(target, max_message_bytes, tls), tls)

    @abstractmethod
    def _open(self, target: str, options: Options, tls: TlsOptions | None) -> None:
        """Make the channels."""

    def _within(self, timeout_s: float | None) -> float:
        """The time of a call, in seconds."""
        return self._timeout_s if timeout_s is None else timeout_s

    def _throttle(self, method: str, model: zfserve_pb2.ModelSelector) -> Throttle:
        return self._throttles(method, model.name, model.version)

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("the client is closed; make another", grpc.StatusCode.CANCELLED)


def pause_before_retry(error: Overloaded, until_s: float) -> float:
    """Seconds until a busy server may be asked again.

    Args:
        until_s: by `time.monotonic`, when the call's time is over.

    Raises:
        Overloaded: that very error, where the server does not say when, or it is not within the call's time.
    """
    if error.retry_after_s is None or time.monotonic() + error.retry_after_s >= until_s:
        raise error
    return error.retry_after_s
