"""Keeps photos for later requests, so that a client need not send a photo again. Used by `image_decoder`."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from zfserve_engines.images.input_image import InputImage
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import NotFound


class CachedPhoto(NamedTuple):
    """Holds a photo as the input of one model. Another model may need another input.

    Attributes:
        manifest: the manifest of the version that classified the photo.
    """

    image: InputImage
    manifest: Manifest


class PhotoCache:
    """Caches decoded photos by references that cannot be guessed.

    When it is full, it evicts the least recently used photo. A photo that is not used for `ttl_s` seconds expires.

    Args:
        limit: the largest number of photos. Each is as large as the model's input (150 KB at 224x224).
        ttl_s: seconds that a photo is kept after its last use.
        clock: returns monotonic seconds.
    """

    def __init__(self, limit: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        # The least recently used photo is first. That is also the order in which they expire.
        self._photos: OrderedDict[str, tuple[CachedPhoto, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._photos)

    def add(self, photo: CachedPhoto) -> str:
        """Keeps a photo and returns its reference, 128 random bits in base64."""
        self._drop_expired()
        if len(self._photos) >= self._limit:
            self._photos.popitem(last=False)
        reference = secrets.token_urlsafe(16)
        self._photos[reference] = (photo, self._clock() + self._ttl_s)
        return reference

    def get(self, reference: str) -> CachedPhoto:
        """Returns the photo of that reference, and extends its life by `ttl_s`.

        Raises:
            NotFound: the reference was never given out, has expired or was evicted.
        """
        self._drop_expired()
        if reference not in self._photos:
            raise NotFound(
                "the image reference is unknown or has expired; send the image itself", field="image.reference"
            )
        photo, _ = self._photos[reference]
        self._photos[reference] = (photo, self._clock() + self._ttl_s)
        self._photos.move_to_end(reference)
        return photo

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._photos and next(iter(self._photos.values()))[1] <= now:
            self._photos.popitem(last=False)
