"""Defines the arguments that name a service, and opens its client. Every command that calls a service uses them."""

import argparse
import math
import os
from pathlib import Path
from typing import get_args

from zfserve.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, TlsOptions
from zfserve.client import Client
from zfserve_protos.metadata import Priority


def seconds(text: str) -> float:
    """Parses an argument as a finite number of seconds above 0.

    Raises:
        ArgumentTypeError: the text is no such number.
    """
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
        help="address of the service: HOST:PORT, several IP:PORT separated by commas, or unix:PATH "
        f"(default: ZFSERVE_ADDRESS, or else {DEFAULT_ADDRESS})",
    )
    group.add_argument(
        "--timeout",
        metavar="S",
        type=seconds,
        default=DEFAULT_TIMEOUT_S,
        help="longest time for a call, in seconds (default: %(default)g)",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        default=os.environ.get("ZFSERVE_TOKEN_FILE"),
        help="file with the token to show; it is sent over TLS or to this machine "
        "(default: ZFSERVE_TOKEN_FILE, or else the token in ZFSERVE_TOKEN)",
    )
    group.add_argument(
        "--priority",
        choices=get_args(Priority),
        default="interactive",
        help="a busy service answers interactive calls before bulk calls (default: %(default)s)",
    )
    group.add_argument(
        "--client-id",
        metavar="NAME",
        help="identity of the caller; a busy service shares its time equally among callers "
        "(default: this machine's address)",
    )
    group.add_argument("--tls", action="store_true", help="encrypt the connection; the other --tls options imply this")
    group.add_argument(
        "--tls-ca", metavar="PEM", type=Path, help="certificate authorities to trust (default: the system's)"
    )
    group.add_argument("--tls-cert", metavar="PEM", type=Path, help="certificate of the client, for mutual TLS")
    group.add_argument("--tls-key", metavar="PEM", type=Path, help="private key of --tls-cert")
    group.add_argument(
        "--tls-server-name", metavar="NAME", help="name in the server's certificate (default: the name in --address)"
    )


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=_model_choice,
        default=(None, None),
        metavar="NAME[:VERSION]",
        help="a model that `zfserve info` lists (default: the newest version of the server's default model)",
    )


def open_client(arguments: argparse.Namespace) -> Client:
    """Opens a client for the service that the arguments name.

    Raises:
        ValueError: the arguments cannot be used.
        OSError: a file that they name cannot be read.
    """
    return Client(
        arguments.address,
        tls=tls_options(arguments),
        token=_token(arguments),
        priority=arguments.priority,
        client_id=arguments.client_id,
        timeout_s=arguments.timeout,
    )


def tls_options(arguments: argparse.Namespace) -> TlsOptions | None:
    """Returns the TLS options, or None if the arguments ask for an unencrypted connection.

    Raises:
        ValueError: one of --tls-cert and --tls-key is given without the other.
    """
    tls = TlsOptions(arguments.tls_ca, arguments.tls_cert, arguments.tls_key, arguments.tls_server_name)
    return tls if arguments.tls or tls != TlsOptions() else None


def _model_choice(text: str) -> tuple[str, str | None]:
    name, colon, version = text.partition(":")
    if not name or (colon and not version):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME:VERSION")
    return name, version or None


def _token(arguments: argparse.Namespace) -> str | None:
    # A flag with the token itself would show it to everyone who lists the processes.
    if arguments.token_file is None:
        return os.environ.get("ZFSERVE_TOKEN")
    try:
        return str(arguments.token_file.read_text(encoding="utf-8").strip())
    except UnicodeDecodeError:
        raise ValueError(f"{arguments.token_file} holds no token") from None
