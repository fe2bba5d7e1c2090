"""The channel arguments of every gRPC server and of the channels between our own processes.

Source of the names: grpc/include/grpc/impl/channel_arg_names.h.
"""

import json

from zfserve_protos.channel_options import (
    MIN_PING_INTERVAL_MS,
    PING_INTERVAL_MS,
    PING_TIMEOUT_MS,
    RECONNECT_OPTIONS,
    Options,
    message_size_options,
    ping_options,
)
from zfserve_protos.limits import MAX_MESSAGE_BYTES
from zfserve_protos.methods import WORKER_SERVICE

MAX_CONNECTIONS = 1000
"""More than one server can be of use to, and fewer than the 1,024 files that a process may open by default."""

MAX_CALLS_PER_CONNECTION = 1000
"""Open at a time. Above what is admitted, so that a caller hears that the server is full and does not wait unheard."""

HANDSHAKE_S = 20
"""For TLS and the first HTTP/2 frame: a connection that says nothing holds its place no longer. gRPC allows 120."""


def server_options(
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    max_connections: int = MAX_CONNECTIONS,
    max_connection_age_s: float | None = None,
) -> Options:
    """Options of both servers.

    Args:
        max_connections: at each address listened on; more are closed as soon as they open.
        max_connection_age_s: then a client is asked to connect anew for its next call, give or take a tenth. Calls
            under way are never cut off. None: never.
    """
    options: Options = [
        *message_size_options(max_message_bytes),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
        # A port in use must be an error; with SO_REUSEPORT two servers would share it in silence.
        ("grpc.so_reuseport", 0),
        # Clients behind load balancers ping idle connections; gRPC's default hangs up on them ("too_many_pings").
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        # A peer that vanished without a word is noticed, and its calls cancelled, within about 80 s.
        *ping_options(60_000, 20_000),
    ]
    if max_connection_age_s is not None:
        options.append(("grpc.max_connection_age_ms", round(max_connection_age_s * 1000)))
    return options


def worker_channel_options() -> Options:
    """For the server's channel to its workers: each projection to the next of those that serve by their own health,
    pings while a call is open, and quick reconnection after a restart."""
    balancing = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": WORKER_SERVICE}}
    return [
        *message_size_options(MAX_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps(balancing)),
        *ping_options(PING_INTERVAL_MS, PING_TIMEOUT_MS),
        *RECONNECT_OPTIONS,
        # Bounds each attempt too, because the kernel accepts connections for a process that is stopped.
        ("grpc.min_reconnect_backoff_ms", 5_000),
    ]
