"""The results mirror the messages: a field that the service gains must not be lost on the way to the caller."""

from dataclasses import fields

import pytest
import zfserve
from google.protobuf.descriptor import Descriptor
from zfserve import results
from zfserve_protos.v1 import zfserve_pb2 as pb


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (results.ClassScore, pb.ClassScore),
        (results.ModelIdentity, pb.ModelIdentity),
        (results.Timings, pb.Timings),
        (results.Classification, pb.ClassifyResponse),
        (results.Position, pb.Position),
        (results.Box, pb.Box),
        (results.Float32Picture, pb.Float32Picture),
        (results.InputSpec, pb.InputSpec),
        (results.Layer, pb.Layer),
        (results.ParityFigure, pb.ParityFigure),
        (results.AccuracyFigure, pb.AccuracyFigure),
        (results.Engine, pb.Engine),
        (results.EngineNotTaken, pb.EngineNotTaken),
        (results.ModelDescription, pb.DescribeModelResponse),
        (results.Projection, pb.ProjectResponse),
    ],
)
def test_every_field_has_its_place(result: type, message: type) -> None:
    descriptor: Descriptor = message.DESCRIPTOR  # type: ignore[attr-defined]
    renamed = {"float32": "pixels"}
    expected = {renamed.get(field.name, field.name) for field in descriptor.fields}
    assert {field.name for field in fields(result)} == expected


def test_every_public_name_can_be_imported() -> None:
    for name in zfserve.__all__:
        assert getattr(zfserve, name).__name__ == name
    with pytest.raises(AttributeError):
        zfserve.Nothing  # noqa: B018
