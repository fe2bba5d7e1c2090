"""What all benchmarks have in common: the bundle under test, how thorough to be, a service, and images to send."""

import io
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
from PIL import Image
from zfserve_cli.service_process import ServiceProcess, running_service
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
from zfserve_runtime.bundle import Bundle, InputSpec, Precision

IMAGES = 8
"""Different ones, so that nothing can answer from memory."""


@dataclass(frozen=True)
class Effort:
    """How thorough to be.

    Attributes:
        rounds: measurements of each thing, taken in turn with what it is compared with.
        round_s: about how long one of them takes, in seconds.
        tries, try_s: of each batch size, in the search for the best, and for about how many seconds each.
        starts: cold starts.
        judged: whether figures are held to their limits; those of a quick run are too rough for that.
    """

    rounds: int
    round_s: float
    tries: int
    try_s: float
    starts: int
    judged: bool


THOROUGH = Effort(rounds=7, round_s=1.5, tries=3, try_s=0.4, starts=3, judged=True)
QUICK = Effort(rounds=1, round_s=0.05, tries=1, try_s=0.0, starts=1, judged=False)


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        threads: of the server's engine, of the engine it is compared with, and of torch.
        photos: JPEG files, or none.
        folder: to put files in while measuring.
        data: labelled photos to measure accuracy on; None: the manifest's figures are shown.
        soak_s: seconds that a soak lasts.
        samples: file for what a soak sees as it goes on; None for none.
        overload_s: seconds that an overload lasts.
        repeats: how often a service is stopped under load.
    """

    bundle: Bundle
    threads: int
    photos: tuple[Path, ...]
    effort: Effort
    folder: Path
    data: Path | None = None
    soak_s: float = 20 * 60.0
    samples: Path | None = None
    overload_s: float = 60.0
    repeats: int = 50

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Of the bundle's graphs that are served on a CPU; the others are for GPUs."""
        return tuple(precision for precision in self.bundle.manifest.artefacts if precision in ("fp32", "int8"))

    def scratch(self, name: str) -> Path:
        """A new folder below `folder`."""
        created = self.folder / name
        created.mkdir()
        return created


def available() -> list[int]:
    """Numbers of the CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def classifying_service(
    subject: Subject, precision: Precision, folder: Path, cpus: Collection[int] | None = None
) -> Iterator[ServiceProcess]:
    """A service of that precision, without a worker. Its answers were compared at its start, with golden inputs.

    Args:
        cpus: the only ones it may use, with a thread for each at most; None for all that this process may. With some it
            has a session of its own, too, as in a container: with the load generator in it, on another CPU, Linux 6.18
            was seen to let kernel threads beside the service wait for a minute, and every call interrupted its engine
            (docs/benchmarks.md).
    """
    threads = subject.threads if cpus is None else min(subject.threads, len(cpus))
    flags = ("--no-worker", "--engine", "onnx-cpu", "--precision", precision, "--threads", str(threads))
    own_session = cpus is not None
    with running_service(subject.bundle.folder, folder, *flags, cpus=cpus, own_session=own_session) as service:
        with grpc.insecure_channel(service.address) as channel:
            engine = VisionServiceStub(channel).DescribeModel(pb.DescribeModelRequest(), timeout=10).engine
        assert (engine.runtime, engine.precision, engine.threads) == ("onnxruntime", precision, threads), engine
        yield service


def noise(spec: InputSpec, count: int = IMAGES) -> npt.NDArray[np.uint8]:
    """uint8 (count, H, W, 3), the same at every call. No network's speed depends on what it sees."""
    return np.random.default_rng(0).integers(0, 256, (count, spec.height, spec.width, 3), np.uint8)


def raw_request(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A serialised `ClassifyRequest` with raw pixels, uint8 (H, W, 3)."""
    height, width, _ = pixels.shape
    raw = pb.RawPixels(width=width, height=height, data=pixels.tobytes())
    return pb.ClassifyRequest(image=pb.Image(raw=raw)).SerializeToString()


WIDTH, HEIGHT, QUALITY = 500, 375, 92
"""Of JPEG files that are sent or decoded: the size of most of ImageNet's photos."""


def jpeg_files(subject: Subject) -> list[bytes]:
    """Its photos as files of just that size."""
    return [jpeg(photo, WIDTH, HEIGHT, QUALITY) for photo in subject.photos]


def projection_requests(subject: Subject, files: Iterable[bytes]) -> list[bytes]:
    """Serialised `ProjectRequest`s of the two strongest maps of the highest layer, one for each image file."""
    highest = subject.bundle.manifest.layers[-1].name
    requests = (pb.ProjectRequest(image=pb.Image(encoded=file), layer=highest, strongest=2) for file in files)
    return [request.SerializeToString() for request in requests]


def jpeg(photo: Path, width: int, height: int, quality: int) -> bytes:
    """The photo as a JPEG file of just this size."""
    with Image.open(photo) as opened:
        resized = opened.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    resized.save(file, "JPEG", quality=quality)
    return file.getvalue()
