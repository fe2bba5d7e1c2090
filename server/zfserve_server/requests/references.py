"""References: photos that a later Project need not send again. Called by the service."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from zfserve_engines.images import InputImage
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import NotFound


class KeptPhoto(NamedTuple):
    """A photo as one model takes it, and that model: to another it may mean nothing.

    Attributes:
        manifest: of the version that classified it.
    """

    image: InputImage
    manifest: Manifest


class References:
    """Decoded photos by an unguessable name. The least recently used make room; unused ones expire.

    Args:
        limit: photos held; each is as large as the model's input (150 KB at 224x224).
        ttl_s: seconds after its last use that a photo is kept.
        clock: monotonic seconds.
    """

    def __init__(self, limit: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        # By last use, oldest first, which is also the order in which they expire.
        self._held: OrderedDict[str, tuple[KeptPhoto, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, photo: KeptPhoto) -> str:
        """Keep a photo; returns its reference."""
        self._drop_expired()
        if len(self._held) >= self._limit:
            self._held.popitem(last=False)
        reference = secrets.token_urlsafe(16)
        self._held[reference] = (photo, self._clock() + self._ttl_s)
        return reference

    def get(self, reference: str) -> KeptPhoto:
        """The photo of that reference, whose life begins anew.

        Raises:
            NotFound: it was never given out, has expired or has made room for others.
        """
        self._drop_expired()
        if reference not in self._held:
            raise NotFound(
                "the image reference is unknown or has expired; send the image itself", field="image.reference"
            )
        photo, _ = self._held[reference]
        self._held[reference] = (photo, self._clock() + self._ttl_s)
        self._held.move_to_end(reference)
        return photo

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._held and next(iter(self._held.values()))[1] <= now:
            self._held.popitem(last=False)
