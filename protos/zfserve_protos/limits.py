"""Defines the limits on which clients and servers must agree. This module imports nothing."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message, in bytes. A camera's photo can be larger than gRPC's default of 4 MiB. The server has a
separate, lower limit for an image: by default a quarter of this."""

MAX_CLIENT_ID_LENGTH = 64
"""The longest client id, in characters. The server keeps an id for as long as its client has requests in flight."""
