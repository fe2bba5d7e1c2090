"""How both clients reach the service: addresses, balancing, retries, keepalive, message sizes, TLS.

Sources: grpc/include/grpc/impl/channel_arg_names.h; gRFC A6 (retries), A17 (health checking).
"""

import importlib.metadata
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import grpc

DEFAULT_ADDRESS = "localhost:8500"
DEFAULT_PORT = 8500
DEFAULT_TIMEOUT_S = 30.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Room for the largest answers. What a server takes it says itself: by default a quarter of this."""

LONGEST_CLIENT_ID = 64
"""Characters, as the service has it."""

Priority = Literal["interactive", "bulk"]

Options = list[tuple[str, int | str]]

ASK_THE_UNHEALTHY = ("grpc.inhibit_health_checking", 1)
"""For a channel that asks for health: of servers that do not serve, too."""

BACKEND_UNHEALTHY = "backend unhealthy"
"""gRPC's words, where no server serves by its own health."""

TLS_FAULTS = {
    "CERTIFICATE_VERIFY_FAILED": "no authority that is trusted here has signed its certificate; name that authority's "
    "file with --tls-ca",
    "Hostname Verification Check failed": "its certificate has another name; give that with --tls-server-name",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; leave the --tls options out",
}
"""gRPC's words, where a connection fails for its encryption, and what they mean."""

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")

_SERVICE = "zfserve.v1.VisionService"

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                # None has answered. A server that is full can set the delay by grpc-retry-pushback-ms. CANCELLED is how
                # gRPC's servers end calls that meet their stop; a call that its caller cancels is not tried again.
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        }
    ],
    # When more tries fail than succeed, retries stop: they must not feed the overload they answer. A call that a busy
    # server paces, which fails once and then succeeds, is no such thing.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 1.0},  # gRPC reads 1 as 0.001
}


@dataclass(frozen=True)
class TlsOptions:
    """TLS towards the server. With no file given, the system's certificate authorities are trusted.

    Attributes:
        ca: PEM file of the certificate authorities to trust instead.
        certificate, key: PEM files by which the client proves who it is (mutual TLS); both or neither.
        server_name: the name the server's certificate must carry, where it is not that of the address.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate and its key go together; give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError where a file cannot be read."""
        ca, key, certificate = (
            None if file is None else file.read_bytes() for file in (self.ca, self.key, self.certificate)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)


def channel_target(address: str) -> str:
    """gRPC's name for an address, resolved again as servers come and go.

    Args:
        address: `HOST`, `HOST:PORT`, several `IP:PORT` parted by commas, `unix:PATH`, or any gRPC target.

    Raises:
        ValueError: several addresses that are not all of one IP version.
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
    raise ValueError(f"several addresses must be all IPv4 or all [IPv6]; {address} is not. One name may have many.")


def call_metadata(token: str | None, target: str, tls: TlsOptions | None) -> tuple[tuple[str, str], ...]:
    """What goes with every call. A token does so over TLS, and else to this machine only.

    Args:
        target: from `channel_target`.

    Raises:
        ValueError: the token would cross a network readable to all, or holds what no header can.
    """
    if token is None:
        return ()
    if not (token.isascii() and token.isprintable() and token == token.strip() and token):
        raise ValueError("the token is empty, or holds characters that no token has; look where it was copied from")
    if tls is None and not _is_local(target):
        raise ValueError("a token is sent over TLS only, or to this machine; turn TLS on")
    return (("authorization", f"Bearer {token}"),)


def sender_metadata(priority: Priority, client_id: str | None) -> tuple[tuple[str, str], ...]:
    """What goes with every call for the service to put it in line.

    Raises:
        ValueError: there is no such priority, or the id is empty, too long, or holds what no header can.
    """
    if priority not in get_args(Priority):
        raise ValueError(f"there is no priority {priority!r}; choose {' or '.join(get_args(Priority))}")
    metadata = () if priority == "interactive" else (("x-priority", priority),)
    if client_id is None:
        return metadata
    if not (client_id.isascii() and client_id.isprintable() and client_id.strip() == client_id and client_id):
        raise ValueError("a client's id is made of printable ASCII characters")
    if len(client_id) > LONGEST_CLIENT_ID:
        raise ValueError(f"a client's id may have {LONGEST_CLIENT_ID} characters")
    return (*metadata, ("x-client-id", client_id))


def _is_local(target: str) -> bool:
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    hosts = [_host_of(address) for address in rest.removeprefix("///").split(",")]
    return scheme in ("dns", "ipv4", "ipv6") and all(map(_is_loopback, hosts))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_of(address: str) -> str:
    """The host in HOST:PORT or [IPv6]:PORT."""
    return address[1:].partition("]")[0] if address.startswith("[") else address.rpartition(":")[0]


def may_be_several(target: str) -> bool:
    """Whether there can be more than one server behind `target`: several addresses, or a name that is not this
    machine's."""
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
    config = dict[str, object](_SERVICE_CONFIG)
    if may_be_several(target):
        # Calls turn to other servers the moment one says that it stops, before it refuses any. With a single server
        # the call itself shall go there: its refusal says more than gRPC's "backend unhealthy".
        config["healthCheckConfig"] = {"serviceName": _SERVICE}
    options: Options = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A call larger than this is never retried; gRPC's default of 256 KiB is less than most photos.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
        # A server that vanished without a word is noticed within 40 s, even between calls.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # one of another kind may be under way when that is due
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Else the channels of a process share connections, and with them the wait before a lost one is tried again: a
        # new client would fail for what an older one met, even one that is closed.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # A server that was restarted, or replaced under its name, has calls again before the next one is restarted.
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        # What is for this machine does not go by way of a proxy that the environment names.
        ("grpc.enable_http_proxy", 0 if _is_local(target) else 1),
        ("grpc.primary_user_agent", f"zfserve/{importlib.metadata.version('zfserve')}"),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _with_port(address: str) -> str:
    last = address.rpartition("]")[2] if address.startswith("[") else address
    return address if ":" in last else f"{address}:{DEFAULT_PORT}"
