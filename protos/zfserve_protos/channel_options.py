"""Defines the gRPC channel arguments that our clients and servers share. Each side adds its own.

Source of the names: grpc/include/grpc/impl/channel_arg_names.h.
"""

Options = list[tuple[str, int | str]]

MIN_PING_INTERVAL_MS = 10_000
"""The server accepts pings that are at least this far apart. Clients ping every `PING_INTERVAL_MS`, which is longer."""

PING_INTERVAL_MS = 30_000
PING_TIMEOUT_MS = 10_000
"""A client notices within the sum of both, 40 s, that a server vanished without closing the connection."""

NO_HEALTH_CHECKING = ("grpc.inhibit_health_checking", 1)
"""A channel with this option also sends calls to servers whose health is NOT_SERVING. A channel that asks for the
health itself needs it."""

RECONNECT_OPTIONS: Options = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In a rolling restart, clients reconnect to a restarted or replaced server before the next server restarts.
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
]


def message_size_options(max_message_bytes: int) -> Options:
    """Returns the options that limit messages in both directions to `max_message_bytes`."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    ]


def ping_options(interval_ms: int, timeout_ms: int) -> Options:
    """Returns the options that ping every `interval_ms`, and end a connection after `timeout_ms` without an answer."""
    return [
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        # gRPC also sends pings of another kind. One of them may be unanswered when a keepalive ping is due.
        ("grpc.http2.ping_timeout_ms", timeout_ms),
    ]
