"""Who calls, and whether they may: bearer tokens and TLS certificates, against the file of callers.

`InterceptingServer` guards its methods with an `Access`; where there is none, nobody is asked and nothing is spent.
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

LOOK_EVERY_S = 1.0
"""How old the answer may be to whether the file of callers has changed: a revoked token is refused after this time."""

_NOBODY = Caller()
_caller: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)


def current_caller() -> Caller:
    """Who sent the call being served in this task; without a name where nobody is asked for one."""
    return _caller.get()


class Access:
    """Lets in whom the file of callers names, to what it permits them.

    Args:
        file: see `callers_file`; looked at again while calls come. None: whoever has a certificate that TLS trusts may
            call everything.
        clock: monotonic seconds.

    Raises:
        CallersFileError: the file cannot be used.
    """

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._callers = None
        if file is not None:
            self._callers = FileReloader("file of callers", [file], lambda: Callers(read_callers_file(file)))
        self._clock = clock
        self._looked_s = clock()

    def entrance(self, method: str) -> CallCheck:
        """Returns the check of the caller of `method` (its full name). It must run before any other check."""

        def enter(context: Context, metadata: Metadata) -> None:
            _caller.set(self.admit(method, context, metadata))  # each call is a task of its own

        return enter

    def guard(self, serve: Callable[[Any, Context], Any], method: str) -> Callable[[Any, Context], Any]:
        """`serve`, which takes a stream of requests, and takes each only of whom may still call `method`."""

        def serve_permitted(requests: Any, context: Context) -> Any:
            return serve(self._permitted(requests, method, context), context)

        return serve_permitted

    async def _permitted(self, requests: Any, method: str, context: Context) -> AsyncIterator[Any]:
        """Each request as it comes: who may no longer call hears of it at the next."""
        metadata = metadata_of(context)
        async for request in requests:
            self.admit(method, context, metadata)
            yield request

    def admit(self, method: str, context: Context, metadata: Metadata) -> Caller:
        """The caller of `method`.

        Raises:
            Unauthenticated: it is not known.
            PermissionDenied: it may not.
        """
        caller = self._recognise(context, metadata)
        if not caller.may_call(method):
            raise PermissionDenied(f"{caller.name} may not call {method}; ask the service's operator to permit it")
        return caller

    def _recognise(self, context: Context, metadata: Metadata) -> Caller:
        if self._callers is None:
            return Caller(next(_certificate_names(context), ""))
        if (now_s := self._clock()) - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            self._callers.reload_if_changed()
        callers, token = self._callers.value, _bearer_token(metadata)
        if token is not None:
            if (caller := callers.with_token(token)) is None:
                raise Unauthenticated("this service does not know the token; ask its operator for another")
            return caller
        names = list(_certificate_names(context))
        if (caller := callers.with_certificate(names)) is None:
            raise Unauthenticated(
                f"this service does not know the certificate of {names[0]}; ask its operator to permit it"
                if names
                else "this service must know who calls; send the metadata `authorization: Bearer TOKEN`"
            )
        return caller


def _bearer_token(metadata: Metadata) -> str | None:
    """The token in `authorization: Bearer TOKEN` (RFC 6750); "", which nobody has, where something else is there."""
    for key, value in metadata:
        if key == AUTHORIZATION_KEY and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return None


def _certificate_names(context: Context) -> Iterator[str]:
    """The subject alternative names of the client's certificate, then its common name; TLS has verified it."""
    properties = context.auth_context()
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        for name in properties.get(key, ()):
            yield name.decode(errors="replace")
