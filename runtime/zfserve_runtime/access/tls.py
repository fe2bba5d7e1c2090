"""Reads TLS credentials from PEM files: for both servers, and for the server's channel to its worker.

Faults in the files are found at the start, not at the first handshake. Files may be replaced at any time. A server
checks them when a client connects, so a renewed certificate serves the next connection. Open connections stay as they
are.
"""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from zfserve_runtime.access.file_reloader import FileReloader


class TlsError(ValueError):
    """The certificate or key cannot be used. The message names the file."""


@dataclass(frozen=True)
class TlsFiles:
    """Names the PEM files of a server.

    Attributes:
        certificate: the server's certificate, followed by its intermediates.
        key: the certificate's private key, without a passphrase.
        client_ca: one or more authorities. If given, only clients with a certificate signed by one may connect (mTLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class ClientTlsFiles:
    """Names the PEM files of the server's channel to its worker.

    Attributes:
        ca: the authorities that may have signed the worker's certificate.
        certificate, key: the server's own certificate and key for mTLS. Both are given, or neither.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Returns credentials that follow `files` as they change.

    The caller must keep them as long as the server runs, because gRPC keeps no reference.

    Raises:
        TlsError: a file cannot be read, is not PEM, or the key does not belong to the certificate.
    """
    paths = [file for file in (files.certificate, files.key, files.client_ca) if file is not None]
    configuration = FileReloader("TLS certificate", paths, lambda: _read_configuration(files))

    def fetch() -> Any:  # None means unchanged; the stubs leave that out
        """Returns a new configuration, or None. gRPC calls it in its own threads before each handshake."""
        return configuration.value if configuration.reload_if_changed() else None

    return grpc.dynamic_ssl_server_credentials(
        configuration.value, fetch, require_client_authentication=files.client_ca is not None
    )


def channel_credentials(files: ClientTlsFiles) -> FileReloader[grpc.ChannelCredentials]:
    """Returns the credentials of a channel, reloaded when the files change.

    An open channel keeps its credentials. Its owner must check them, and open a new channel after a change.

    Raises:
        TlsError: a file cannot be read, is not PEM, or the key does not belong to the certificate.
    """
    paths = [file for file in (files.ca, files.certificate, files.key) if file is not None]
    return FileReloader("TLS certificate for the worker", paths, lambda: _read_channel_credentials(files))


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
    """Checks the same bytes that gRPC gets. A second read of the files might find replaced ones.

    `ssl` reads files only, so the bytes go into files in memory.
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
