"""Fakes a service whose activations depend on the content of photos. The tests of the atlas use it."""

import hashlib
import struct
from collections.abc import Iterator

import grpc
import numpy as np
import numpy.typing as npt
from fakes.pictures import png
from fakes.vision_service import MODEL, Failure, FakeVisionService
from zfserve_protos.v1 import zfserve_pb2 as pb

MAPS = 96
"""The number of maps of conv1."""


class AtlasService(FakeVisionService):
    """Computes activations from the SHA-256 of a photo, and projections whose values are the activations.

    A photo of the bytes b"no photo" is refused. Map 1 is dead.
    """

    interrupt_after = -1
    computation = pb.Computation(precision="int8", engine="openvino")

    def Activations(  # noqa: N802
        self, request: pb.ActivationsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ActivationsResponse]:
        self.study_requests.append(request)
        if self.failures:
            self.failures.pop(0).end(context)
        if self.interrupt_after == 0:
            Failure(grpc.StatusCode.INTERNAL, "the machine was cut off").end(context)
        self.interrupt_after -= 1
        for number, image in enumerate(request.images):
            if image.encoded == b"no photo":
                Failure(grpc.StatusCode.INVALID_ARGUMENT, "the photo cannot be decoded", "IMAGE_UNDECODABLE").end(
                    context
                )
            values = activations(image.encoded)
            yield pb.ActivationsResponse(
                image=number,
                layer="conv1",
                values=pb.FloatMaps(maps=MAPS, height=1, width=1, data=values.tobytes()),
                rows=[2] * MAPS,
                columns=range(MAPS),
                photo_ends=True,
                best=pb.ClassScore(label="church", class_id="n1", index=1, probability=0.75),
                computation=self.computation,
                model=self.description.model,
            )

    def Project(  # noqa: N802
        self, request: pb.ProjectRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ProjectResponse]:
        self.project_requests.append(request)
        if self.project_failures:
            self.project_failures.pop(0).end(context)
        values = activations(request.image.encoded)
        maps = list(request.selection.indices) or range(request.for_class.count)
        for rank, index in enumerate(maps):
            message = pb.ProjectResponse(
                map=index,
                unit=request.unit.position if request.unit.HasField("position") else pb.Position(row=1, column=2),
                activation=values[index],
                box=pb.Box(left=0, top=0, right=4, bottom=2),
                patch_png=png((200, 120, 40)),
                model=MODEL,
                rank=rank,
                total=len(maps),
                rule=pb.PROJECTION_RULE_PAPER,
            )
            if request.HasField("for_class"):
                message.for_class.CopyFrom(pb.ClassScore(label="church", class_id="n1", index=1, probability=0.5))
                message.attribution = values[index] - 0.5
                message.png = png((1, 2, 3))
            else:
                data = struct.pack("<24f", *[float(values[index])] * 24)
                message.float32.CopyFrom(pb.Float32Picture(height=2, width=4, data=data))
            yield message


def activations(content: bytes) -> npt.NDArray[np.float32]:
    """Returns float32 (96,), the activations of a photo, in [0, 1)."""
    digest = hashlib.sha256(content).digest() * 3
    values = np.frombuffer(digest, np.uint8).astype(np.float32) / np.float32(256)
    values[1] = 0
    return values
