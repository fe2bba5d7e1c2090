"""Sets up the gRPC channel to the service: addresses, balancing, retries, keepalive, message sizes, TLS and metadata.

Sources: grpc/include/grpc/impl/channel_arg_names.h; gRFC A6 (retries), A17 (health checking).
"""

import importlib.metadata
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import grpc
from zfserve_protos.channel_options import (
    PING_INTERVAL_MS,
    PING_TIMEOUT_MS,
    RECONNECT_OPTIONS,
    Options,
    message_size_options,
    ping_options,
)
from zfserve_protos.hosts import is_loopback
from zfserve_protos.limits import MAX_CLIENT_ID_LENGTH
from zfserve_protos.metadata import AUTHORIZATION_KEY, CLIENT_ID_KEY, PRIORITY_KEY, Priority
from zfserve_protos.methods import VISION_SERVICE
from zfserve_protos.ports import SERVICE_PORT

DEFAULT_ADDRESS = f"localhost:{SERVICE_PORT}"
"""A client without an address calls the service on this machine."""

DEFAULT_TIMEOUT_S = 30.0
"""A call may take this many seconds if neither it nor its client has another timeout."""

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": VISION_SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                # No server has processed a call that ends with one of these. A full server can set the delay by
                # grpc-retry-pushback-ms. A gRPC server that stops ends its calls with CANCELLED. gRPC does not retry a
                # call that its caller cancels.
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        }
    ],
    # Retries stop when more attempts fail than succeed, so that they do not add to an overload. If a busy server delays
    # a call, the call fails once and then succeeds, which does not stop retries.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 1.0},  # gRPC reads 1 as 0.001
}


@dataclass(frozen=True)
class TlsOptions:
    """Holds the options of an encrypted connection.

    Without files, the client trusts the system's certificate authorities.

    Attributes:
        ca: a PEM file with the certificate authorities to trust instead of the system's.
        certificate: a PEM file with the client's certificate chain, which identifies the client (mutual TLS). It needs
            `key`.
        key: a PEM file with the private key of `certificate`.
        server_name: the name in the server's certificate, if it differs from the name in the address.

    Raises:
        ValueError: one of `certificate` and `key` is given without the other.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate and its key go together; give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files and returns the channel's credentials.

        Raises:
            OSError: a file cannot be read.
        """
        ca, key, certificate = (
            None if file is None else file.read_bytes() for file in (self.ca, self.key, self.certificate)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)


def channel_target(address: str) -> str:
    """Returns the gRPC target for an address. gRPC resolves a name again as servers come and go.

    Args:
        address: `HOST`, `HOST:PORT`, several `IP:PORT` separated by commas, `unix:PATH`, or any gRPC target.

    Raises:
        ValueError: there are several addresses, and they are not all of one IP version.
    """
    if address.startswith(_SCHEMES):
        return address
    if "," not in address:
        return f"dns:///{_with_port(address)}"
    addresses = [_with_port(part.strip()) for part in address.split(",")]
    if all(part.startswith("[") for part in addresses):
        return f"ipv6:{','.join(addresses)}"
    if all(part.replace(".", "").replace(":", "").isdigit() for part in addresses):
        return f"ipv4:{','.join(addresses)}"
    raise ValueError(f"{address} is not all IPv4 or all [IPv6]; give addresses of one kind, or one name for all")


def token_metadata(token: str | None, target: str, tls: TlsOptions | None) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that show the token. A token is sent over TLS, or without TLS to this machine only.

    Args:
        token: the token, or None for no token.
        target: a gRPC target, as `channel_target` returns it.
        tls: the options of the connection. None if it is not encrypted.

    Raises:
        ValueError: the token would cross a network unencrypted, or it has characters that no header can have.
    """
    if token is None:
        return ()
    if not (token.isascii() and token.isprintable() and token == token.strip() and token):
        raise ValueError("the token is empty, or holds characters that no token has; copy it again from its source")
    if tls is None and not _is_local(target):
        raise ValueError("a token is sent over TLS only, or to this machine; turn TLS on")
    return ((AUTHORIZATION_KEY, f"Bearer {token}"),)


def caller_metadata(priority: Priority, client_id: str | None) -> tuple[tuple[str, str], ...]:
    """Returns the metadata with the priority and the client's id. By them the service orders the calls that wait.

    Raises:
        ValueError: there is no such priority, or the id is empty, too long, or has characters that no header can have.
    """
    if priority not in get_args(Priority):
        raise ValueError(f"there is no priority {priority!r}; choose {' or '.join(get_args(Priority))}")
    metadata = () if priority == "interactive" else ((PRIORITY_KEY, priority),)
    if client_id is None:
        return metadata
    if not (client_id.isascii() and client_id.isprintable() and client_id.strip() == client_id and client_id):
        raise ValueError("a client's id must consist of printable ASCII characters")
    if len(client_id) > MAX_CLIENT_ID_LENGTH:
        raise ValueError(f"a client's id may have at most {MAX_CLIENT_ID_LENGTH} characters")
    return (*metadata, (CLIENT_ID_KEY, client_id))


def _is_local(target: str) -> bool:
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    hosts = [_host_of(address) for address in rest.removeprefix("///").split(",")]
    return scheme in ("dns", "ipv4", "ipv6") and all(map(is_loopback, hosts))


def _host_of(address: str) -> str:
    """Returns the host of HOST:PORT or [IPv6]:PORT."""
    return address[1:].partition("]")[0] if address.startswith("[") else address.rpartition(":")[0]


def may_have_several_servers(target: str) -> bool:
    """Returns True if `target` may have more than one server: several addresses, or the name of another machine."""
    scheme, _, rest = target.partition(":")
    if scheme in ("ipv4", "ipv6"):
        return "," in rest
    return scheme == "dns" and not _is_one_machine(_host_of(rest.rpartition("/")[2]))


def _is_one_machine(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def channel_options(target: str, max_message_bytes: int, tls: TlsOptions | None) -> Options:
    """Returns the channel arguments for `target`, as `channel_target` returns it."""
    config = dict[str, object](_SERVICE_CONFIG)
    if may_have_several_servers(target):
        # As soon as the health of a server says that it stops, calls go to other servers, before it refuses any. A
        # single server gets every call, because its own refusal says more than gRPC's "backend unhealthy".
        config["healthCheckConfig"] = {"serviceName": VISION_SERVICE}
    options: Options = [
        ("grpc.service_config", json.dumps(config)),
        *message_size_options(max_message_bytes),
        # gRPC never retries a call that is larger than this. Its default of 256 KiB is less than most photos.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
        # The client notices within 40 s, even between calls, that a server vanished without closing the connection.
        *ping_options(PING_INTERVAL_MS, PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Otherwise the channels of a process share connections and their backoff: a new client would fail because an
        # older one, even a closed one, waits before it connects again.
        ("grpc.use_local_subchannel_pool", 1),
        *RECONNECT_OPTIONS,
        # Calls to this machine do not go through a proxy that the environment names.
        ("grpc.enable_http_proxy", 0 if _is_local(target) else 1),
        ("grpc.primary_user_agent", f"zfserve/{importlib.metadata.version('zfserve')}"),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _with_port(address: str) -> str:
    last = address.rpartition("]")[2] if address.startswith("[") else address
    return address if ":" in last else f"{address}:{SERVICE_PORT}"
