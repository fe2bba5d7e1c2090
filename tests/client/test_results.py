"""Tests that the results have every field of the service's messages, and each field is explained."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest
import zfserve
from google.protobuf.descriptor import Descriptor
from zfserve import AsyncClient, Client, explanation, model_description, occlusion, results, studies
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
        (model_description.InputSpec, pb.InputSpec),
        (model_description.Layer, pb.Layer),
        (model_description.ParityFigure, pb.ParityFigure),
        (model_description.AccuracyFigure, pb.AccuracyFigure),
        (model_description.Engine, pb.Engine),
        (model_description.EngineNotTaken, pb.EngineNotTaken),
        (model_description.ModelDescription, pb.DescribeModelResponse),
        (results.Projection, pb.ProjectResponse),
        (explanation.HeatMap, pb.HeatMap),
        (explanation.Explanation, pb.ExplainResponse),
        (occlusion.OcclusionPlan, pb.OcclusionPlan),
        (occlusion.OcclusionSummary, pb.OcclusionSummary),
        (occlusion.OcclusionUpdate, pb.OccludeResponse),
        (studies.AblationStep, pb.AblateResponse),
        (studies.Computation, pb.Computation),
        (studies.FeatureDistance, pb.FeatureDistance),
        (studies.TransformStep, pb.TransformResponse),
    ],
)
def test_a_result_has_every_field_of_its_message(result: type, message: type) -> None:
    descriptor: Descriptor = message.DESCRIPTOR  # type: ignore[attr-defined]
    renamed = {"float32": "pixels"}
    expected = {renamed.get(field.name, field.name) for field in descriptor.fields}
    assert {field.name for field in fields(result)} == expected


@pytest.mark.parametrize("name", [name for name in zfserve.__all__ if is_dataclass(getattr(zfserve, name))])
def test_every_field_is_explained(name: str) -> None:
    result = getattr(zfserve, name)
    explained = set(re.findall(r"^        (\w+): ", result.__doc__, re.MULTILINE))
    assert {field.name for field in fields(result)} <= explained


@pytest.mark.parametrize(
    "method", ["__init__", *(name for name, _ in inspect.getmembers(Client, inspect.isfunction) if name[0] != "_")]
)
def test_every_argument_is_explained(method: str) -> None:
    called = getattr(Client, method)
    text = Client.__doc__ if method == "__init__" else called.__doc__
    explained = set(re.findall(r"^ +(\w+): ", text or "", re.MULTILINE))
    assert set(inspect.signature(called).parameters) - {"self"} <= explained


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    def signatures(client: type) -> dict[str, list[inspect.Parameter]]:
        methods = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters.values()) for name, method in methods if name[0] != "_"}

    assert signatures(AsyncClient) == signatures(Client)


def test_importing_the_package_does_not_import_grpc() -> None:
    program = "import sys, zfserve; print({'grpc', 'PIL', 'google.protobuf'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_every_public_name_can_be_imported() -> None:
    for name in zfserve.__all__:
        assert getattr(zfserve, name).__name__ == name
    with pytest.raises(AttributeError):
        zfserve.Nothing  # noqa: B018
