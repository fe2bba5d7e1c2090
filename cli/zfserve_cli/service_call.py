"""Runs the calls of a command, and turns their errors into one line and an exit status."""

import argparse
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from zfserve.client import Client
from zfserve.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    OutOfRange,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    ZfserveError,
)

from zfserve_cli.connection_arguments import open_client, tls_options
from zfserve_cli.exit_statuses import FAILED, UNREACHABLE, UNUSABLE

_CALLER_FAULTS = (InvalidInput, NotFound, OutOfRange, PermissionDenied, Unauthenticated, Unimplemented)
"""A retry with the same arguments fails in the same way."""

_BACKEND_UNHEALTHY = "backend unhealthy"
"""gRPC's message says this if the health of every server is NOT_SERVING."""

_TLS_FAULTS = {
    "CERTIFICATE_VERIFY_FAILED": "no authority that is trusted here has signed its certificate; name that authority's "
    "file with --tls-ca",
    "Hostname Verification Check failed": "its certificate has another name; give that name with --tls-server-name",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; leave the --tls options out",
}
"""Maps gRPC's words for a failed TLS handshake to the sentence that the user gets."""


def call_service(arguments: argparse.Namespace, call: Callable[[Client], int]) -> int:
    """Opens a client, returns the exit status of `call`, and closes the client.

    If the client cannot be opened or a call fails, it prints one line to standard error and returns the exit status of
    that error.
    """
    try:
        client = open_client(arguments)
    except (OSError, ValueError) as error:
        print_error(str(error))
        return UNUSABLE
    try:
        with client:
            return call(client)
    except ZfserveError as error:
        print_error(error_sentence(error, arguments))
        return exit_status(error)


def print_error(text: str) -> None:
    """Prints one line to standard error."""
    Console(stderr=True).print(f"[red]error:[/] {escape(text)}", soft_wrap=True)


def error_sentence(error: ZfserveError, arguments: argparse.Namespace) -> str:
    """Returns one line that says what is wrong and what to do."""
    if not error.reason and (sentence := _grpc_sentence(error, arguments)):
        return sentence
    parts = [error.message]
    if isinstance(error, Unauthenticated):
        parts.append("give a token with --token-file or ZFSERVE_TOKEN")
    if error.request_id and not isinstance(error, _CALLER_FAULTS):
        parts.append(f"request {error.request_id}")
    return "; ".join(parts)


def _grpc_sentence(error: ZfserveError, arguments: argparse.Namespace) -> str | None:
    """Returns a sentence for an error that gRPC made itself, or None if the error's own sentence is good enough."""
    address = arguments.address
    match error:
        case DeadlineExceeded():
            return f"no answer from {address} in time; allow more time with --timeout"
        case Unimplemented():
            return f"the server at {address} does not know this call; it is of an older release, or no zfserve"
        case Unavailable() if _BACKEND_UNHEALTHY in error.message:
            return f"no server at {address} is ready: each is starting or stopping; call one alone to learn more"
        case Unavailable() if tls_options(arguments):
            faults = [fault for words, fault in _TLS_FAULTS.items() if words in error.message]
            fault = faults[0] if faults else "compare the --tls options with the server's"
            return f"no zfserve answers at {address} over TLS: {fault}"
        case Unavailable():
            return (
                f"no zfserve answers at {address}; start one with `zfserve serve`, or name another with --address, "
                "and add --tls if the server needs TLS"
            )
    return None


def exit_status(error: ZfserveError) -> int:
    """Returns the exit status of a command that ends with `error`."""
    if isinstance(error, Unavailable | Overloaded):
        return UNREACHABLE
    return UNUSABLE if isinstance(error, _CALLER_FAULTS) else FAILED
