"""Holds the limits of the studies. A request that exceeds one is refused before any work is done."""

from zfserve_runtime.errors import InvalidInput

MAX_STUDIES = 8
"""The largest number of studies in flight. Each holds at most two batches of images, so this bounds their memory."""

MAX_PHOTOS = 64
MAX_LAYERS = 16
MAX_GRID_SIDE = 64
"""The largest number of photos and of layers of one `Activations` call, and of rows and columns of its grid."""

MAX_PLACES = 10_000
"""The largest number of places of one `Occlude` call."""

MAX_SIGMA = 64.0
"""The largest standard deviation of a blur, in pixels."""

MAX_GROUPS = 1024
"""The largest number of groups of maps of one `Ablate` call."""

MAX_STEPS = 512
"""The largest number of steps of one `Transform` call."""

MAX_REPLY_BYTES = 256 * 2**20
"""The largest number of bytes of values in all messages of one answer."""

MESSAGE_BYTES = 2**20
"""The largest number of bytes of values in one message, unless a single map is larger."""


def check_reply(size_bytes: int, remedy: str, field: str) -> None:
    """Refuses a request whose answer would be larger than `MAX_REPLY_BYTES`.

    Args:
        remedy: the end of the sentence, which says what to ask for instead.
        field: the field of the request to reduce.

    Raises:
        InvalidInput: the answer would be too large.
    """
    if size_bytes > MAX_REPLY_BYTES:
        size, most = size_bytes / 2**20, MAX_REPLY_BYTES // 2**20
        raise InvalidInput(f"the answer would hold {size:,.0f} MiB and may hold {most} MiB; {remedy}", field=field)


def check_count(count: int, most: int, things: str, field: str) -> None:
    """Refuses a number of things that is not between 1 and `most`.

    Raises:
        InvalidInput: the number is 0 or too large.
    """
    if not 1 <= count <= most:
        raise InvalidInput(f"the request has {count:,} {things}; send 1 to {most:,}", field=field)
