import math

import pytest
from zfserve_runtime.errors import DeadlineExceeded
from zfserve_runtime.grpc.deadline import Deadline


def test_without_a_deadline_there_is_always_time() -> None:
    deadline = Deadline()
    assert deadline.remaining_s() is None
    assert not deadline.expired()
    deadline.check()


def test_a_future_deadline_leaves_time() -> None:
    deadline = Deadline.after(3600)
    remaining_s = deadline.remaining_s()
    assert remaining_s is not None
    assert 0 < remaining_s <= 3600
    deadline.check()


@pytest.mark.parametrize("seconds", [0, -5, -math.inf])
def test_a_past_deadline_is_expired(seconds: float) -> None:
    deadline = Deadline.after(seconds)
    assert deadline.remaining_s() == 0
    assert deadline.expired()
    with pytest.raises(DeadlineExceeded, match="allow more time"):
        deadline.check()
