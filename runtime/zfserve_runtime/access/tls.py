"""TLS of the servers, and of the server towards its worker, from PEM files that may be replaced while they are used.

Faults of the files are found at start and not at the first handshake. A server looks at its files when a client
connects: a certificate that was renewed serves the next connection, and those that are open stay as they are.
"""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from zfserve_runtime.access.reloaded import Reloaded


class TlsError(ValueError):
    """The certificate or key cannot be used; the message names the file."""


@dataclass(frozen=True)
class TlsFiles:
    """What a server needs for TLS; with `client_ca`, only clients with a certificate signed by it may connect (mTLS).

    Attributes:
        certificate: PEM, the server's certificate followed by its intermediates.
        key: PEM, the certificate's private key, without a passphrase.
        client_ca: PEM, one or more authorities.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class ClientTlsFiles:
    """What the server needs for TLS towards its worker.

    Attributes:
        ca: PEM, the authorities that the worker's certificate may be signed by.
        certificate, key: PEM, to show to the worker (mTLS); both or neither.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow `files`: see the module. Keep them as long as the server, which does not.

    Raises:
        TlsError: a file cannot be read, is not PEM, or the key is not the certificate's.
    """
    paths = [file for file in (files.certificate, files.key, files.client_ca) if file is not None]
    configuration = Reloaded("TLS certificate", paths, lambda: _read_configuration(files))

    def fetch() -> Any:  # the stubs leave out None: as before
        """Called by gRPC, in threads of its own, before each handshake."""
        return configuration.value if configuration.look() else None

    return grpc.dynamic_ssl_server_credentials(
        configuration.value, fetch, require_client_authentication=files.client_ca is not None
    )


def channel_credentials(files: ClientTlsFiles) -> Reloaded[grpc.ChannelCredentials]:
    """Credentials of a channel. One that is open keeps its own: whoever has it looks, and opens another.

    Raises:
        TlsError: as `server_credentials`.
    """
    paths = [file for file in (files.ca, files.certificate, files.key) if file is not None]
    return Reloaded("TLS towards the worker", paths, lambda: _read_channel_credentials(files))


def _read_configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    certificate, key = _read_pair(files.certificate, files.key)
    client_ca = None if files.client_ca is None else _read_authority(files.client_ca, "client CA")
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca)


def _read_channel_credentials(files: ClientTlsFiles) -> grpc.ChannelCredentials:
    ca = _read_authority(files.ca, "CA")
    if files.certificate is None or files.key is None:
        return grpc.ssl_channel_credentials(ca)
    certificate, key = _read_pair(files.certificate, files.key)
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _read_pair(certificate_file: Path, key_file: Path) -> tuple[bytes, bytes]:
    certificate, key = _read(certificate_file, "certificate"), _read(key_file, "key")
    try:
        _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(
            f"the certificate {certificate_file} and the key {key_file} are not a pair of PEM files: {error}"
        ) from error
    return certificate, key


def _read_authority(file: Path, what: str) -> bytes:
    authority = _read(file, what)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"the {what} {file} is not a PEM file of certificates: {error}") from error
    return authority


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Check the very bytes that gRPC gets: files read twice may have been replaced in between.

    `ssl` reads files only, so these are ones in memory.
    """
    descriptors = []
    try:
        for content in (certificate, key):
            descriptors.append(os.memfd_create("pem"))
            os.write(descriptors[-1], content)
        certificate_file, key_file = (f"/proc/self/fd/{descriptor}" for descriptor in descriptors)
        context.load_cert_chain(certificate_file, key_file, password=_refuse_passphrase)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _read(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TlsError(f"the TLS {what} {file} cannot be read: {error.strerror}") from error


def _refuse_passphrase() -> str:
    raise ValueError("the key is protected by a passphrase; store it without one")
