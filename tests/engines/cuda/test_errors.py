"""Compares the table of sticky errors with the errors of cuda-bindings and their documentation."""

import pytest
from cuda.bindings import runtime as cudart
from zfserve_engines.cuda.device import check, start_cuda
from zfserve_engines.cuda.errors import STICKY
from zfserve_engines.cuda.gpu import detect_gpu
from zfserve_runtime.errors import EngineFailed, EngineLost

ERRORS = [error for error in cudart.cudaError_t if error != cudart.cudaError_t.cudaSuccess]


def test_every_error_whose_documentation_asks_for_a_new_process_is_sticky() -> None:
    documented = {
        int(error): error.name
        for error in ERRORS
        if "the process must be terminated and relaunched" in " ".join((error.__doc__ or "").split())
    }
    assert len(documented) > 10, "the wording of the documentation has not changed"
    assert documented.items() <= STICKY.items()


def test_codes_are_those_of_the_names() -> None:
    assert {code: cudart.cudaError_t(code).name for code in STICKY} == STICKY


def test_every_error_is_translated() -> None:
    for error in ERRORS:
        with pytest.raises(EngineFailed) as raised:
            check((error, None))
        assert isinstance(raised.value, EngineLost) == (int(error) in STICKY), error.name
        assert error.name not in raised.value.message, "the name is for the log, not for the caller"


def test_a_successful_call_returns_its_value() -> None:
    assert check((cudart.cudaError_t.cudaSuccess, 7)) == 7
    assert check((cudart.cudaError_t.cudaSuccess,)) is None


@pytest.mark.skipif(detect_gpu() is not None, reason="there is a GPU here")
def test_without_a_driver_cuda_does_not_start(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineFailed):
        start_cuda()
    assert "CUDA failed: cudaError" in caplog.text
