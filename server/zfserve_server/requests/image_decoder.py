"""Turns the image of a request into the model's input: image files, raw pixels and references. Used by the pipeline."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
from zfserve_engines.images.input_image import ImageLimits, InputImage, decode_image, resize_raw
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import InputSpec, Manifest
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.telemetry.tracing import span

from zfserve_server.requests.photo_cache import CachedPhoto, PhotoCache

Image: TypeAlias = pb.Image | bytes | npt.NDArray[np.uint8]
"""An image as a request brings it: a message, an image file, or pixels of the model's input, uint8 (H, W, 3), RGB."""


@dataclass(frozen=True, slots=True)
class Photo:
    """Holds a photo as the model's input.

    Attributes:
        reference: the reference that the request named; None where the request carried the photo.
        decode_s: seconds of decoding and resizing, without the time that the photo waited for a thread.
    """

    image: InputImage
    reference: str | None
    decode_s: float


class ImageDecoder:
    """Decodes images in threads. Admission bounds the images that wait for a thread.

    Args:
        threads: the number of threads.
    """

    def __init__(self, limits: ImageLimits, cache: PhotoCache, threads: int) -> None:
        self._limits = limits
        self._cache = cache
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def load(self, image: Image, manifest: Manifest) -> Photo:
        """Returns the image as the input of that model.

        Raises:
            InvalidInput: the message has no image, or the image cannot be decoded or is too large. Another reason is a
                reference that a model with other weights or another input gave out.
            NotFound: the image is a reference that is unknown or has expired.
        """
        spec = manifest.input
        if isinstance(image, bytes):
            return await self._decode(image, spec)
        if isinstance(image, np.ndarray):
            whole = (0.0, 0.0, spec.width, spec.height)
            return Photo(InputImage(image, spec.width, spec.height, whole), None, 0.0)
        match image.WhichOneof("source"):
            case "reference":
                return self._find_cached(image.reference, manifest)
            case "encoded":
                return await self._decode(image.encoded, spec)
            case "raw":
                return await self._resize(image.raw, spec)
        raise InvalidInput(
            "the request carries no image; set image.encoded, image.raw or image.reference", field="image"
        )

    def keep(self, photo: Photo, manifest: Manifest) -> str:
        """Keeps a photo, and returns the reference by which later requests to that model find it."""
        if photo.reference is not None:
            return photo.reference
        return self._cache.add(CachedPhoto(photo.image, manifest))

    def manifest_of(self, reference: str) -> Manifest:
        """Returns the manifest of the version that gave the reference out.

        Raises:
            NotFound: the reference is unknown or has expired.
        """
        return self._cache.get(reference).manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _find_cached(self, reference: str, manifest: Manifest) -> Photo:
        cached = self._cache.get(reference)
        if not _is_same_network(cached.manifest, manifest):
            raise InvalidInput(
                f"the image reference was given out by {cached.manifest.name} {cached.manifest.version}, and this "
                f"request goes to {manifest.name} {manifest.version}; send the image itself",
                field="image.reference",
            )
        return Photo(cached.image, reference, 0.0)

    async def _decode(self, file: bytes, spec: InputSpec) -> Photo:
        return await self._in_thread(lambda: decode_image(file, spec, self._limits))

    async def _resize(self, raw: pb.RawPixels, spec: InputSpec) -> Photo:
        width, height, data = raw.width, raw.height, raw.data
        if (width, height) == (spec.width, spec.height):
            # There is nothing to resize and the pixels are not copied, so a thread would cost more than it saves.
            return Photo(resize_raw(data, width, height, spec, self._limits), None, 0.0)
        return await self._in_thread(lambda: resize_raw(data, width, height, spec, self._limits))

    async def _in_thread(self, decode: Callable[[], InputImage]) -> Photo:
        def decode_timed() -> Photo:
            began = time.perf_counter()
            image = decode()
            return Photo(image, None, time.perf_counter() - began)

        with span("decode"):
            # The thread works in the context of the call, so that its log lines carry the request's id.
            return await asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, decode_timed)


def _is_same_network(one: Manifest, other: Manifest) -> bool:
    return one is other or (one.fingerprint, one.input) == (other.fingerprint, other.input)
