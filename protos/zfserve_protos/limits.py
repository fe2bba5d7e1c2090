"""The limits on which clients and servers must agree. This module imports nothing."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message. gRPC's own default of 4 MiB is less than a camera's photo. The server's limit on an image is
separate, and lower: by default a quarter of this."""

MAX_CLIENT_ID_LENGTH = 64
"""The longest client id, in characters. The server keeps an id for as long as its client has requests in flight."""
