"""TLS of the servers, from PEM files that may be replaced while they serve.

Faults of the files are found at start and not at the first handshake. The files are looked at when a client connects:
a certificate that was renewed serves the next connection, and those that are open stay as they are.
"""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from zfserve_runtime.reloaded import Reloaded


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


def _read_configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    certificate, key = _read(files.certificate, "certificate"), _read(files.key, "key")
    client_ca = None if files.client_ca is None else _read(files.client_ca, "client CA")
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        _load_pair(trial, certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(
            f"the certificate {files.certificate} and the key {files.key} are not a pair of PEM files: {error}"
        ) from error
    if client_ca is not None:
        try:
            trial.load_verify_locations(cadata=client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise TlsError(f"the client CA {files.client_ca} is not a PEM file of certificates: {error}") from error
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca)


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
