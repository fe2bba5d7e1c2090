"""Tests the findings of the drain benchmark on records made by hand. tests/faults runs real drains."""

import pytest
from zfserve_bench.service.drain import Drain, Outcome, report


def drained(**changes: object) -> Drain:
    outcomes = {"1": Outcome.ANSWERED, "2": Outcome.REFUSED, "3": Outcome.CANCELLED}
    fields: dict[str, object] = {
        "outcomes": outcomes,
        "seconds": 1.0,
        "status": 0,
        "not_serving_s": 0.1,
        "refused_s": 0.5,
    }
    return Drain(**fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"lost": ["7"]}, ["accepted but not answered"]),
        ({"seconds": 31.0}, ["slowest stop"]),
        ({"status": 3}, ["exit status other than 0"]),
        ({"refused_s": 0.05}, ["refused before health said NOT_SERVING"]),
        ({"refused_s": 0.05, "not_serving_s": None}, []),
    ],
)
def test_a_stop_under_load_is_judged_by_what_was_accepted(changes: dict[str, object], missed: list[str]) -> None:
    found = report([drained(), drained(**changes)]).findings
    assert [finding.name for finding in found if finding.holds is False] == missed
