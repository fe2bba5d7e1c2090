"""One photo's calls, of which a busy server may refuse a few. Used by `Client.classify_many`."""

import time
from collections.abc import Callable
from typing import TypeAlias

import grpc
from zfserve_protos.v1 import zfserve_pb2

from zfserve import results
from zfserve.base_client import pause_before_retry
from zfserve.errors import Overloaded, ZfserveError, translated
from zfserve.results import Classification
from zfserve.throttle import Throttle

Call: TypeAlias = "grpc.Future[zfserve_pb2.ClassifyResponse]"


class Attempts:
    """The first is under way: another follows for as long as the server is busy, says when to try again, and there is
    time.

    Args:
        call: begins one that may take so many seconds.
        timeout_s: of all of them.
    """

    def __init__(self, call: Callable[[float], Call], throttle: Throttle, timeout_s: float) -> None:
        self._call = call
        self._throttle = throttle
        self._until_s = time.monotonic() + timeout_s
        self._current = self._begin()

    def outcome(self) -> Classification | ZfserveError:
        try:
            while True:
                try:
                    return self._answer()
                except Overloaded as error:
                    pause_s = pause_before_retry(error, self._until_s)
                time.sleep(pause_s)
                self._current = self._begin()
        except ZfserveError as error:
            return error

    def cancel(self) -> None:
        if not isinstance(self._current, Overloaded):
            self._current.cancel()

    def _begin(self) -> "Call | Overloaded":
        """A call under way, or why it was kept back."""
        try:
            self._throttle.check()
        except Overloaded as error:
            return error
        return self._call(max(0.0, self._until_s - time.monotonic()))

    def _answer(self) -> Classification:
        if isinstance(self._current, Overloaded):
            raise self._current
        with self._throttle.hearing(), translated():
            return results.classification(self._current.result())
