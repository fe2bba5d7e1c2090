"""Builds the channel arguments of both servers, and of the server's channel to its workers.

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
"""The limit is more than one server can usefully serve, and less than the 1,024 files that a process may open by
default."""

MAX_CALLS_PER_CONNECTION = 1000
"""The largest number of calls in flight on a connection. It is more than admission accepts, so that a caller learns
that the server is full. Above this limit gRPC lets calls wait without an answer."""

HANDSHAKE_TIMEOUT_S = 20
"""The time for TLS and the first HTTP/2 frame. A connection that takes longer is closed. gRPC's default is 120 s."""


def server_options(
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    max_connections: int = MAX_CONNECTIONS,
    max_connection_age_s: float | None = None,
) -> Options:
    """Returns the channel arguments of a server.

    Args:
        max_message_bytes: the largest message in either direction.
        max_connections: the largest number of connections at each address. Further ones are closed as soon as they
            open.
        max_connection_age_s: the age, plus or minus a tenth, at which a client is asked to connect again for its next
            call. Calls in flight are never cut off. None: never.
    """
    options: Options = [
        *message_size_options(max_message_bytes),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
        # A port in use must be an error. With SO_REUSEPORT two servers would share it silently.
        ("grpc.so_reuseport", 0),
        # Clients behind load balancers ping idle connections. By default gRPC disconnects them ("too_many_pings").
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        # The server notices within about 80 s that a peer vanished without closing the connection, and cancels its
        # calls.
        *ping_options(60_000, 20_000),
    ]
    if max_connection_age_s is not None:
        options.append(("grpc.max_connection_age_ms", round(max_connection_age_s * 1000)))
    return options


def worker_channel_options() -> Options:
    """Returns the channel arguments of the server's channel to its workers.

    Projections go to the workers in turn, but only to those whose health is SERVING. The channel pings while a call is
    open, and reconnects quickly after a restart.
    """
    balancing = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": WORKER_SERVICE}}
    return [
        *message_size_options(MAX_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps(balancing)),
        *ping_options(PING_INTERVAL_MS, PING_TIMEOUT_MS),
        *RECONNECT_OPTIONS,
        # This also limits the time of each attempt, because the kernel accepts connections for a stopped process.
        ("grpc.min_reconnect_backoff_ms", 5_000),
    ]
