"""Tests the load process against real and fake services."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fakes.vision_service import Failure, FakeVisionService, listening
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images, raw_request
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import (
    OK,
    REFUSED,
    THROTTLED,
    ClosedLoop,
    Kind,
    LoadFailed,
    OpenLoop,
    Sender,
    Stream,
)
from zfserve_bench.service.overload import split_cpus
from zfserve_bench.services import classifying_service, usable_cpus
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Bundle


def test_a_failed_call_fails_the_closed_loop(tmp_path: Path) -> None:
    nobody = f"unix:{tmp_path}/nobody.sock"
    with (
        LoadGenerator(nobody, {Kind.RAW: [b"request"]}, tmp_path) as generator,
        pytest.raises(LoadFailed, match="UNAVAILABLE"),
    ):
        generator.closed_loop(ClosedLoop(Kind.RAW, clients=2, warm_up=1, calls=1))


def test_a_load_process_that_dies_fails_the_measurement(tmp_path: Path) -> None:
    with LoadGenerator("127.0.0.1:1", {}, tmp_path) as generator, pytest.raises(LoadFailed, match="died"):
        generator.finish()  # no open loop was started, so the process fails


def test_an_open_loop_offers_its_calls_even_if_they_fail(
    colour_bundle: Callable[..., Bundle], config_of: Callable[[Bundle], BenchmarkConfig], tmp_path: Path
) -> None:
    config = config_of(colour_bundle())
    requests = [raw_request(image) for image in random_images(config.bundle.manifest.input)]
    streams = (
        Stream("one", Kind.RAW, 100.0, "interactive"),
        Stream("two", Kind.RAW, 50.0, "bulk"),
        Stream("three", Kind.RAW, 20.0, "urgent"),  # type: ignore[arg-type]
    )
    service_cpus, load_cpus = split_cpus(usable_cpus())
    with classifying_service(config, "fp32", tmp_path, service_cpus) as service:
        assert os.sched_getaffinity(service.pid) == set(service_cpus)
        assert os.getsid(service.pid) == service.pid
        order = OpenLoop(streams, Sender.BARE, random_arrivals=True, deadline_s=30.0)
        with LoadGenerator(service.address, {Kind.RAW: requests}, tmp_path, load_cpus) as generator:
            result = generator.open_loop(order, seconds=1.0)
    assert result.seconds == pytest.approx(1.0, abs=0.3)
    by_client = {stream.name: [call for call in result.calls if call.stream == stream.name] for stream in streams}
    for stream in streams:
        expected = stream.calls_per_s
        assert abs(len(by_client[stream.name]) - expected) < 5 * expected**0.5
    assert {call.status for call in by_client["one"] + by_client["two"]} == {OK}
    assert {call.status for call in by_client["three"]} == {"INVALID_ARGUMENT"}


def test_calls_that_the_client_throttles_are_recorded_and_never_sent(tmp_path: Path) -> None:
    service = FakeVisionService()
    service.failures = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", pushback_ms=-1)] * 60
    request = pb.ClassifyRequest(image=pb.Image(encoded=b"1")).SerializeToString()
    order = OpenLoop((Stream("one", Kind.JPEG, 100.0, "bulk"),), Sender.CLIENT, random_arrivals=True, deadline_s=30.0)
    with (
        listening(service) as port,
        LoadGenerator(f"127.0.0.1:{port}", {Kind.JPEG: [request]}, tmp_path) as generator,
    ):
        result = generator.open_loop(order, seconds=1.0)
    statuses = [call.status for call in result.calls]
    assert set(statuses) <= {OK, REFUSED, THROTTLED}
    assert statuses.count(THROTTLED) > 0
    assert len(service.classify_requests) == len(statuses) - statuses.count(THROTTLED)
    assert {metadata["x-priority"] for metadata in service.metadata} == {"bulk"}


def test_ended_calls_are_returned_while_the_open_loop_runs(tmp_path: Path) -> None:
    service = FakeVisionService()
    request = pb.ClassifyRequest(image=pb.Image(encoded=b"1")).SerializeToString()
    with (
        listening(service) as port,
        LoadGenerator(f"127.0.0.1:{port}", {Kind.JPEG: [request]}, tmp_path) as generator,
    ):
        generator.start(OpenLoop.steady({Kind.JPEG: 100.0}))
        while not (seen := list(generator.ended_calls())):
            time.sleep(0.05)
        result = generator.finish()
    assert result.calls[: len(seen)] == seen
    assert len(result.calls) == len(set(result.calls)) == len(service.classify_requests)
    assert all(result.began_s < call.began_s for call in result.calls)
