"""Tests the findings of the overload benchmark on records made by hand."""

import pytest
from zfserve_bench.load.protocol import LATE, OK, REFUSED, THROTTLED, Call, OpenLoopResult
from zfserve_bench.service.overload import goodput, make_findings, min_goodput, split_cpus


def calls(client: str, status: str, count: int, seconds: float = 0.5, began_s: float = 101.0) -> list[Call]:
    return [Call(client, status, began_s, seconds)] * count


def test_figures_of_an_overload() -> None:
    """The service answers 95 images in ten seconds and five after them. Its capacity is 12.5 images a second."""
    result = OpenLoopResult(
        [
            *calls("greedy", OK, 27),
            *calls("greedy", OK, 5, began_s=109.9),
            *calls("modest-1", OK, 28),
            *calls("modest-2", OK, 24),
            *calls("archive", OK, 16, 2.0),
            *calls("archive", LATE, 25),
            *calls("greedy", REFUSED, 300, 0.004),
            *calls("modest-1", REFUSED, 10, 0.02),
            *calls("greedy", THROTTLED, 200, 0.0),
            *calls("greedy", "UNAVAILABLE", 1),
        ],
        began_s=100.0,
        seconds=10.0,
        cpu_s=1.0,
    )
    found = {finding.name.removeprefix("fp32, "): finding for finding in make_findings("fp32", 12.5, result)}
    figures = {name: finding.figure.value for name, finding in found.items()}
    assert figures == pytest.approx(
        {
            "goodput": 0.76,
            "accepted calls that met their deadline": 0.8,
            "the least-served of three clients": 0.75,
            "share of bulk in the answers": 0.16,
            "neither answered, refused nor late": 1,
            "refusal, median": 4.0,
            "refusal, 99 %": 20.0,
            "answer, interactive, median": 500.0,
            "answer, bulk, median": 2000.0,
        }
    )
    assert {name: finding.holds for name, finding in found.items() if finding.holds is not None} == {
        "goodput": False,
        "accepted calls that met their deadline": False,
        "the least-served of three clients": False,
        "share of bulk in the answers": True,
        "neither answered, refused nor late": False,
        "refusal, median": True,
    }


def test_any_caller_may_get_less_in_int8() -> None:
    assert min_goodput("fp32", "any caller") == 0.90
    assert min_goodput("fp32", "zfserve's client") == 0.90
    assert min_goodput("int8", "any caller") == 0.85
    assert min_goodput("int8", "zfserve's client") == 0.90
    result = OpenLoopResult(calls("greedy", OK, 87), began_s=100.0, seconds=10.0, cpu_s=1.0)
    for least, holds in ((0.85, True), (0.90, False)):
        [found] = [finding for finding in make_findings("int8", 10.0, result, least) if finding.name == "int8, goodput"]
        assert found.holds is holds


def test_goodput_at_capacity_is_not_judged() -> None:
    result = OpenLoopResult(
        [*calls("greedy", OK, 27), *calls("greedy", OK, 5, began_s=109.9)], began_s=100.0, seconds=10.0, cpu_s=1.0
    )
    found = goodput("fp32, any caller, at the capacity", 3.0, result)
    assert found.name == "fp32, any caller, at the capacity, goodput"
    assert found.figure.value == pytest.approx(0.9)
    assert found.holds is None


def test_the_load_generator_has_a_cpu_of_its_own() -> None:
    assert split_cpus([0, 1, 5]) == ([0, 1], [5])
    assert split_cpus([3]) == ([3], [3])
