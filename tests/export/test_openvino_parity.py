"""OpenVINO on our own networks: what ONNX Runtime recorded at export is what it must give."""

import pytest
from zfserve_runtime.bundle import Bundle, Precision
from zfserve_runtime.golden import verify_engine
from zfserve_runtime.openvino_engine import OpenVinoEngine


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_openvino_reproduces_the_golden_outputs(bundle: Bundle, precision: Precision) -> None:
    verify_engine(OpenVinoEngine(bundle, precision, threads=1, max_batch_size=4), bundle)
