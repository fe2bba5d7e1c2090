"""Authenticates callers by bearer token or TLS certificate, and authorizes them by the file of callers.

`InterceptingServer` checks each call with an `Authorizer`. On a server without an authorizer, anyone may call
everything.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from zfserve_protos.metadata import AUTHORIZATION_KEY

from zfserve_runtime.access.callers_file import Caller, Callers, read_callers_file
from zfserve_runtime.access.file_reloader import FileReloader
from zfserve_runtime.errors import PermissionDenied, Unauthenticated
from zfserve_runtime.grpc.deferred_read import CallCheck
from zfserve_runtime.grpc.method_handlers import Context, Metadata, metadata_of

RECHECK_INTERVAL_S = 1.0
"""Seconds between checks whether the file of callers has changed. A revoked token is refused after this time at the
latest."""

_ANONYMOUS = Caller()
_caller: ContextVar[Caller] = ContextVar("caller", default=_ANONYMOUS)


def current_caller() -> Caller:
    """Returns the caller of the call that this task serves. Its name is "" if the server has no authorizer."""
    return _caller.get()


def require_permission(method: str) -> None:
    """Checks that the current caller may also call `method`, its full name.

    A handler uses it where the request says what is asked for, so that the check before the request is too early.

    Raises:
        PermissionDenied: the caller may not call `method`.
    """
    _check_permission(current_caller(), method)


class Authorizer:
    """Authorizes each call by the file of callers.

    Args:
        file: the file of callers, see `callers_file`. It is read again when it changes. None: everyone with a
            certificate that TLS trusts may call everything.
        clock: returns monotonic seconds.

    Raises:
        CallersFileError: the file cannot be used.
    """

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._callers = None
        if file is not None:
            self._callers = FileReloader("file of callers", [file], lambda: Callers(read_callers_file(file)))
        self._clock = clock
        self._checked_s = clock()

    def call_check(self, method: str) -> CallCheck:
        """Returns the check that authorizes a call of `method` (its full name). It must run before any other check."""

        def check(context: Context, metadata: Metadata) -> None:
            _caller.set(self.authorize(method, context, metadata))  # each call has its own task: nothing to reset

        return check

    def check_each_request(self, serve: Callable[[Any, Context], Any], method: str) -> Callable[[Any, Context], Any]:
        """Wraps `serve`, which takes a stream of requests. The result also authorizes each request.

        So a caller that loses its permission is refused at its next request, even on an open stream.
        """

        def serve_authorized(requests: Any, context: Context) -> Any:
            return serve(self._authorized(requests, method, context), context)

        return serve_authorized

    async def _authorized(self, requests: Any, method: str, context: Context) -> AsyncIterator[Any]:
        metadata = metadata_of(context)
        async for request in requests:
            _caller.set(self.authorize(method, context, metadata))  # its permissions may have changed
            yield request

    def authorize(self, method: str, context: Context, metadata: Metadata) -> Caller:
        """Returns the caller of `method`.

        Raises:
            Unauthenticated: the caller is not known.
            PermissionDenied: the caller may not call `method`.
        """
        caller = self._authenticate(context, metadata)
        _check_permission(caller, method)
        return caller

    def _authenticate(self, context: Context, metadata: Metadata) -> Caller:
        if self._callers is None:
            return Caller(next(_certificate_names(context), ""))
        if (now_s := self._clock()) - self._checked_s >= RECHECK_INTERVAL_S:
            self._checked_s = now_s
            self._callers.reload_if_changed()
        callers, token = self._callers.value, _bearer_token(metadata)
        if token is not None:
            if (caller := callers.find_by_token(token)) is None:
                raise Unauthenticated("this service does not know the token; ask its operator for another")
            return caller
        names = list(_certificate_names(context))
        if (caller := callers.find_by_certificate(names)) is None:
            raise Unauthenticated(
                f"this service does not know the certificate of {names[0]}; ask its operator to permit it"
                if names
                else "this service must know who calls; send the metadata `authorization: Bearer TOKEN`"
            )
        return caller


def _check_permission(caller: Caller, method: str) -> None:
    if not caller.may_call(method):
        raise PermissionDenied(f"{caller.name} may not call {method}; ask the service's operator to permit it")


def _bearer_token(metadata: Metadata) -> str | None:
    """Returns the token in `authorization: Bearer TOKEN` (RFC 6750), or None without that key.

    Returns "", which matches no token, if the value has another form.
    """
    for key, value in metadata:
        if key == AUTHORIZATION_KEY and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return None


def _certificate_names(context: Context) -> Iterator[str]:
    """Yields the subject alternative names of the client's certificate, then its common name. TLS has verified it."""
    properties = context.auth_context()
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        for name in properties.get(key, ()):
            yield name.decode(errors="replace")
