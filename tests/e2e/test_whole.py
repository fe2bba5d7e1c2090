"""Tests the whole path from weights to answers, with the real commands, the real service and its real worker."""

import json
import os
import signal
import urllib.request
from io import BytesIO
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from fakes.collector import Collector
from fakes.network_graphs import network_graph
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from PIL import Image
from processes import WORKER_S, Service, running_service, wait_for_projections, zfserve
from zfserve import Box, Client
from zfserve_model.checkpoint import load_checkpoint
from zfserve_model.explanation.attribution import attribute
from zfserve_model.explanation.deconvnet import project, strongest_maps, trace
from zfserve_protos.v1 import zfserve_pb2
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

PHOTO = Path(__file__).parent.parent.parent / "samples" / "church.jpg"


def input_of(photo: Path) -> tuple[npt.NDArray[np.uint8], torch.Tensor]:
    """Returns the photo squashed to the network's input: uint8 (224, 224, 3), and float32 (3, 224, 224) normalised."""
    pixels = np.asarray(Image.open(photo).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return pixels, ((torch.from_numpy(pixels.copy()).float() / 255 - mean) / std).permute(2, 0, 1)


def test_classify_agrees_with_the_exported_network(service: Service, checkpoint: Path) -> None:
    pixels, image = input_of(PHOTO)
    with torch.inference_mode():
        expected = load_checkpoint(checkpoint).network(image[None]).softmax(1)[0]
    with Client(service.address) as client:
        answer = client.classify(pixels, top_k=3)
    assert {score.label for score in answer.classes} == {"ant", "bee", "cat"}
    for score in answer.classes:
        assert score.probability == pytest.approx(expected[score.index].item(), abs=1e-4)


@pytest.mark.parametrize("layer", ["conv1", "pool2", "conv5"])
def test_projections_agree_with_the_exported_network(service: Service, checkpoint: Path, layer: str) -> None:
    pixels, image = input_of(PHOTO)
    traced = trace(network_graph(load_checkpoint(checkpoint).network), image, [layer])
    maps = strongest_maps(traced, layer, 3)
    with Client(service.address) as client:
        wait_for_projections(client)
        answers = list(client.project(pixels, layer, strongest=3, format="float32"))
    assert [answer.map for answer in answers] == maps
    for answer, expected in zip(answers, project(traced, layer, maps), strict=True):
        assert answer.activation == pytest.approx(expected.activation, rel=1e-4)
        assert answer.pixels is not None
        scale = float(expected.pixels.abs().max())
        np.testing.assert_allclose(answer.pixels.to_numpy(), expected.pixels.numpy(), atol=1e-4 * scale)


def test_maps_of_a_class_agree_with_the_exported_network(service: Service, checkpoint: Path) -> None:
    pixels, image = input_of(PHOTO)
    graph = network_graph(load_checkpoint(checkpoint).network)
    attribution = attribute(trace(graph, image, ["conv5"]), "conv5", 1)
    with Client(service.address) as client:
        wait_for_projections(client)
        answers = list(client.project(pixels, "conv5", strongest=3, for_class="bee"))
    assert [answer.map for answer in answers] == attribution.leading_maps(3)
    for answer in answers:
        assert answer.for_class is not None
        assert (answer.for_class.label, answer.for_class.index) == ("bee", 1)
        assert answer.attribution == pytest.approx(attribution.maps[answer.map].item(), rel=1e-3)


def test_an_explanation_is_complete_and_fits_the_other_answers(service: Service) -> None:
    with Client(service.address) as client:
        wait_for_projections(client)
        answer = client.explain(PHOTO, layer="conv3", class_name="bee")
        scores = client.classify(PHOTO, top_k=3).classes
        maps = list(client.project(PHOTO, "conv3", strongest=384, for_class="bee"))
    values = answer.heatmap.to_numpy().astype(float)
    assert (answer.layer, values.shape) == ("conv3", (13, 13))
    assert answer.baseline_score is not None
    assert answer.completeness_gap is not None
    gained = answer.score - answer.baseline_score
    assert values.sum() + answer.completeness_gap == pytest.approx(gained, abs=1e-4)
    assert abs(answer.completeness_gap) < 0.1 * max(abs(gained), 0.1)
    assert sum(entry.attribution or 0.0 for entry in maps) == pytest.approx(values.sum(), abs=1e-4)
    (bee,) = (score for score in scores if score.label == "bee")
    assert answer.served_precision == "fp32"
    assert answer.served_probability == pytest.approx(bee.probability, abs=1e-6)
    assert answer.for_class.probability == pytest.approx(bee.probability, abs=1e-4)
    assert answer.scale == pytest.approx(np.abs(values).max())
    with Image.open(PHOTO) as photo, Image.open(BytesIO(answer.overlay_png)) as overlay:
        assert answer.source_box == Box(0, 0, *photo.size)
        assert (overlay.mode, overlay.size) == ("RGB", (224, 224))


def test_the_commands_of_the_readme(service: Service, tmp_path: Path) -> None:
    classified = zfserve("classify", PHOTO, "--json", "--address", service.address)
    assert classified.returncode == 0, classified.stderr
    assert len(json.loads(classified.stdout)["classes"]) == 3

    with Client(service.address) as client:
        wait_for_projections(client)
    flags = ("--layer", "conv3", "--top", "2", "--save", tmp_path, "--address", service.address)
    projected = zfserve("project", PHOTO, *flags)
    assert projected.returncode == 0, projected.stderr
    pictures = list(tmp_path.rglob("*.png"))
    assert len(pictures) >= 3, "there must be two projections and a contact sheet"
    assert all(np.asarray(Image.open(picture).convert("RGB")).std() > 1 for picture in pictures)

    picture = tmp_path / "why.png"
    explained = zfserve("explain", PHOTO, "--top", "2", "--save", picture, "--address", service.address)
    assert explained.returncode == 0, explained.stderr
    assert "relu5" in explained.stdout
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 500

    described = zfserve("info", "--address", service.address)
    assert described.returncode == 0
    assert "conv5" in described.stdout


def test_a_killed_worker_is_restarted_and_classification_never_stops(bundle: Path, tmp_path: Path) -> None:
    with running_service(bundle, tmp_path) as service, Client(service.address) as client:
        wait_for_projections(client)
        worker = child_of(service.process.pid)
        with grpc.insecure_channel(service.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service="zfserve.v1.VisionService/Project"), timeout=WORKER_S
            )
            statuses = (update.status for update in watch)
            assert next(statuses) == health_pb2.HealthCheckResponse.SERVING
            os.kill(worker, signal.SIGKILL)
            assert next(statuses) == health_pb2.HealthCheckResponse.NOT_SERVING
            assert client.classify(PHOTO).classes
            request = zfserve_pb2.ProjectRequest(
                image=zfserve_pb2.Image(encoded=PHOTO.read_bytes()), layer="conv1", strongest=1
            )
            with pytest.raises(grpc.RpcError) as refused:  # a plain stub, because our client would retry
                list(VisionServiceStub(channel).Project(request))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert next(statuses) == health_pb2.HealthCheckResponse.SERVING
        assert child_of(service.process.pid) != worker
        assert len(list(client.project(PHOTO, "conv1", strongest=2))) == 2


def test_the_service_ends_with_its_worker_and_both_have_exported_their_spans(bundle: Path, tmp_path: Path) -> None:
    collector, application = Collector(), TracerProvider(shutdown_on_exit=False)
    with (
        collector.listening() as endpoint,
        running_service(bundle, tmp_path, "--otlp-endpoint", endpoint) as service,
        Client(service.address, tracer_provider=application) as client,
    ):
        wait_for_projections(client)
        with application.get_tracer("test").start_as_current_span("root") as root:
            assert len(list(client.project(PHOTO, "conv3", strongest=1))) == 1
        worker = child_of(service.process.pid)
        service.process.terminate()
        assert service.process.wait(60) == 0
        assert not Path(f"/proc/{worker}").exists()
    trace = f"{root.get_span_context().trace_id:032x}"
    asked, served = collector.named("zfserve.worker.v1.WorkerService/Project")
    if asked.kind == "SERVER":
        asked, served = served, asked
    call = collector.only("zfserve.v1.VisionService/Project")
    assert (call.service, asked.service, served.service) == ("zfserve-server", "zfserve-server", "zfserve-worker")
    assert {span.trace for span in (call, asked, served)} == {trace}
    assert (asked.parent, served.parent) == (call.id, asked.id)
    assert collector.children(call) == ["decode", asked.name]
    assert collector.children(served) == ["forward pass", "projection", "render"]
    assert len({span.attributes["zfserve.request.id"] for span in (call, served)}) == 1


def test_metrics_show_the_calls(service: Service) -> None:
    with Client(service.address) as client:
        client.classify(PHOTO)
    with urllib.request.urlopen(f"http://localhost:{service.metrics_port}/metrics") as page:
        text = page.read().decode()
    assert 'status="OK"' in text
    assert "Classify" in text


def test_evaluate_a_bundle(bundle: Path, tmp_path: Path) -> None:
    for class_id in ("a", "b"):
        (tmp_path / class_id).mkdir()
        Image.open(PHOTO).save(tmp_path / class_id / "photo.jpg")
    evaluated = zfserve("evaluate", bundle, "--data", tmp_path, "--json", tmp_path / "figures.json")
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["count"] == 2
    assert figures["top1"] <= 0.5, "the same photo cannot be right in both classes"


def child_of(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    assert len(children) == 1, f"the service has children {children}"
    return int(children[0])
