"""Makes the images and serialised requests that benchmarks send."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import InputSpec

from zfserve_bench.config import BenchmarkConfig

IMAGES = 8
"""The number of different random images. With more than one, no cache can answer."""

JPEG_WIDTH, JPEG_HEIGHT, JPEG_QUALITY = 500, 375, 92
"""The size in pixels and the quality of JPEG files that are sent or decoded. Most photos of ImageNet have this size."""


def random_images(spec: InputSpec, count: int = IMAGES) -> npt.NDArray[np.uint8]:
    """Returns uint8 (count, H, W, 3), the same at every call. No network's speed depends on the content."""
    return np.random.default_rng(0).integers(0, 256, (count, spec.height, spec.width, 3), np.uint8)


def raw_request(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Returns a serialised `ClassifyRequest` with raw pixels.

    Args:
        pixels: uint8 (H, W, 3), RGB.
    """
    height, width, _ = pixels.shape
    raw = pb.RawPixels(width=width, height=height, data=pixels.tobytes())
    return pb.ClassifyRequest(image=pb.Image(raw=raw)).SerializeToString()


def jpeg_files(config: BenchmarkConfig) -> list[bytes]:
    """Returns the photos of `config` as JPEG files of `JPEG_WIDTH` x `JPEG_HEIGHT`."""
    return [jpeg_file(photo, JPEG_WIDTH, JPEG_HEIGHT, JPEG_QUALITY) for photo in config.photos]


def jpeg_requests(files: Iterable[bytes]) -> list[bytes]:
    """Returns a serialised `ClassifyRequest` for each image file."""
    return [pb.ClassifyRequest(image=pb.Image(encoded=file)).SerializeToString() for file in files]


def projection_requests(config: BenchmarkConfig, files: Iterable[bytes]) -> list[bytes]:
    """Returns a serialised `ProjectRequest` for each image file: the two strongest maps of the highest layer."""
    highest = config.bundle.manifest.layers[-1].name
    requests = (pb.ProjectRequest(image=pb.Image(encoded=file), layer=highest, strongest=2) for file in files)
    return [request.SerializeToString() for request in requests]


def jpeg_file(photo: Path, width: int, height: int, quality: int) -> bytes:
    """Returns the photo as a JPEG file of exactly `width` x `height` pixels."""
    with Image.open(photo) as opened:
        resized = opened.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    resized.save(file, "JPEG", quality=quality)
    return file.getvalue()
