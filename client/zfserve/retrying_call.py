"""Sends one `Classify` call again while the server is busy. `Client.classify_many` uses it."""

import time
from collections.abc import Callable
from typing import TypeAlias

import grpc
from zfserve_protos.v1 import zfserve_pb2

from zfserve import replies
from zfserve.base_client import pause_before_retry
from zfserve.errors import Overloaded, ZfserveError, translated
from zfserve.results import Classification
from zfserve.throttle import Throttle

Call: TypeAlias = "grpc.Future[zfserve_pb2.ClassifyResponse]"


class RetryingCall:
    """Sends a call at once. `outcome` sends it again if the server is busy, says when to retry, and there is time left.

    Args:
        send: takes a timeout in seconds, and starts a call with it.
        throttle: decides whether a call may be sent.
        timeout_s: the time for all attempts together, in seconds.
    """

    def __init__(self, send: Callable[[float], Call], throttle: Throttle, timeout_s: float) -> None:
        self._send = send
        self._throttle = throttle
        self._deadline_s = time.monotonic() + timeout_s
        self._attempt = self._begin()

    def outcome(self) -> Classification | ZfserveError:
        """Waits for the result, and returns it or the error of the last attempt."""
        try:
            while True:
                try:
                    return self._answer()
                except Overloaded as error:
                    pause_s = pause_before_retry(error, self._deadline_s)
                time.sleep(pause_s)
                self._attempt = self._begin()
        except ZfserveError as error:
            return error

    def cancel(self) -> None:
        """Cancels the attempt in flight, if there is one."""
        if not isinstance(self._attempt, Overloaded):
            self._attempt.cancel()

    def _begin(self) -> "Call | Overloaded":
        """Returns a call in flight, or the error that kept it from being sent."""
        try:
            self._throttle.check()
        except Overloaded as error:
            return error
        return self._send(max(0.0, self._deadline_s - time.monotonic()))

    def _answer(self) -> Classification:
        if isinstance(self._attempt, Overloaded):
            raise self._attempt
        with self._throttle.record(), translated():
            return replies.classification(self._attempt.result())
