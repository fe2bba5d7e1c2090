"""Tells photos that cannot be read from other errors, so that a study leaves out these photos only."""

from zfserve.errors import InvalidInput

_FIELDS = ("", "image", "images", "image.encoded")
"""The fields of a request that stand for a photo. The client names no field if it cannot read the file itself."""


def unreadable(error: InvalidInput) -> bool:
    """Returns True if the error is about the photo, and False if it is about another argument."""
    return error.field in _FIELDS
