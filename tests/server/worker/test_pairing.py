"""The pairing follows what the server serves, what the worker holds, and whether a worker serves."""

import logging

import pytest
from zfserve_runtime.errors import WorkerMismatch, WorkerUnavailable
from zfserve_runtime.release import RELEASE
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.worker.pairing import Pairing, PairingState


def state_of(metrics: Metrics) -> PairingState:
    """Returns the one state whose metric is 1."""
    value = metrics.registry.get_sample_value
    (state,) = (state for state in PairingState if value("zfserve_worker_pairing", {"state": state.name.lower()}))
    return state


def test_each_change_of_the_state_is_reported_once() -> None:
    metrics, changes = Metrics(), list[bool]()
    pairing = Pairing(metrics, changes.append)
    pairing.set_served(["a"])
    assert state_of(metrics) is PairingState.DOWN
    with pytest.raises(WorkerUnavailable):
        pairing.check("a")
    pairing.set_worker_up(True)
    assert state_of(metrics) is PairingState.MISMATCH
    assert pairing.mismatched.is_set()
    with pytest.raises(WorkerMismatch):
        pairing.check("a")
    pairing.set_worker(["a", "b"], RELEASE)
    pairing.update()
    pairing.update()
    assert state_of(metrics) is PairingState.READY
    assert pairing.ready
    assert not pairing.mismatched.is_set()
    pairing.check("a")
    pairing.drop_held("a")
    assert (pairing.holds("a"), pairing.holds("b"), pairing.ready) == (False, True, False)
    pairing.set_worker_up(False)
    assert state_of(metrics) is PairingState.DOWN
    assert pairing.worker_down.is_set()
    assert not pairing.holds("b")
    assert changes == [False, True, False, False]


@pytest.mark.parametrize(
    ("release", "words"),
    [
        (RELEASE, "holds other weights than this server"),
        ("", "is of a release before 0.2.0, which reads bundles of schema 1 only"),
        ("9.9", f"is of release 9.9, this server of release {RELEASE}"),
    ],
)
def test_a_worker_that_lacks_a_network_is_named_by_its_release(
    release: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    pairing = Pairing(Metrics(), lambda ready: None)
    pairing.set_served(["a"])
    pairing.set_worker(["b"], release)
    with caplog.at_level(logging.INFO):
        pairing.set_worker_up(True)
    with pytest.raises(WorkerMismatch, match=words) as caught:
        pairing.check("a")
    assert ("upgrade the workers first" in caught.value.message) == (release != RELEASE)
    [lacking] = [record for record in caplog.records if record.message == "the worker lacks weights"]
    assert vars(lacking)["reason"] == caught.value.message
    pairing.set_worker(["a"], release)
    pairing.check("a")
