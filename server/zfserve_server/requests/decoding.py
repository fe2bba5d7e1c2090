"""From the request's image to the model's input: decoding in threads, references, raw pixels. Called by the service."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Self

from zfserve_engines.images import ImageLimits, InputImage, decode_image, resize_raw
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import InputSpec, Manifest
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.telemetry.tracing import span

from zfserve_server.requests.references import KeptPhoto, References


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo as the model takes it.

    Attributes:
        reference: the name it was asked for by, or None where it came with the request.
        decode_s: seconds spent decoding and resizing it, waiting for a thread not included.
    """

    image: InputImage
    reference: str | None
    decode_s: float


class Decoding:
    """Turns images of requests into photos. Its threads are `threads`; admission bounds what waits for them."""

    def __init__(self, limits: ImageLimits, references: References, threads: int) -> None:
        self._limits = limits
        self._references = references
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def load(self, image: pb.Image, manifest: Manifest) -> Photo:
        """The photo that a request names or carries, as that model takes it.

        Raises:
            InvalidInput: there is none, or it cannot be decoded, or it is too large; or its reference was given out by
                another network, or for another input.
            NotFound: its reference is unknown or has expired.
        """
        spec = manifest.input
        source = image.WhichOneof("source")
        if source == "reference":
            kept = self._references.get(image.reference)
            if not _is_same_network(kept.manifest, manifest):
                raise InvalidInput(
                    f"the image reference was given out by {kept.manifest.name} {kept.manifest.version}, and this "
                    f"request goes to {manifest.name} {manifest.version}; send the image itself",
                    field="image.reference",
                )
            return Photo(kept.image, image.reference, 0.0)
        if source == "encoded":
            return await self.decode(image.encoded, spec)
        if source == "raw":
            width, height, data = image.raw.width, image.raw.height, image.raw.data
            if (width, height) == (spec.width, spec.height):
                # Nothing to resize: the pixels are used where they lie, so a thread would cost more than it saves.
                return Photo(resize_raw(data, width, height, spec, self._limits), None, 0.0)
            return await self._in_thread(lambda: resize_raw(data, width, height, spec, self._limits))
        raise InvalidInput(
            "the request carries no image; set image.encoded, image.raw or image.reference", field="image"
        )

    async def decode(self, encoded: bytes, spec: InputSpec) -> Photo:
        """The photo in an image file. Raises InvalidInput where it cannot be decoded, or is too large."""
        return await self._in_thread(lambda: decode_image(encoded, spec, self._limits))

    def keep(self, photo: Photo, manifest: Manifest) -> str:
        """The reference under which a later request to that model finds this photo."""
        if photo.reference is not None:
            return photo.reference
        return self._references.add(KeptPhoto(photo.image, manifest))

    def model_of(self, reference: str) -> Manifest:
        """Of the version that gave out the reference. Raises NotFound where that is unknown or has expired."""
        return self._references.get(reference).manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def _in_thread(self, decode: Callable[[], InputImage]) -> Photo:
        def timed() -> Photo:
            began = time.perf_counter()
            image = decode()
            return Photo(image, None, time.perf_counter() - began)

        with span("decode"):
            # The thread works in the context of the call, so that what it logs carries the request's id.
            return await asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, timed)


def _is_same_network(one: Manifest, other: Manifest) -> bool:
    return one is other or (one.fingerprint, one.input) == (other.fingerprint, other.input)
