"""The channel arguments of every gRPC server and of the channels between our own processes.

Source of the names: grpc/include/grpc/impl/channel_arg_names.h.
"""

Options = list[tuple[str, int | str]]

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""gRPC's own default of 4 MiB is less than a camera's photo. The limit on an image is set apart, and lower."""


def server_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    return [
        *_message_sizes(max_message_bytes),
        # A port in use must be an error; with SO_REUSEPORT two servers would share it in silence.
        ("grpc.so_reuseport", 0),
        # Clients behind load balancers ping idle connections; gRPC's default hangs up on them ("too_many_pings").
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # A peer that vanished without a word is noticed, and its calls cancelled, within about 80 s.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """For the server's channel to its worker: pings while a call is open, and quick reconnection after a restart."""
    return [
        *_message_sizes(max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def _message_sizes(max_message_bytes: int) -> Options:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    ]
