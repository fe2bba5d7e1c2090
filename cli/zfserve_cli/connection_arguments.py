"""What the commands that call the service share: where it is, and what to say when a call fails."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape
from zfserve.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, TlsOptions
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
    ZfserveError,
)
from zfserve_protos.metadata import Priority

from zfserve_cli.exit_statuses import FAILED, UNREACHABLE, UNUSABLE

_CALLERS_FAULTS = (InvalidInput, NotFound, OutOfRange, PermissionDenied, Unauthenticated)
"""What another try with the same arguments would meet again."""

_BACKEND_UNHEALTHY = "backend unhealthy"
"""gRPC's words if no server serves by its own health."""

_TLS_FAULTS = {
    "CERTIFICATE_VERIFY_FAILED": "no authority that is trusted here has signed its certificate; name that authority's "
    "file with --tls-ca",
    "Hostname Verification Check failed": "its certificate has another name; give that with --tls-server-name",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; leave the --tls options out",
}
"""gRPC's words for a connection that fails in the TLS handshake, and the sentence to print for each."""


def seconds(text: str) -> float:
    """Of an argument: finite and above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        default=os.environ.get("ZFSERVE_ADDRESS", DEFAULT_ADDRESS),
        help=f"the service; several IP:PORT parted by commas, or unix:PATH (ZFSERVE_ADDRESS, else {DEFAULT_ADDRESS})",
    )
    group.add_argument(
        "--timeout", metavar="S", type=seconds, default=DEFAULT_TIMEOUT_S, help="seconds a call may take (%(default)g)"
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        default=os.environ.get("ZFSERVE_TOKEN_FILE"),
        help="holds the token to show, over TLS or to this machine (ZFSERVE_TOKEN_FILE, or the token in ZFSERVE_TOKEN)",
    )
    group.add_argument(
        "--priority",
        choices=get_args(Priority),
        default="interactive",
        help="bulk lets interactive calls go first where the service is busy (default: %(default)s)",
    )
    group.add_argument(
        "--client-id", metavar="NAME", help="whose share of a busy service to take (default: that of this address)"
    )
    group.add_argument("--tls", action="store_true", help="encrypt; the other --tls options imply it")
    group.add_argument("--tls-ca", metavar="PEM", type=Path, help="authorities to trust, not the system's")
    group.add_argument("--tls-cert", metavar="PEM", type=Path, help="the client's certificate, for mutual TLS")
    group.add_argument("--tls-key", metavar="PEM", type=Path, help="the key to it")
    group.add_argument("--tls-server-name", metavar="NAME", help="the name in the server's certificate")


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=_model_choice,
        default=(None, None),
        metavar="NAME[:VERSION]",
        help="one that `zfserve info` lists; by default the server's default model, in its newest version",
    )


def open_client(arguments: argparse.Namespace) -> Client:
    """Raises ValueError or OSError where the arguments are unusable."""
    return Client(
        arguments.address,
        tls=_tls(arguments),
        token=_token(arguments),
        priority=arguments.priority,
        client_id=arguments.client_id,
        timeout_s=arguments.timeout,
    )


def ask_service(arguments: argparse.Namespace, ask: Callable[[Client], int]) -> int:
    """What `ask` returns, given a client; where that cannot be, one line on standard error and its exit status."""
    messages = Console(stderr=True)
    try:
        client = open_client(arguments)
    except (OSError, ValueError) as error:
        messages.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return UNUSABLE
    try:
        with client:
            return ask(client)
    except ZfserveError as error:
        messages.print(f"[red]error:[/] {escape(explain(error, arguments))}", soft_wrap=True)
        return exit_status(error)


def explain(error: ZfserveError, arguments: argparse.Namespace) -> str:
    """One line: what went wrong and what to do."""
    address = arguments.address
    if not error.reason:  # gRPC's own word, not the service's
        if isinstance(error, Unavailable) and _BACKEND_UNHEALTHY in error.message:
            return f"no server at {address} is ready: they start or stop; ask one alone for more"
        if isinstance(error, Unavailable) and _tls(arguments):
            faults = [fault for words, fault in _TLS_FAULTS.items() if words in error.message]
            fault = faults[0] if faults else "compare the --tls options with the server's"
            return f"no zfserve answers at {address} over TLS: {fault}"
        if isinstance(error, Unavailable):
            return (
                f"no zfserve answers at {address}; start one with `zfserve serve`, or name another with --address, "
                "and --tls if it wants that"
            )
        if isinstance(error, DeadlineExceeded):
            return f"no answer from {address} in time; give it longer with --timeout"
    parts = [error.message]
    if isinstance(error, Unauthenticated):
        parts.append("give one with --token-file or ZFSERVE_TOKEN")
    if error.request_id and not isinstance(error, _CALLERS_FAULTS):
        parts.append(f"request {error.request_id}")
    return "; ".join(parts)


def exit_status(error: ZfserveError) -> int:
    if isinstance(error, Unavailable | Overloaded):
        return UNREACHABLE
    return UNUSABLE if isinstance(error, _CALLERS_FAULTS) else FAILED


def _model_choice(text: str) -> tuple[str, str | None]:
    name, colon, version = text.partition(":")
    if not name or (colon and not version):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME:VERSION")
    return name, version or None


def _token(arguments: argparse.Namespace) -> str | None:
    # A flag that took the token itself would show it to everyone who lists the processes.
    if arguments.token_file is None:
        return os.environ.get("ZFSERVE_TOKEN")
    try:
        return str(arguments.token_file.read_text(encoding="utf-8").strip())
    except UnicodeDecodeError:
        raise ValueError(f"{arguments.token_file} holds no token") from None


def _tls(arguments: argparse.Namespace) -> TlsOptions | None:
    tls = TlsOptions(arguments.tls_ca, arguments.tls_cert, arguments.tls_key, arguments.tls_server_name)
    return tls if arguments.tls or tls != TlsOptions() else None
