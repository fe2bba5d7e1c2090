"""Opens the ports of both processes, and finds out whether other machines can reach an address."""

import logging

import grpc
from zfserve_protos.hosts import is_loopback

from zfserve_runtime.access.tls import TlsFiles, server_credentials

LOOPBACK = "127.0.0.1"

_log = logging.getLogger(__name__)


def host_and_port(host: str, port: int) -> str:
    """Returns `HOST:PORT`. An IPv6 host gets brackets if it has none."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_local(address: str) -> bool:
    """Returns True if only this machine can reach `address` (HOST, HOST:PORT, [IPv6]:PORT or unix:PATH)."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    return is_loopback(host)


def find_exposure(flag: str, address: str, encrypted: bool, allow_insecure: bool) -> str | None:
    """Returns a sentence that says why a server may not listen on `address`, or None if it may.

    Args:
        flag: the flag that sets the address, for the sentence.
    """
    if encrypted or allow_insecure or is_local(address):
        return None
    return (
        f"{flag} {address} can be reached from other machines, and without TLS anyone on the network path can read "
        "and change what is sent; give --tls-cert and --tls-key, or --allow-insecure if the network itself keeps "
        "others out"
    )


def open_port(server: grpc.aio.Server, address: str, tls: TlsFiles | None, *, callers_known: bool, flag: str) -> int:
    """Listens on `address` and returns the port. The log warns if strangers can call, or can read the traffic.

    Args:
        tls: the files for TLS. None: the port is not encrypted.
        callers_known: True if every caller must show a token or a certificate.
        flag: the flag that sets the address, for the error.

    Raises:
        OSError: the server cannot listen on the address.
        TlsError: the certificate or key cannot be used.
    """
    try:
        port = (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, server_credentials(tls))
        )
    except RuntimeError as error:  # gRPC raises it without a cause
        raise OSError(f"cannot listen on {address}; is it in use? choose another with {flag}") from error
    if not is_local(address):
        if tls is None:
            _log.warning(
                "without TLS on a public address: anyone on the network path can read the traffic",
                extra={"address": address},
            )
        if not callers_known:
            _log.warning("without tokens on a public address: anyone may call", extra={"address": address})
    return port
