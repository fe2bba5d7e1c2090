import pytest
from zfserve_runtime.errors import InvalidInput, Overloaded
from zfserve_server.admission import Admission


def test_the_limit_holds_and_a_place_comes_back() -> None:
    admission = Admission(2, service_s=0.5)
    with admission.admit():
        with admission.admit(), pytest.raises(Overloaded), admission.admit():
            pass
        assert admission.accepted == 1
        with admission.admit():
            assert admission.accepted == 2
    assert admission.accepted == 0


def test_the_delay_is_the_time_of_all_that_were_accepted() -> None:
    admission = Admission(2, service_s=0.5)
    with admission.admit(), admission.admit(), pytest.raises(Overloaded) as refused, admission.admit():
        pass
    assert refused.value.retry_after_s == pytest.approx(1.0)


def test_the_delay_follows_the_measured_service_time() -> None:
    """Ten seconds for requests that each had one before them: five seconds apiece."""
    now = [0.0]
    admission = Admission(2, service_s=0.5, clock=lambda: now[0])
    for _ in range(100):
        with admission.admit():
            with admission.admit():
                now[0] += 10.0
            now[0] -= 5.0  # the first alone took five
    with admission.admit(), admission.admit(), pytest.raises(Overloaded) as refused, admission.admit():
        pass
    assert refused.value.retry_after_s == pytest.approx(10.0, rel=0.01)


def test_a_refused_request_gives_its_place_back_and_is_not_measured() -> None:
    admission = Admission(1, service_s=0.5)
    for _ in range(50):
        with pytest.raises(InvalidInput), admission.admit():
            raise InvalidInput("no")
    with admission.admit(), pytest.raises(Overloaded) as refused, admission.admit():
        pass
    assert refused.value.retry_after_s == pytest.approx(0.5)
