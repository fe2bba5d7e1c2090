"""Where a server listens, and who can hear what is said there. Both processes open their ports by it."""

import ipaddress
import logging

import grpc

from zfserve_runtime.access.tls import TlsFiles, server_credentials

LOOPBACK = "127.0.0.1"

_log = logging.getLogger(__name__)


def host_and_port(host: str, port: int) -> str:
    """As one address: an IPv6 host in brackets, whether it came in them or not."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_local(address: str) -> bool:
    """Whether `address` (HOST, HOST:PORT, [IPv6]:PORT or unix:PATH) can be reached from this machine only."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # any other name may be a public address tomorrow


def find_exposure(flag: str, address: str, encrypted: bool, allow_insecure: bool) -> str | None:
    """Why a server may not listen on `address`, which `flag` gave; None where it may."""
    if encrypted or allow_insecure or is_local(address):
        return None
    return (
        f"{flag} {address} can be reached from other machines, and without TLS anyone on the way can read and change "
        "what is sent; give --tls-cert and --tls-key, or --allow-insecure where the network itself keeps others out"
    )


def open_port(server: grpc.aio.Server, address: str, tls: TlsFiles | None, *, callers_known: bool, flag: str) -> int:
    """Listen on `address`, and say so in the log where strangers can call or listen in; returns the port.

    Args:
        tls: None for an unencrypted port.
        callers_known: whether callers must show a token or a certificate.
        flag: by which the address can be changed.

    Raises:
        OSError: the address cannot be listened on.
        TlsError: the certificate or key cannot be used.
    """
    try:
        port = (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, server_credentials(tls))
        )
    except RuntimeError as error:  # gRPC's own, without a cause
        raise OSError(f"cannot listen on {address}; is it in use? choose another with {flag}") from error
    if not is_local(address):
        if tls is None:
            _log.warning("without TLS on a public address: anyone on the way can listen in", extra={"address": address})
        if not callers_known:
            _log.warning("without tokens on a public address: anyone may call", extra={"address": address})
    return port
