"""The pairing follows what the server serves, what the worker holds, and whether a worker serves."""

import pytest
from zfserve_runtime.errors import WorkerMismatch, WorkerUnavailable
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
    pairing.set_held(["a", "b"])
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
