"""What is made of an overload and of stops under load: figures by hand, and one quick crowd for real."""

import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fakes.vision_service import Failure, FakeVisionService, listening
from zfserve_bench.load.open_loop import KEPT_BACK, LATE, OK, REFUSED, Call, Offer, Offered, Stream, offer
from zfserve_bench.service.drain import Drain, Outcome, report
from zfserve_bench.service.overload import find, goodput, least_goodput, share_out
from zfserve_bench.subject import Subject, available, classifying_service, noise, raw_request
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Bundle


def calls(client: str, status: str, count: int, seconds: float = 0.5, began_s: float = 1.0) -> list[Call]:
    return [Call(client, status, began_s, seconds)] * count


def test_figures_of_an_overload() -> None:
    """95 images in ten seconds and five after them, of a service that can do 12.5 a second."""
    offered = Offered(
        [
            *calls("greedy", OK, 27),
            *calls("greedy", OK, 5, began_s=9.9),
            *calls("modest-1", OK, 28),
            *calls("modest-2", OK, 24),
            *calls("archive", OK, 16, 2.0),
            *calls("archive", LATE, 25),
            *calls("greedy", REFUSED, 300, 0.004),
            *calls("modest-1", REFUSED, 10, 0.02),
            *calls("greedy", KEPT_BACK, 200, 0.0),
            *calls("greedy", "UNAVAILABLE", 1),
        ],
        seconds=10.0,
        cpu_s=1.0,
    )
    found = {finding.name.removeprefix("fp32, "): finding for finding in find("fp32", 12.5, offered)}
    figures = {name: finding.figure.value for name, finding in found.items()}
    assert figures == pytest.approx(
        {
            "goodput": 0.76,
            "accepted that kept their deadline": 0.8,
            "the least of three clients": 0.75,
            "bulk among the answered": 0.16,
            "neither answered, refused nor late": 1,
            "refusal, median": 4.0,
            "refusal, 99 %": 20.0,
            "answer, interactive, median": 500.0,
            "answer, bulk, median": 2000.0,
        }
    )
    assert {name: finding.holds for name, finding in found.items() if finding.holds is not None} == {
        "goodput": False,
        "accepted that kept their deadline": False,
        "the least of three clients": False,
        "bulk among the answered": True,
        "neither answered, refused nor late": False,
        "refusal, median": True,
    }


def test_any_caller_may_get_less_in_int8() -> None:
    assert least_goodput("fp32", "any caller") == 0.90
    assert least_goodput("fp32", "zfserve's client") == 0.90
    assert least_goodput("int8", "any caller") == 0.85
    assert least_goodput("int8", "zfserve's client") == 0.90
    offered = Offered(calls("greedy", OK, 87), seconds=10.0, cpu_s=1.0)
    for least, holds in ((0.85, True), (0.90, False)):
        [found] = [finding for finding in find("int8", 10.0, offered, least) if finding.name == "int8, goodput"]
        assert found.holds is holds


def test_what_a_crowd_gets_that_is_no_overload_is_not_judged() -> None:
    offered = Offered([*calls("greedy", OK, 27), *calls("greedy", OK, 5, began_s=9.9)], seconds=10.0, cpu_s=1.0)
    found = goodput("fp32, any caller, one time", 3.0, offered)
    assert found.name == "fp32, any caller, one time, goodput"
    assert found.figure.value == pytest.approx(0.9)
    assert found.holds is None


def test_the_load_generator_has_a_cpu_of_its_own() -> None:
    assert share_out([0, 1, 5]) == ([0, 1], [5])
    assert share_out([3]) == ([3], [3])


def drained(**changes: object) -> Drain:
    outcomes = {"1": Outcome.ANSWERED, "2": Outcome.REFUSED, "3": Outcome.CANCELLED}
    fields: dict[str, object] = {"outcomes": outcomes, "seconds": 1.0, "status": 0, "told_s": 0.1, "refused_s": 0.5}
    return Drain(**fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"lost": ["7"]}, ["accepted and not answered"]),
        ({"seconds": 31.0}, ["slowest end"]),
        ({"status": 3}, ["ends with another status than 0"]),
        ({"refused_s": 0.05}, ["refused before health said so"]),
        ({"refused_s": 0.05, "told_s": None}, []),
    ],
)
def test_a_stop_under_load_is_judged_by_what_was_accepted(changes: dict[str, object], missed: list[str]) -> None:
    found = report([drained(), drained(**changes)]).findings
    assert [finding.name for finding in found if finding.holds is False] == missed


def test_calls_are_offered_whatever_becomes_of_them(
    colour_bundle: Callable[..., Bundle], subject_of: Callable[[Bundle], Subject], tmp_path: Path
) -> None:
    subject = subject_of(colour_bundle())
    requests = [raw_request(image) for image in noise(subject.bundle.manifest.input)]
    streams = (Stream("one", "interactive", 100.0), Stream("two", "bulk", 50.0), Stream("three", "urgent", 20.0))  # type: ignore[arg-type]
    own, generators = share_out(available())
    with classifying_service(subject, "fp32", tmp_path, own) as service:
        assert os.sched_getaffinity(service.pid) == set(own)
        assert os.getsid(service.pid) == service.pid
        crowd = Offer(streams, seconds=1.0, deadline_s=30.0)
        offered = offer(service.address, requests, tmp_path, crowd, generators)
    by_client = {stream.client: [call for call in offered.calls if call.client == stream.client] for stream in streams}
    for stream in streams:
        expected = stream.calls_per_s
        assert abs(len(by_client[stream.client]) - expected) < 5 * expected**0.5
    assert {call.status for call in by_client["one"] + by_client["two"]} == {OK}
    assert {call.status for call in by_client["three"]} == {"INVALID_ARGUMENT"}


def test_what_the_client_keeps_back_is_told_apart_and_never_sent(tmp_path: Path) -> None:
    service = FakeVisionService()
    service.failures = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", pushback_ms=-1)] * 60
    request = pb.ClassifyRequest(image=pb.Image(encoded=b"1")).SerializeToString()
    crowd = Offer((Stream("one", "bulk", 100.0),), seconds=1.0, deadline_s=30.0, own_client=True)
    with listening(service) as port:
        offered = offer(f"127.0.0.1:{port}", [request], tmp_path, crowd)
    statuses = [call.status for call in offered.calls]
    assert set(statuses) <= {OK, REFUSED, KEPT_BACK}
    assert statuses.count(KEPT_BACK) > 0
    assert len(service.classify_requests) == len(statuses) - statuses.count(KEPT_BACK)
    assert {metadata["x-priority"] for metadata in service.metadata} == {"bulk"}
