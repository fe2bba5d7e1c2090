"""Tests that a study waits for a server that restarts, and for nothing else."""

import grpc
import pytest
from zfserve.errors import Cancelled, InvalidInput, Overloaded, Unavailable, ZfserveError
from zfserve_studies.patience import Patience


class Service:
    """Fails with each of its errors, then answers "done". Its clock moves only while somebody waits."""

    def __init__(self, *errors: ZfserveError) -> None:
        self.errors = [*errors]
        self.waits: list[float] = []
        self.reports: list[str] = []

    def call(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def patience(self, longest_s: float = 60) -> Patience:
        return Patience(self.reports.append, longest_s, lambda: sum(self.waits), self.waits.append)


def away(reason: str = "") -> Unavailable:
    return Unavailable("no server", grpc.StatusCode.UNAVAILABLE, reason=reason)


def test_a_restart_is_waited_for_and_told_once() -> None:
    service = Service(away(), Cancelled("stopped", grpc.StatusCode.CANCELLED), away("STARTING"))
    assert service.patience().call(service.call) == "done"
    assert service.waits == [0.5, 1.0, 2.0]
    assert service.reports == ["the server went away; the study goes on when it is back"]


def test_a_busy_server_says_how_long_to_wait() -> None:
    busy = Overloaded("busy", grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=3.0)
    service = Service(busy)
    assert service.patience().call(service.call) == "done"
    assert service.waits == [3.0]
    assert service.reports == []


def test_a_server_that_stays_away_is_given_up() -> None:
    service = Service(*(away() for _ in range(100)))
    with pytest.raises(Unavailable):
        service.patience(longest_s=10).call(service.call)
    assert service.waits == [0.5, 1.0, 2.0, 4.0, 5.0]


@pytest.mark.parametrize(
    "error", [away("WORKER_UNAVAILABLE"), InvalidInput("no", grpc.StatusCode.INVALID_ARGUMENT, reason="INVALID_INPUT")]
)
def test_other_errors_are_raised_at_once(error: ZfserveError) -> None:
    service = Service(error)
    with pytest.raises(type(error)):
        service.patience().call(service.call)
    assert not service.waits
    assert not service.reports
