import logging
import subprocess
import sys

import pytest
from zfserve_engines.cuda.gpu import detect_gpu

NO_SUCH_CARD = 4096


def test_the_reason_for_a_missing_gpu_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Asks for a device index that no machine has. So it passes with and without a driver."""
    with caplog.at_level(logging.DEBUG, "zfserve_engines.cuda.gpu"):
        assert detect_gpu(NO_SUCH_CARD) is None
    assert "no GPU can be used: " in caplog.text


def test_without_cuda_bindings_no_gpu_is_found() -> None:
    program = (
        "import logging, sys; sys.modules['cuda.bindings'] = None; logging.basicConfig(level=logging.DEBUG)\n"
        "from zfserve_engines.cuda.gpu import detect_gpu; print(detect_gpu())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "None"
    assert "cuda-bindings is not installed" in ended.stderr
