"""TLS for the servers, from PEM files whose faults are found at start and not at the first handshake."""

import ssl
from pathlib import Path

import grpc


class TlsError(ValueError):
    """The certificate or key cannot be used; the message names the file."""


def server_credentials(certificate: Path, key: Path, client_ca: Path | None = None) -> grpc.ServerCredentials:
    """Credentials of a server; with `client_ca`, only clients with a certificate signed by it may call (mTLS).

    Args:
        certificate: PEM, the server's certificate followed by its intermediates.
        key: PEM, the certificate's private key, without a passphrase.
        client_ca: PEM, one or more authorities.

    Raises:
        TlsError: a file cannot be read, is not PEM, or the key is not the certificate's.
    """
    certificate_pem, key_pem = _read(certificate, "certificate"), _read(key, "key")
    client_ca_pem = None if client_ca is None else _read(client_ca, "client CA")
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        trial.load_cert_chain(certificate, key, password=_refuse_passphrase)
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(
            f"the certificate {certificate} and the key {key} are not a pair of PEM files: {error}"
        ) from error
    if client_ca is not None:
        try:
            trial.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise TlsError(f"the client CA {client_ca} is not a PEM file of certificates: {error}") from error
    return grpc.ssl_server_credentials(
        [(key_pem, certificate_pem)], root_certificates=client_ca_pem, require_client_auth=client_ca is not None
    )


def _read(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TlsError(f"the TLS {what} {file} cannot be read: {error.strerror}") from error


def _refuse_passphrase() -> str:
    raise ValueError("the key is protected by a passphrase; store it without one")
