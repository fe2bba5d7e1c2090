import logging
import subprocess
import sys

import pytest
from zfserve_engines.cuda.gpu import detect_gpu

NO_SUCH_CARD = 4096


def test_where_there_is_no_card_the_reason_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With a driver or without one: no machine has this many cards. tests/gpu looks at a card that is there."""
    with caplog.at_level(logging.DEBUG, "zfserve_engines.cuda.gpu"):
        assert detect_gpu(NO_SUCH_CARD) is None
    assert "no GPU can be used: " in caplog.text


def test_without_cuda_bindings_there_is_no_card() -> None:
    program = (
        "import logging, sys; sys.modules['cuda.bindings'] = None; logging.basicConfig(level=logging.DEBUG)\n"
        "from zfserve_engines.cuda.gpu import detect_gpu; print(detect_gpu())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "None"
    assert "cuda-bindings is not installed" in ended.stderr
